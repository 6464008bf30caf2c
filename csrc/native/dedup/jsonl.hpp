// JSON Lines read at memory speed: every line is checked in full (RFC 8259 grammar, UTF-8), and its strings of interest
// are located: top-level string fields, or the contents of `messages`. osim_core/corpus/dedup/reading.py feeds it
// chunks that end at line ends.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace osim::dedup {

enum class RowError : std::uint8_t {
    kNone = 0,
    kInvalidUtf8,
    kInvalidJson,
    kNotAnObject,
    kMissing,      // no such field
    kNull,         // the field is null
    kNotString,    // the field is another value
    kTooLong,      // the line is longer than the limit
    kNoMessages,   // `messages` is missing, empty or not a list
    kBadMessage,   // a message is no object with a string `content`
};

// A raw string, between its quotes, as offsets into the line.
struct Located {
    RowError error = RowError::kNone;
    std::size_t begin = 0;
    std::size_t end = 0;
};

using Bytes = std::span<const std::uint8_t>;

// Finds the last top-level member of each name in `fields` of the object on this line; `found` is as long.
void locate(Bytes line, std::span<const Bytes> fields, std::span<Located> found);

// What one entry of `messages` says, and whether its role is "system".
struct Message {
    Located content;
    bool system = false;
};

// Finds the messages of the object on this line; they are appended, or none of them where the row is bad.
RowError locate_messages(Bytes line, std::vector<Message>& messages);

// Appends the decoded string; half a surrogate pair becomes U+FFFD.
void unescape(Bytes raw, std::vector<std::uint8_t>& out);

// Whether all of it is well-formed UTF-8.
bool is_utf8(Bytes bytes);

}  // namespace osim::dedup
