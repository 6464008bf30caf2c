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
// tokens run in chains of their own, two each (high and low half), which hides the multiplier's latency; on a GPU each
// chain has a thread of its own.
enum Chain { kHighEven, kHighOdd, kLowEven, kLowOdd, kChains };

OSIM_HD constexpr std::uint64_t chain_start(int chain) {  // digits of pi
    return chain == kHighEven  ? 0x243F6A8885A308D3u
           : chain == kHighOdd ? 0x13198A2E03707344u
           : chain == kLowEven ? 0xA4093822299F31D0u
                               : 0x082EFA98EC4E6C89u;
}

OSIM_HD constexpr std::uint64_t chain_step(std::uint64_t state, std::uint64_t token, bool low) {
    state = (low ? state + token : state ^ token) * (low ? 0xC2B2AE3D27D4EB4Fu : 0x9E3779B185EBCA87u);
    return state ^ state >> (low ? 29 : 32);
}

OSIM_HD constexpr std::uint64_t chain_mix(std::uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

// The hash from the chains' ends. `domain` keeps kinds of sequences apart (tokens, raw bytes); `count` those of
// different length.
OSIM_HD constexpr ExactHash exact_hash_of(std::uint64_t high_even, std::uint64_t high_odd, std::uint64_t low_even,
                                          std::uint64_t low_odd, std::uint64_t count, std::uint64_t domain) {
    const std::uint64_t salt = count * 2 + domain;
    return {chain_mix(high_even ^ chain_mix(high_odd + salt)), chain_mix(low_even + chain_mix(low_odd ^ ~salt))};
}

class ExactHasher {
  public:
    OSIM_HD constexpr void pair(std::uint64_t even, std::uint64_t odd) {
        step(0, even);
        step(1, odd);
    }
    OSIM_HD constexpr void last(std::uint64_t even) { step(0, even); }
    OSIM_HD constexpr ExactHash finish(std::uint64_t count, std::uint64_t domain) const {
        return exact_hash_of(high_[0], high_[1], low_[0], low_[1], count, domain);
    }

  private:
    OSIM_HD constexpr void step(int parity, std::uint64_t token) {
        high_[parity] = chain_step(high_[parity], token, false);
        low_[parity] = chain_step(low_[parity], token, true);
    }

    std::uint64_t high_[2] = {chain_start(kHighEven), chain_start(kHighOdd)};
    std::uint64_t low_[2] = {chain_start(kLowEven), chain_start(kLowOdd)};
};

}  // namespace osim
