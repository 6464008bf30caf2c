// MinHash signatures and band keys (Broder 1997; bands after Indyk and Motwani 1998). Host and device, no containers.
// Legend: K = kLanes hash functions, of which the first kBands * kRows make the band keys.
//
// Lane k of a set is the minimum over its shingles x of ((x ^ a_k) * b_k) modulo 2^16, b_k odd: a bijection of the low
// 16 bits of x. Ties among 16-bit values bias the estimate by about n / 65,536 for n shingles, so sets of more than
// kWideShingles use the same formula modulo 2^32. The two do not compare, so a set whose partners at the threshold
// may lie on either side of the border gets both (`needs_narrow`, `needs_wide`).
#pragma once

#include <cstdint>

#include "text.hpp"

namespace osim {

constexpr int kLanes = 128;
constexpr int kBands = 21;
constexpr int kRows = 6;
constexpr std::uint32_t kWideShingles = 1024;

struct LaneTable {
    alignas(64) std::uint32_t flip[kLanes];      // a_k; 16-bit lanes take the low half
    alignas(64) std::uint32_t multiply[kLanes];  // b_k, odd
    alignas(64) std::uint16_t flip16[kLanes];
    alignas(64) std::uint16_t multiply16[kLanes];
};

OSIM_HD constexpr std::uint64_t splitmix(std::uint64_t* state) {
    std::uint64_t x = *state += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

constexpr LaneTable make_lanes(std::uint64_t seed) {
    LaneTable table{};
    for (int k = 0; k < kLanes; ++k) {
        const std::uint64_t random = splitmix(&seed);
        table.flip[k] = static_cast<std::uint32_t>(random);
        table.multiply[k] = static_cast<std::uint32_t>(random >> 32) | 1;
        table.flip16[k] = static_cast<std::uint16_t>(table.flip[k]);
        table.multiply16[k] = static_cast<std::uint16_t>(table.multiply[k] >> 16) | 1;
    }
    return table;
}

constexpr std::uint64_t kLaneSeed = 20261124;  // part of the signature format: never change

inline constexpr LaneTable kLaneTable = make_lanes(kLaneSeed);

OSIM_HD constexpr std::uint16_t lane16(std::uint32_t shingle, std::uint16_t flip, std::uint16_t multiply) {
    return static_cast<std::uint16_t>(static_cast<std::uint32_t>(static_cast<std::uint16_t>(shingle) ^ flip) *
                                      multiply);
}

OSIM_HD constexpr std::uint32_t lane32(std::uint32_t shingle, std::uint32_t flip, std::uint32_t multiply) {
    return (shingle ^ flip) * multiply;
}

// Sets at or above the threshold J differ in size by at most a factor J.
OSIM_HD constexpr bool needs_narrow(std::uint32_t distinct) { return distinct <= kWideShingles; }
OSIM_HD constexpr bool needs_wide(std::uint32_t distinct, double threshold) {
    return distinct >= threshold * kWideShingles;
}

// The least number of distinct shingles that `needs_wide`.
constexpr std::uint32_t wide_from(double threshold) {
    auto distinct = static_cast<std::uint32_t>(threshold * kWideShingles);
    while (!needs_wide(distinct, threshold)) {
        ++distinct;
    }
    return distinct;
}

// Four bits of each lane: enough to tell a hopeless pair from a promising one (b-bit MinHash, Li and Koenig 2010).
// Lanes of different minima agree in a digit with probability 1/16, so digits agree with p = J + (1 - J) / 16.
struct Digits {
    std::uint64_t words[kLanes / 16];
};

// One word, of 16 lanes.
template <typename Lane>
OSIM_HD constexpr std::uint64_t digit_word(const Lane* lanes) {
    std::uint64_t word = 0;
    for (int k = 0; k < 16; ++k) {
        word |= static_cast<std::uint64_t>(lanes[k] & 15) << (4 * k);
    }
    return word;
}

OSIM_HD constexpr Digits digits_of(const std::uint16_t* lanes) {
    Digits digits{};
    for (int i = 0; i < kLanes / 16; ++i) {
        digits.words[i] = digit_word(lanes + 16 * i);
    }
    return digits;
}

// Lanes whose digits agree.
OSIM_HD inline int equal_digits(const Digits& a, const Digits& b) {
    int different = 0;
    for (int i = 0; i < kLanes / 16; ++i) {
        std::uint64_t bits = a.words[i] ^ b.words[i];
        bits |= bits >> 2;
        bits |= bits >> 1;
        bits &= 0x1111111111111111u;
        different += static_cast<int>(bits * 0x1111111111111111u >> 60) + 16 * (bits == 0x1111111111111111u);
    }
    return kLanes - different;
}

// Key of one band from its kRows lanes: multilinear modulo 2^64, upper half.
template <typename Lane>
OSIM_HD constexpr std::uint32_t band_key(const Lane* lanes) {
    constexpr std::uint64_t factor[kRows] = {0x9E3779B97F4A7C15u, 0xC2B2AE3D27D4EB4Fu, 0x165667B19E3779F9u,
                                             0x27D4EB2F165667C5u, 0x85EBCA77C2B2AE63u, 0xD6E8FEB86659FD93u};
    std::uint64_t sum = 0x94D049BB133111EBu;
    for (int row = 0; row < kRows; ++row) {
        sum += factor[row] * (static_cast<std::uint64_t>(lanes[row]) + 1);
    }
    return static_cast<std::uint32_t>((sum ^ sum >> 29) * 0xBF58476D1CE4E5B9u >> 32);
}

}  // namespace osim
