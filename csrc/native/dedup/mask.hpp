// Text that says nothing about whether two conversations are the same: role tags, and a first line (a system prompt)
// that many texts share. Masked bytes become spaces, so lengths and offsets stay.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace osim::dedup {

struct Mask {
    bool roles = false;
    std::span<const std::uint64_t> prompts;  // hashes of first lines, ascending

    bool empty() const { return !roles && prompts.empty(); }
    void apply(std::span<std::uint8_t> text) const;
};

// Hash of the first line, or 0 where it is shorter than kPromptBytes or nothing follows it.
std::uint64_t first_line_hash(std::span<const std::uint8_t> text);

constexpr std::size_t kPromptBytes = 20;

}  // namespace osim::dedup
