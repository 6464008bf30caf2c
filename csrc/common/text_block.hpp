// Which of 16 neighbouring bytes of a text belong to its tokens, and their lower case: what one GPU thread takes at a
// time. ASCII is done four bytes in a 32-bit word; code points past it one by one, through text.hpp.
//
// A lead byte never lies inside another valid sequence, so a code point is valid or not by its own bytes alone. Each
// block therefore judges the code points that touch it without knowing what the blocks before it found.
#pragma once

#include <cstdint>

#include "text.hpp"

namespace osim {

constexpr int kBlockBytes = 16;

OSIM_HD inline int count_bits(std::uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __popc(bits);
#else
    return __builtin_popcount(bits);
#endif
}

// Which bit is the lowest of those set; requires one.
OSIM_HD inline int lowest_bit(std::uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __ffs(bits) - 1;
#else
    return __builtin_ctz(bits);
#endif
}

struct alignas(16) ByteBlock {
    std::uint32_t words[kBlockBytes / 4];
};

// One bit a byte.
struct ByteClasses {
    std::uint32_t word;    // part of a token
    std::uint32_t single;  // part of a code point that is a token by itself
    std::uint32_t lead;    // the first byte of such a code point
};

namespace block {

constexpr std::uint32_t kHighBits = 0x80808080u;
constexpr std::uint32_t kEveryByte = 0x01010101u;

// The high bit of each byte between `low` and `high`; all bytes are below 0x80.
OSIM_HD constexpr std::uint32_t bytes_between(std::uint32_t bytes, std::uint32_t low, std::uint32_t high) {
    return (bytes + (0x80 - low) * kEveryByte) & ~(bytes + (0x7F - high) * kEveryByte) & kHighBits;
}

// The four high bits of a word as bits 0 to 3.
OSIM_HD constexpr std::uint32_t gather(std::uint32_t high_bits) { return high_bits * 0x00204081u >> 28; }

// The lowest `count` of 16 bits.
OSIM_HD constexpr std::uint32_t first_bits(std::int64_t count) {
    return count >= kBlockBytes ? 0xFFFF : count <= 0 ? 0 : (1u << count) - 1;
}

// Adds the code point past ASCII that begins at text[at + offset], -3 <= offset < 16, where it touches the block.
OSIM_HD inline void add_code_point(const std::uint8_t* text, std::int64_t at, std::int64_t length, int offset,
                                   std::uint8_t* lowered, ByteClasses& classes) {
    const CodePoint point = decode_utf8(text, static_cast<std::uint64_t>(at + offset), length);
    if (point.bytes == 1 || kind_of(point.value) == Kind::kSeparator) {  // of one byte: ASCII or malformed
        return;
    }
    const std::uint32_t bits = ((1u << point.bytes) - 1) << (offset + 3) >> 3 & 0xFFFF;
    classes.word |= bits;
    if (kind_of(point.value) == Kind::kSingle) {
        classes.single |= bits;
        classes.lead |= offset >= 0 ? 1u << offset : 0;
    }
    std::uint32_t encoded = utf8_bytes(lower_case(point.value), point.bytes);
    for (int to = offset; to < offset + static_cast<int>(point.bytes); ++to, encoded >>= 8) {
        if (to >= 0 && to < kBlockBytes) {
            lowered[to] = static_cast<std::uint8_t>(encoded);
        }
    }
}

}  // namespace block

// Classes of the bytes text[at, at + 16), which `raw` holds; those outside of [0, length) have none. Writes them in
// lower case to `lowered`, which is 16-byte aligned; bytes of no token come out as anything.
OSIM_HD inline ByteClasses classify_block(const ByteBlock& raw, const std::uint8_t* text, std::int64_t at,
                                          std::int64_t length, std::uint8_t* lowered) {
    using namespace block;
    ByteClasses classes{0, 0, 0};
    std::uint32_t high = 0;   // past ASCII
    std::uint32_t leads = 0;  // of those, what may begin a code point
    ByteBlock lower;
    for (int i = 0; i < kBlockBytes / 4; ++i) {
        const std::uint32_t bytes = raw.words[i];
        const std::uint32_t ascii = bytes & ~kHighBits;
        const std::uint32_t letters = bytes_between(ascii | 0x20 * kEveryByte, 'a', 'z') & ~bytes;
        const std::uint32_t others = (bytes_between(ascii, '0', '9') | bytes_between(ascii, '_', '_')) & ~bytes;
        lower.words[i] = bytes | letters >> 2;  // 0x80 becomes 0x20
        classes.word |= gather(letters | others) << (4 * i);
        high |= gather(bytes & kHighBits) << (4 * i);
        leads |= gather(bytes & bytes << 1 & kHighBits) << (4 * i);
    }
    const std::uint32_t inside = first_bits(length - at) & ~first_bits(-at);
    classes.word &= inside;
    high &= inside;
    leads &= inside;
    *reinterpret_cast<ByteBlock*>(lowered) = lower;
    if ((high & ~leads & 1) != 0) {  // perhaps the end of a code point that began before
        int offset = -1;
        while (offset > -3 && at + offset > 0 && (text[at + offset] & 0xC0) == 0x80) {
            --offset;
        }
        if (at + offset >= 0) {
            add_code_point(text, at, length, offset, lowered, classes);
        }
    }
    for (; leads != 0; leads &= leads - 1) {
        add_code_point(text, at, length, lowest_bit(leads), lowered, classes);
    }
    return classes;
}

}  // namespace osim
