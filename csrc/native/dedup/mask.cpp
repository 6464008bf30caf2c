#include "mask.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>

#include "shingle.hpp"

namespace osim::dedup {
namespace {

constexpr std::array<std::string_view, 16> kRoles = {"agent", "ai",   "assistant", "bot",    "customer", "gpt",
                                                     "human", "me",   "model",     "person", "speaker",  "system",
                                                     "them",  "tool", "user",      "you"};
constexpr std::size_t kLongestMarker = 40;

// Length of `<|...|>` at the start of the line, or 0.
std::size_t marker_length(std::span<const std::uint8_t> line) {
    if (line.size() < 4 || line[0] != '<' || line[1] != '|') {
        return 0;
    }
    for (std::size_t at = 2; at + 1 < std::min(line.size(), kLongestMarker); ++at) {
        if (line[at] == '|' && line[at + 1] == '>') {
            return at + 2;
        }
    }
    return 0;
}

// Length of a role word at the start of the line, with its number or letter ("Speaker 2", "Person A"), or 0.
std::size_t role_length(std::span<const std::uint8_t> line) {
    std::size_t length = 0;
    std::array<char, 12> word{};
    while (length < line.size() && length < word.size() && between(line[length] | 0x20u, 'a', 'z')) {
        word[length] = static_cast<char>(line[length] | 0x20);
        ++length;
    }
    if (!std::ranges::binary_search(kRoles, std::string_view(word.data(), length))) {
        return 0;
    }
    std::size_t end = length;
    if (end + 1 < line.size() && (line[end] == ' ' || line[end] == '_') && is_ascii_word(line[end + 1])) {
        end += 2;
        while (end < line.size() && between(line[end], '0', '9')) {
            ++end;
        }
        if (end < line.size() && is_ascii_word(line[end])) {
            return length;  // a word of its own follows, not the role's number
        }
    }
    return end;
}

// Length of the role tag at the start of the line: `User:`, `Speaker 2:`, `<|im_start|>user` alone on its line, or
// any marker by itself.
std::size_t tag_length(std::span<const std::uint8_t> line) {
    const std::size_t marker = marker_length(line);
    const std::size_t role = role_length(line.subspan(marker));
    const std::size_t end = marker + role;
    if (role > 0 && end < line.size() && line[end] == ':') {
        return end + 1;
    }
    return marker > 0 && role > 0 && end == line.size() ? end : marker;
}

}  // namespace

void Mask::apply(std::span<std::uint8_t> text) const {
    if (!prompts.empty()) {
        const std::uint64_t hash = first_line_hash(text);
        if (hash != 0 && std::ranges::binary_search(prompts, hash)) {
            std::fill(text.begin(), std::find(text.begin(), text.end(), '\n'), ' ');
        }
    }
    for (std::size_t begin = 0; roles && begin < text.size();) {
        const auto* stop =
            static_cast<const std::uint8_t*>(std::memchr(text.data() + begin, '\n', text.size() - begin));
        const std::size_t end = stop == nullptr ? text.size() : static_cast<std::size_t>(stop - text.data());
        const auto line = text.subspan(begin, end - begin);
        std::fill_n(line.begin(), tag_length(line), ' ');
        begin = end + 1;
    }
}

std::uint64_t first_line_hash(std::span<const std::uint8_t> text) {
    const auto* stop = static_cast<const std::uint8_t*>(
        text.empty() ? nullptr : std::memchr(text.data(), '\n', text.size()));
    const std::size_t length = stop == nullptr ? text.size() : static_cast<std::size_t>(stop - text.data());
    if (length < kPromptBytes || length + 1 >= text.size()) {
        return 0;
    }
    std::uint64_t state = word_hash_start(length);
    for (std::size_t at = 0; at < length; at += 8) {
        state = word_hash_step(state, eight_bytes_at(text.data() + at, length - at));
    }
    return state | 1;
}

}  // namespace osim::dedup
