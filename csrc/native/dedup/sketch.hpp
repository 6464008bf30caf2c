// From a text to its row of the signature columns: exact hash, MinHash lanes, band keys.
// Legend: N texts, K = kLanes, B = kBands.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "minhash.hpp"
#include "tokens.hpp"

namespace osim::dedup {

// Which lanes a text has. Texts of fewer than five tokens have none: they are duplicates if their hashes are equal.
enum class Width : std::uint8_t { kNone = 0, kNarrow = 1, kBoth = 2, kWide = 3 };

constexpr bool has_narrow(Width width) { return width == Width::kNarrow || width == Width::kBoth; }
constexpr bool has_wide(Width width) { return width == Width::kBoth || width == Width::kWide; }

// Band keys of 32-bit lanes; few texts are long enough to have them.
struct WideKeys {
    std::int64_t row;
    std::array<std::uint32_t, kBands> keys;
};

// Columns to fill, one row a text. `signatures` may be null. Lanes of kWide texts are the low halves of 32-bit lanes.
struct SketchColumns {
    ExactHash* hashes;            // [N]
    Width* widths;                // [N]
    std::uint32_t* keys;          // [B, N] band-major
    Digits* digits;               // [N]
    std::uint16_t* signatures;    // [N, K] or null
    std::vector<WideKeys>* wide;  // appended, ascending rows
};

// MinHash of `count` >= 1 shingles.
void minhash16(const std::uint32_t* shingles, std::size_t count, Simd simd, std::uint16_t* lanes);
void minhash32(const std::uint32_t* shingles, std::size_t count, Simd simd, std::uint32_t* lanes);

// Sketches texts 0 .. count - 1; `text(i)` is called from several threads at once.
void sketch(const std::function<Text(std::int64_t)>& text, std::int64_t count, double threshold, int threads,
            Simd simd, const SketchColumns& columns);

}  // namespace osim::dedup
