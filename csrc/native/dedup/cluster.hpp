// Clusters of near-duplicates: connected components of verified edges between texts.
//
// Candidates are a function of the texts alone: texts of equal exact hash are one node; in every bucket of equal band
// keys the nodes are put in the order of their exact hashes, and each is compared with the first and with the eight
// before it (so a bucket of up to ten has all its pairs, and one of m costs O(m) comparisons). A pair whose digits
// agree far too seldom (3.5 standard deviations below the threshold's expectation: one true pair in 4,300) is dropped
// unread. An edge needs an exact Jaccard index of at least the threshold. Pairs that are connected already are skipped,
// which cannot change the components. So clusters depend neither on the order of the texts nor on the threads.
// Legend: N texts, B = kBands.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "sketch.hpp"

namespace osim::dedup {

// Texts that can be read again for verification. `read` is called from several threads; `buffer` is the caller's.
class Texts {
  public:
    virtual ~Texts() = default;
    virtual Text read(std::int64_t row, std::vector<std::uint8_t>& buffer) const = 0;
    virtual void prefetch(std::int64_t) const {}  // it may be read soon
};

// Texts that share a band's key with others, key by key: those of one key are rows[borders[i]] .. rows[borders[i + 1]].
struct KeyRuns {
    std::span<const std::uint32_t> rows;
    std::span<const std::int64_t> borders;
};

struct ClusterInput {
    std::int64_t count = 0;  // N, below 2^32 - 1
    const ExactHash* hashes = nullptr;
    const Width* widths = nullptr;
    const Digits* digits = nullptr;
    // Key column [N] of one band, loaded into the buffer or pointing elsewhere; called from several threads.
    std::function<const std::uint32_t*(int band, std::vector<std::uint32_t>& buffer)> band;
    std::function<KeyRuns(int band)> runs;  // in place of the columns, where another device sorted them; or empty
    std::span<const WideKeys> wide;
    const Texts* texts = nullptr;
    const std::int32_t* priorities = nullptr;  // [N] or null; the lowest survives, then the lowest row
    double threshold = 0.8;
    // Called with the bands done so far, by one thread at a time, if it is not empty.
    std::function<void(int bands)> progress;
};

struct ClusterStatistics {
    std::int64_t exact = 0;       // texts whose exact hash an earlier text has
    std::int64_t candidates = 0;  // pairs from buckets that were not all connected, repeats included
    std::int64_t verified = 0;    // exact Jaccard indices computed for them
    std::int64_t accepted = 0;
};

// survivor [N]: the row that each row's cluster keeps (its own for those kept); jaccard [N]: exact index of the row
// and its survivor, 1 for those kept. A chain of edges may leave a removed row below the threshold to its survivor.
ClusterStatistics cluster(const ClusterInput& input, int threads, Simd simd, std::int64_t* survivor, float* jaccard);

}  // namespace osim::dedup
