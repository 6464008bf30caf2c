// From token hashes to shingles (runs of five tokens) and to a text's exact hash. Host and device, no containers.
#pragma once

#include <cstdint>

#include "text.hpp"

namespace osim {

constexpr std::uint32_t kShingleTokens = 5;

// 32 bits of a shingle. Two different shingles collide with probability 2^-32, so the Jaccard index computed on a
// union of m shingles is off (then by about 1/m) with probability at most m^2 / 2^33: 5e-6 for m = 200.
//
// Two steps, since neighbouring shingles share their pairs of tokens.
OSIM_HD constexpr std::uint64_t token_pair(std::uint64_t first, std::uint64_t second) {
    return first * 0xC2B2AE3D27D4EB4Fu + second;
}

OSIM_HD constexpr std::uint32_t shingle_hash(std::uint64_t pair, std::uint64_t next_pair, std::uint64_t last) {
    std::uint64_t sum = (pair * 0x9E3779B97F4A7C15u + next_pair) * 0x165667B19E3779F9u + last;
    sum ^= sum >> 32;
    return static_cast<std::uint32_t>(sum * 0x94D049BB133111EBu >> 32);
}

struct ExactHash {
    std::uint64_t high;
    std::uint64_t low;

    OSIM_HD constexpr bool operator==(const ExactHash& other) const { return high == other.high && low == other.low; }
    OSIM_HD constexpr bool operator<(const ExactHash& other) const {
        return high != other.high ? high < other.high : low < other.low;
    }
};

// 128 bits over the sequence of token hashes: equal texts up to case and punctuation have equal hashes. Even and odd
// tokens run in chains of their own, two with different multipliers each, which hides the multiplier's latency.
class ExactHasher {
  public:
    OSIM_HD constexpr void pair(std::uint64_t even, std::uint64_t odd) {
        step(0, even);
        step(1, odd);
    }
    OSIM_HD constexpr void last(std::uint64_t even) { step(0, even); }
    // `domain` keeps kinds of sequences apart (tokens, raw bytes); `count` those of different length.
    OSIM_HD constexpr ExactHash finish(std::uint64_t count, std::uint64_t domain) const {
        const std::uint64_t salt = count * 2 + domain;
        return {mix(a_[0] ^ mix(a_[1] + salt)), mix(b_[0] + mix(b_[1] ^ ~salt))};
    }

  private:
    OSIM_HD constexpr void step(int chain, std::uint64_t token) {
        a_[chain] = (a_[chain] ^ token) * 0x9E3779B185EBCA87u;
        a_[chain] ^= a_[chain] >> 32;
        b_[chain] = (b_[chain] + token) * 0xC2B2AE3D27D4EB4Fu;
        b_[chain] ^= b_[chain] >> 29;
    }
    OSIM_HD static constexpr std::uint64_t mix(std::uint64_t x) {
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
        x = (x ^ x >> 27) * 0x94D049BB133111EBu;
        return x ^ x >> 31;
    }

    std::uint64_t a_[2] = {0x243F6A8885A308D3u, 0x13198A2E03707344u};  // digits of pi
    std::uint64_t b_[2] = {0xA4093822299F31D0u, 0x082EFA98EC4E6C89u};
};

}  // namespace osim
