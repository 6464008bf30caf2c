#include "cluster.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <iterator>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "buckets.hpp"
#include "shingle_set.hpp"
#include "threads.hpp"

namespace osim::dedup {
namespace {

// Union-find that several threads use at once. A root only ever gets a smaller parent, so there are no cycles, and
// the components at the end are those of the edges, in whatever order they came.
class Forest {
  public:
    explicit Forest(std::int64_t count) : parent_(std::make_unique<std::atomic<std::uint32_t>[]>(count)) {
        for (std::int64_t i = 0; i < count; ++i) {
            parent_[i].store(static_cast<std::uint32_t>(i), std::memory_order_relaxed);
        }
    }

    std::uint32_t root(std::uint32_t node) {
        for (;;) {
            std::uint32_t parent = parent_[node].load(std::memory_order_relaxed);
            if (parent == node) {
                return node;
            }
            const std::uint32_t grandparent = parent_[parent].load(std::memory_order_relaxed);
            parent_[node].compare_exchange_weak(parent, grandparent, std::memory_order_relaxed);
            node = grandparent;
        }
    }

    void connect(std::uint32_t a, std::uint32_t b) {
        for (;;) {
            a = root(a);
            b = root(b);
            if (a == b) {
                return;
            }
            std::uint32_t larger = std::max(a, b);
            if (parent_[larger].compare_exchange_strong(larger, std::min(a, b), std::memory_order_relaxed)) {
                return;
            }
        }
    }

  private:
    std::unique_ptr<std::atomic<std::uint32_t>[]> parent_;
};

struct Edge {
    std::uint64_t pair;
    float jaccard;
};

std::uint64_t pair_of(std::uint32_t a, std::uint32_t b) {
    return static_cast<std::uint64_t>(std::min(a, b)) << 32 | std::max(a, b);
}

// Exact Jaccard indices of pairs of texts, read again and shingled; keeps the last few texts' shingles.
class Verifier {
  public:
    Verifier(const Texts& texts, double threshold, Simd simd)
        : texts_(texts), threshold_(threshold), tokeniser_(simd), failed_(kFailed, 0) {}

    // The index, or 0 where it is sure to be below the threshold.
    double jaccard(std::uint32_t a, std::uint32_t b, double threshold) {
        const Shingled& first = shingles(a);
        set_.assign(first.values);
        return set_.jaccard(shingles(b).values, threshold);
    }

    bool similar(std::uint32_t a, std::uint32_t b) {
        // A pair often meets in several bands. Pairs that failed are remembered, those that passed are connected.
        const std::uint64_t pair = pair_of(a, b);
        std::uint64_t& memory = failed_[pair * 0x9E3779B97F4A7C15u >> (64 - kFailedBits)];
        if (memory == pair) {
            return false;
        }
        ++verified;
        const double index = jaccard(a, b, threshold_);
        if (index >= threshold_) {
            accepted.push_back({pair, static_cast<float>(index)});
            return true;
        }
        memory = pair;
        return false;
    }

    std::int64_t verified = 0;
    std::vector<Edge> accepted;

  private:
    static constexpr std::uint32_t kNone = 0xFFFFFFFFu;
    static constexpr int kFailedBits = 14;
    static constexpr std::size_t kFailed = std::size_t{1} << kFailedBits;

    struct Shingled {
        std::uint32_t row = kNone;
        std::uint64_t used = 0;
        std::vector<std::uint32_t> values;
    };

    const Shingled& shingles(std::uint32_t row) {
        Shingled* oldest = recent_.data();
        for (Shingled& entry : recent_) {
            if (entry.row == row) {
                entry.used = ++clock_;
                return entry;
            }
            if (entry.used < oldest->used) {
                oldest = &entry;
            }
        }
        const Text text = texts_.read(row, buffer_);
        tokeniser_.tokens(text);
        const auto fresh = tokeniser_.shingles();
        oldest->row = row;
        oldest->used = ++clock_;
        oldest->values.assign(fresh.begin(), fresh.end());
        tokeniser_.trim();
        return *oldest;
    }

    const Texts& texts_;
    double threshold_;
    Tokeniser tokeniser_;
    ShingleSet set_;
    std::vector<std::uint64_t> failed_;
    std::array<Shingled, 4> recent_;
    std::uint64_t clock_ = 0;
    std::vector<std::uint8_t> buffer_;
};

struct Nodes {
    std::vector<std::uint32_t> of_row;  // [N] the first row of equal exact hash
    std::vector<std::uint32_t> narrow;  // nodes with 16-bit lanes
};

Nodes nodes_of(const ClusterInput& input, Forest& forest, std::int64_t* exact) {
    Nodes nodes;
    auto& node = nodes.of_row;
    node.resize(input.count);
    for (std::int64_t row = 0; row < input.count; ++row) {
        node[row] = static_cast<std::uint32_t>(row);
    }
    std::vector<std::uint32_t> distinct;
    Buckets().each(
        input.count,
        [&](std::int64_t row, std::uint32_t* key, std::uint32_t* id) {
            *key = static_cast<std::uint32_t>(input.hashes[row].low);
            *id = static_cast<std::uint32_t>(row);
            return true;
        },
        [&](std::span<std::uint32_t> rows) {
            distinct.clear();  // 32 bits agree: one hash but for a rare accident
            for (const std::uint32_t row : rows) {
                const auto same = std::find_if(distinct.begin(), distinct.end(), [&](std::uint32_t first) {
                    return input.hashes[first] == input.hashes[row];
                });
                if (same == distinct.end()) {
                    distinct.push_back(row);
                } else {
                    node[row] = *same;
                    forest.connect(*same, row);
                    ++*exact;
                }
            }
        });
    for (std::int64_t row = 0; row < input.count; ++row) {
        if (node[row] == row && has_narrow(input.widths[row])) {
            nodes.narrow.push_back(static_cast<std::uint32_t>(row));
        }
    }
    return nodes;
}

// Finds and verifies the edges of bands [begin, end).
class BandWorker {
  public:
    BandWorker(const ClusterInput& input, const Nodes& nodes, Forest& forest, Simd simd)
        : input_(input), nodes_(nodes), forest_(forest), verifier_(*input.texts, input.threshold, simd) {}

    void narrow_band(int band) {
        if (input_.runs) {
            return sorted_band(input_.runs(band));
        }
        const std::uint32_t* keys = input_.band(band, column_);
        buckets_.each(
            static_cast<std::int64_t>(nodes_.narrow.size()),
            [&](std::int64_t i, std::uint32_t* key, std::uint32_t* id) {
                *id = nodes_.narrow[i];
                *key = keys[*id];
                return true;
            },
            [&](std::span<std::uint32_t> rows) { compare(rows); });
    }

    void wide_band(int band) {
        buckets_.each(
            static_cast<std::int64_t>(input_.wide.size()),
            [&](std::int64_t i, std::uint32_t* key, std::uint32_t* id) {
                *key = input_.wide[i].keys[band];
                *id = static_cast<std::uint32_t>(input_.wide[i].row);
                return nodes_.of_row[*id] == *id;
            },
            [&](std::span<std::uint32_t> rows) { compare(rows); });
    }

    // Hands over what it found since the last call.
    void report(ClusterStatistics& total, std::vector<Edge>& edges) {
        total.candidates += std::exchange(candidates_, 0);
        total.verified += std::exchange(verifier_.verified, 0);
        total.accepted += static_cast<std::int64_t>(verifier_.accepted.size());
        edges.insert(edges.end(), verifier_.accepted.begin(), verifier_.accepted.end());
        verifier_.accepted.clear();
    }

  private:
    void sorted_band(const KeyRuns& runs) {
        for (std::size_t i = 0; i + 1 < runs.borders.size(); ++i) {
            const auto run = runs.rows.subspan(runs.borders[i], runs.borders[i + 1] - runs.borders[i]);
            run_.clear();
            std::ranges::copy_if(run, std::back_inserter(run_),
                                 [&](std::uint32_t row) { return nodes_.of_row[row] == row; });
            if (run_.size() > 1) {
                compare(run_);
            }
        }
    }

    void compare(std::span<std::uint32_t> rows) {
        const std::uint32_t root = forest_.root(rows[0]);
        if (std::ranges::all_of(rows, [&](std::uint32_t row) { return forest_.root(row) == root; })) {
            return;  // connected already: nothing to learn, and large clusters meet in every band
        }
        for (const std::uint32_t row : rows.first(std::min<std::size_t>(rows.size(), kPrefetched))) {
            input_.texts->prefetch(row);
        }
        std::sort(rows.begin(), rows.end(),
                  [&](std::uint32_t a, std::uint32_t b) { return input_.hashes[a] < input_.hashes[b]; });
        for (std::size_t i = 1; i < rows.size(); ++i) {
            edge(rows[0], rows[i]);
            for (std::size_t back = 1; back <= kNeighbours && back < i; ++back) {
                edge(rows[i - back], rows[i]);
            }
        }
    }

    void edge(std::uint32_t a, std::uint32_t b) {
        ++candidates_;
        if (forest_.root(a) != forest_.root(b) && promising(a, b) && verifier_.similar(a, b)) {
            forest_.connect(a, b);
        }
    }

    // Whether the digits leave the pair a chance. Those of 16-bit and of 32-bit lanes say nothing about each other.
    bool promising(std::uint32_t a, std::uint32_t b) const {
        const bool comparable = (input_.widths[a] == Width::kWide) == (input_.widths[b] == Width::kWide);
        return !comparable || equal_digits(input_.digits[a], input_.digits[b]) >= least_equal_;
    }

    static int least_equal(double threshold) {
        const double agree = threshold + (1 - threshold) / 16;
        return static_cast<int>(kLanes * (agree - 3.5 * std::sqrt(agree * (1 - agree) / kLanes)));
    }

    static constexpr std::size_t kNeighbours = 8;
    static constexpr std::size_t kPrefetched = 8;  // most buckets are smaller; the cache holds no more

    const ClusterInput& input_;
    const int least_equal_ = least_equal(input_.threshold);
    const Nodes& nodes_;
    Forest& forest_;
    Verifier verifier_;
    Buckets buckets_;
    std::vector<std::uint32_t> column_;
    std::vector<std::uint32_t> run_;
    std::int64_t candidates_ = 0;
};

void choose_survivors(const ClusterInput& input, Forest& forest, std::int64_t* survivor) {
    constexpr std::uint32_t kNone = 0xFFFFFFFFu;
    std::vector<std::uint32_t> best(input.count, kNone);  // of the component with this root
    for (std::int64_t row = 0; row < input.count; ++row) {
        std::uint32_t& chosen = best[forest.root(static_cast<std::uint32_t>(row))];
        if (chosen == kNone || (input.priorities != nullptr && input.priorities[row] < input.priorities[chosen])) {
            chosen = static_cast<std::uint32_t>(row);
        }
    }
    for (std::int64_t row = 0; row < input.count; ++row) {
        survivor[row] = best[forest.root(static_cast<std::uint32_t>(row))];
    }
}

// Pairs of nodes are compared once, and not again if they are among the verified edges (sorted by pair); rows of equal
// hash share the answer.
void measure(const ClusterInput& input, const std::vector<std::uint32_t>& node, const std::vector<Edge>& edges,
             int threads, Simd simd, const std::int64_t* survivor, float* jaccard) {
    struct Pair {
        std::uint32_t kept;
        std::uint32_t removed;
    };
    std::vector<Pair> pairs;
    for (std::int64_t row = 0; row < input.count; ++row) {
        jaccard[row] = 1.0F;
        const std::uint32_t kept = node[survivor[row]];
        if (node[row] != row || kept == row) {
            continue;
        }
        const std::uint64_t pair = pair_of(kept, static_cast<std::uint32_t>(row));
        const auto known = std::lower_bound(edges.begin(), edges.end(), pair,
                                            [](const Edge& edge, std::uint64_t value) { return edge.pair < value; });
        if (known != edges.end() && known->pair == pair) {
            jaccard[row] = known->jaccard;
        } else {
            pairs.push_back({kept, static_cast<std::uint32_t>(row)});
        }
    }
    std::sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) {
        return a.kept != b.kept ? a.kept < b.kept : a.removed < b.removed;
    });
    for_each_block(static_cast<std::int64_t>(pairs.size()), 256, threads, [&] {
        return [&, verifier = Verifier(*input.texts, 0.0, simd)](std::int64_t begin, std::int64_t end) mutable {
            for (std::int64_t i = begin; i < end; ++i) {
                jaccard[pairs[i].removed] =
                    static_cast<float>(verifier.jaccard(pairs[i].kept, pairs[i].removed, 0.0));
            }
        };
    });
    for (std::int64_t row = 0; row < input.count; ++row) {
        jaccard[row] = node[survivor[row]] == node[row] ? 1.0F : jaccard[node[row]];
    }
}

}  // namespace

ClusterStatistics cluster(const ClusterInput& input, int threads, Simd simd, std::int64_t* survivor,
                          float* jaccard) {
    if (input.count >= 0xFFFFFFFF) {
        throw std::invalid_argument("dedup: " + std::to_string(input.count) + " texts; the limit is 2^32 - 2");
    }
    Forest forest(input.count);
    ClusterStatistics total;
    const Nodes nodes = nodes_of(input, forest, &total.exact);
    std::vector<Edge> edges;
    std::mutex lock;
    int bands_done = 0;
    for_each_block(kBands, 1, threads, [&] {
        return [&, worker = BandWorker(input, nodes, forest, simd)](std::int64_t begin, std::int64_t) mutable {
            worker.narrow_band(static_cast<int>(begin));
            worker.wide_band(static_cast<int>(begin));
            const std::scoped_lock hold(lock);
            worker.report(total, edges);
            ++bands_done;
            if (input.progress) {
                input.progress(bands_done);
            }
        };
    });
    choose_survivors(input, forest, survivor);
    std::sort(edges.begin(), edges.end(), [](const Edge& a, const Edge& b) { return a.pair < b.pair; });
    measure(input, nodes.of_row, edges, threads, simd, survivor, jaccard);
    return total;
}

}  // namespace osim::dedup
