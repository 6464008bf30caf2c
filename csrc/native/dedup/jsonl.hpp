// JSON Lines read at memory speed: every line is checked in full (RFC 8259 grammar, UTF-8), and one string field of it
// is located and decoded. osim_core/corpus/dedup.py feeds it chunks that end at line ends.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace osim::dedup {

enum class RowError : std::uint8_t {
    kNone = 0,
    kInvalidUtf8,
    kInvalidJson,
    kNotAnObject,
    kMissing,    // no such field
    kNull,       // the field is null
    kNotString,  // the field is another value
    kTooLong,    // the line is longer than the limit
};

// The field's raw string, between its quotes, as offsets into the line.
struct Located {
    RowError error = RowError::kNone;
    std::size_t begin = 0;
    std::size_t end = 0;
    bool escaped = false;
};

// Finds the last top-level member `field` of the object on this line.
Located locate(std::span<const std::uint8_t> line, std::span<const std::uint8_t> field);

// Appends the decoded string; half a surrogate pair becomes U+FFFD.
void unescape(std::span<const std::uint8_t> raw, std::vector<std::uint8_t>& out);

// Whether all of it is well-formed UTF-8.
bool is_utf8(std::span<const std::uint8_t> bytes);

}  // namespace osim::dedup
