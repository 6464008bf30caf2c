#include "sketch.hpp"

#include <algorithm>
#include <cstring>
#include <mutex>

#include "shingle_set.hpp"
#include "threads.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace osim::dedup {
namespace {

constexpr std::int64_t kBlockRows = 256;

template <typename Lane, typename Function>
void minhash_scalar(const std::uint32_t* shingles, std::size_t count, Function lane_of, Lane* lanes) {
    std::fill_n(lanes, kLanes, static_cast<Lane>(~Lane{0}));
    for (std::size_t i = 0; i < count; ++i) {
        for (int k = 0; k < kLanes; ++k) {
            lanes[k] = std::min(lanes[k], lane_of(shingles[i], k));
        }
    }
}

#if defined(__x86_64__)

// One pass over the shingles for all 128 lanes: eight accumulators of 16 lanes, and four shingles at a time so that
// a lane's constants are loaded once for four. The last group repeats its final shingle, which a minimum ignores.
__attribute__((target("avx2"))) void minhash16_avx2(const std::uint32_t* shingles, std::size_t count,
                                                    std::uint16_t* lanes) {
    constexpr int kVectors = kLanes / 16;
    __m256i least[kVectors];
    for (auto& vector : least) {
        vector = _mm256_set1_epi16(-1);
    }
    for (std::size_t i = 0; i < count; i += 4) {
        __m256i x[4];
        for (std::size_t j = 0; j < 4; ++j) {
            x[j] = _mm256_set1_epi16(static_cast<short>(shingles[std::min(i + j, count - 1)]));
        }
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
            const __m256i flip = _mm256_load_si256(reinterpret_cast<const __m256i*>(kLaneTable.flip16) + v);
            const __m256i multiply = _mm256_load_si256(reinterpret_cast<const __m256i*>(kLaneTable.multiply16) + v);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                least[v] = _mm256_min_epu16(least[v], _mm256_mullo_epi16(_mm256_xor_si256(x[j], flip), multiply));
            }
        }
    }
    std::memcpy(lanes, least, sizeof least);
}

__attribute__((target("avx2"))) void minhash32_avx2(const std::uint32_t* shingles, std::size_t count,
                                                    std::uint32_t* lanes) {
    constexpr int kVectors = 8;  // a half of the lanes at a time: sixteen accumulators would not fit
    for (int half = 0; half < kLanes; half += kVectors * 8) {
        __m256i least[kVectors];
        for (auto& vector : least) {
            vector = _mm256_set1_epi32(-1);
        }
        const auto* flips = reinterpret_cast<const __m256i*>(kLaneTable.flip + half);
        const auto* multipliers = reinterpret_cast<const __m256i*>(kLaneTable.multiply + half);
        for (std::size_t i = 0; i < count; ++i) {
            const __m256i x = _mm256_set1_epi32(static_cast<int>(shingles[i]));
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) {
                const __m256i hashed =
                    _mm256_mullo_epi32(_mm256_xor_si256(x, _mm256_load_si256(flips + v)),
                                       _mm256_load_si256(multipliers + v));
                least[v] = _mm256_min_epu32(least[v], hashed);
            }
        }
        std::memcpy(lanes + half, least, sizeof least);
    }
}

#endif

class Sketcher {
  public:
    Sketcher(double threshold, Simd simd) : tokeniser_(simd), threshold_(threshold), simd_(simd) {}

    // `keys` takes the text's band keys, kBlockRows apart.
    void sketch(Text text, std::int64_t row, const SketchColumns& columns, std::uint32_t* keys,
                std::vector<WideKeys>& wide) {
        tokeniser_.tokens(text);
        columns.hashes[row] = tokeniser_.exact_hash(text);
        const auto shingles = tokeniser_.shingles();
        const Width width = width_of(shingles);
        columns.widths[row] = width;
        std::uint16_t lanes[kLanes] = {};
        if (has_narrow(width)) {
            minhash16(shingles.data(), shingles.size(), simd_, lanes);
        }
        for (int band = 0; band < kBands; ++band) {
            keys[band * kBlockRows] = has_narrow(width) ? band_key(lanes + band * kRows) : 0;
        }
        if (has_wide(width)) {
            std::uint32_t wide_lanes[kLanes];
            minhash32(shingles.data(), shingles.size(), simd_, wide_lanes);
            wide.push_back({row, {}});
            for (int band = 0; band < kBands; ++band) {
                wide.back().keys[band] = band_key(wide_lanes + band * kRows);
            }
            if (width == Width::kWide) {
                std::transform(wide_lanes, wide_lanes + kLanes, lanes,
                               [](std::uint32_t lane) { return static_cast<std::uint16_t>(lane); });
            }
        }
        columns.digits[row] = digits_of(lanes);
        if (columns.signatures != nullptr) {
            std::memcpy(columns.signatures + row * kLanes, lanes, sizeof lanes);
        }
        tokeniser_.trim();
    }

  private:
    // Sizes count distinct shingles, which only texts that may be long enough have to find out.
    Width width_of(std::span<const std::uint32_t> shingles) {
        if (shingles.empty()) {
            return Width::kNone;
        }
        if (!needs_wide(static_cast<std::uint32_t>(shingles.size()), threshold_)) {
            return Width::kNarrow;
        }
        const auto distinct = static_cast<std::uint32_t>(set_.assign(shingles));
        if (!needs_wide(distinct, threshold_)) {
            return Width::kNarrow;
        }
        return needs_narrow(distinct) ? Width::kBoth : Width::kWide;
    }

    Tokeniser tokeniser_;
    ShingleSet set_;
    double threshold_;
    Simd simd_;
};

}  // namespace

void minhash16(const std::uint32_t* shingles, std::size_t count, [[maybe_unused]] Simd simd,
               std::uint16_t* lanes) {
#if defined(__x86_64__)
    if (simd == Simd::kAvx2) {
        return minhash16_avx2(shingles, count, lanes);
    }
#endif
    const auto lane = [](std::uint32_t shingle, int k) {
        return lane16(shingle, kLaneTable.flip16[k], kLaneTable.multiply16[k]);
    };
    minhash_scalar(shingles, count, lane, lanes);
}

void minhash32(const std::uint32_t* shingles, std::size_t count, [[maybe_unused]] Simd simd,
               std::uint32_t* lanes) {
#if defined(__x86_64__)
    if (simd == Simd::kAvx2) {
        return minhash32_avx2(shingles, count, lanes);
    }
#endif
    const auto lane = [](std::uint32_t shingle, int k) {
        return lane32(shingle, kLaneTable.flip[k], kLaneTable.multiply[k]);
    };
    minhash_scalar(shingles, count, lane, lanes);
}

void sketch(const std::function<Text(std::int64_t)>& text, std::int64_t count, double threshold, int threads,
            Simd simd, const SketchColumns& columns) {
    std::mutex lock;
    const std::size_t wide_before = columns.wide->size();
    for_each_block(count, kBlockRows, threads, [&] {
        return [&, sketcher = Sketcher(threshold, simd)](std::int64_t begin, std::int64_t end) mutable {
            std::vector<WideKeys> wide;
            std::uint32_t keys[kBands * kBlockRows];  // 21 columns far apart: written a block at a time
            for (std::int64_t row = begin; row < end; ++row) {
                sketcher.sketch(text(row), row, columns, keys + (row - begin), wide);
            }
            for (int band = 0; band < kBands; ++band) {
                std::copy_n(keys + band * kBlockRows, end - begin, columns.keys + band * count + begin);
            }
            if (!wide.empty()) {
                const std::scoped_lock hold(lock);
                columns.wide->insert(columns.wide->end(), wide.begin(), wide.end());
            }
        };
    });
    std::sort(columns.wide->begin() + static_cast<std::ptrdiff_t>(wide_before), columns.wide->end(),
              [](const WideKeys& a, const WideKeys& b) { return a.row < b.row; });
}

}  // namespace osim::dedup
