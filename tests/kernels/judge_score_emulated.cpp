// The device text of judge scoring on the CPU, by emulated blocks whose threads, warps and turns stand in random order.
//     judge_score_emulated IN OUT SEED OMITTED
// leaves out the barrier behind phase OMITTED: logits 0, scores 1, rewards 2, passes over the groups 3 to 5; -1 for none.
// IN holds arrays, each behind its bytes as int64, in the order that `main` takes them; OUT gets the results likewise.
// Built and run by test_judge_score_cuda.py, with the sanitizers: every array is an allocation of its own, with the exact
// size, and results start as 0xFF, which is NaN.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "judge_score.hpp"

namespace {

// Threads run a phase in random order, a warp's part of `reduce` at its first thread's turn. A phase whose barrier is
// left out waits until the next one is known; then each thread runs the two without waiting for the others.
class ShuffledBlock {
public:
    static constexpr int kThreads = osim::kJudgeThreads;

    ShuffledBlock(int index, int first_phase, int omitted, std::mt19937* random)
        : index_(index), phase_(first_phase), omitted_(omitted), random_(random) {}
    ~ShuffledBlock() {
        if (pending_) {
            run([](int) {});
        }
    }
    int index() const { return index_; }

    template <class F>
    void each(F phase) {
        if (phase_++ == omitted_) {
            pending_ = phase;
        } else {
            run(phase);
        }
    }

    template <int Count, class Add, class Combine, class Take>
    void reduce(int tasks, Add add, Combine combine, Take take) {
        each([=](int thread) {
            for (int task = thread / kLanes; thread % kLanes == 0 && task < tasks; task += kThreads / kLanes) {
                std::vector<float> values(kLanes * Count, 0.0f);
                for (int lane = 0; lane < kLanes; ++lane) {
                    add(task, lane, values.data() + lane * Count);
                }
                for (int reach = kLanes / 2; reach > 0; reach /= 2) {
                    const std::vector<float> before = values;
                    for (int at = 0; at < kLanes * Count; ++at) {
                        values[at] = combine(before[at], before[(at / Count ^ reach) * Count + at % Count], at % Count);
                    }
                }
                take(task, static_cast<const float*>(values.data()));
            }
        });
    }

private:
    static constexpr int kLanes = osim::kWarpLanes;

    template <class F>
    void run(F phase) {
        int order[kThreads];
        std::iota(order, order + kThreads, 0);
        std::shuffle(order, order + kThreads, *random_);
        for (const int thread : order) {
            if (pending_) {
                pending_(thread);
            }
            phase(thread);
        }
        pending_ = nullptr;
    }

    int index_;
    int phase_;
    int omitted_;
    std::mt19937* random_;
    std::function<void(int)> pending_;
};

struct Buffer {
    std::unique_ptr<char[]> bytes;
    std::int64_t size = 0;

    // Null for an empty one.
    template <class T>
    T* as() const {
        return size == 0 ? nullptr : reinterpret_cast<T*>(bytes.get());
    }
};

Buffer read(std::ifstream& in) {
    Buffer buffer;
    in.read(reinterpret_cast<char*>(&buffer.size), sizeof buffer.size);
    buffer.bytes.reset(new char[buffer.size]);
    in.read(buffer.bytes.get(), buffer.size);
    if (!in) {
        std::fprintf(stderr, "IN ends early\n");
        std::exit(2);
    }
    return buffer;
}

Buffer poisoned(std::int64_t size) {
    Buffer buffer{std::unique_ptr<char[]>(new char[size]), size};
    std::fill_n(buffer.bytes.get(), size, '\xFF');
    return buffer;
}

void write(std::ofstream& out, const Buffer& buffer) {
    out.write(reinterpret_cast<const char*>(&buffer.size), sizeof buffer.size);
    out.write(buffer.bytes.get(), buffer.size);
}

// work(block) for every block of a grid, whose phases count from `first_phase`.
template <class Work>
void over_blocks(std::int32_t items, int each, int first_phase, int omitted, std::mt19937* random, Work work) {
    std::vector<int> blocks((items + each - 1) / each);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), *random);
    for (const int index : blocks) {
        ShuffledBlock block(index, first_phase, omitted, random);
        work(block);
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 5) {
        std::fprintf(stderr, "usage: judge_score_emulated IN OUT SEED OMITTED\n");
        return 2;
    }
    std::ifstream in(arguments[1], std::ios::binary);
    std::mt19937 random(static_cast<unsigned>(std::atoi(arguments[3])));
    const int omitted = std::atoi(arguments[4]);
    enum { kElement, kItems, kContexts, kEdges, kDimensions, kLabels, kMostLabels, kVariants, kHidden, kTiles,
           kVocabStart, kVocabRows, kKind, kSizes };
    const Buffer sizes_read = read(in), floats_read = read(in), hidden = read(in), head = read(in);
    const Buffer tokens = read(in), tiles = read(in), context = read(in), anchor = read(in), parent = read(in);
    const Buffer leaf = read(in), labels = read(in), value = read(in), bias = read(in), temperature = read(in);
    const Buffer worst = read(in), best = read(in), weight = read(in);
    const Buffer anchors = read(in), missing = read(in), multiplier = read(in), group = read(in);
    if (sizes_read.size != kSizes * 4 || floats_read.size != 8) {
        std::fprintf(stderr, "IN has other sizes\n");
        return 2;
    }
    const auto* const n = sizes_read.as<std::int32_t>();
    const float min_mass = floats_read.as<float>()[0];
    const float epsilon = floats_read.as<float>()[1];
    const std::int64_t items = n[kItems];

    const Buffer logits = poisoned(4 * items * n[kEdges]);
    const Buffer reason = poisoned(4 * items * n[kDimensions]), figures = poisoned(20 * items * n[kDimensions]);
    const Buffer logprob = poisoned(4 * items * n[kLabels]), rewards = poisoned(8 * items);
    const osim::JudgeTables tables{
        context.as<std::int32_t>(), anchor.as<std::int32_t>(), parent.as<std::int32_t>(), leaf.as<std::int32_t>(),
        labels.as<std::int32_t>(),  value.as<float>(),         bias.as<float>(),          temperature.as<float>(),
        worst.as<float>(),          best.as<float>(),          weight.as<float>(),        n[kContexts],
        n[kEdges],                  n[kDimensions],            n[kLabels],                n[kMostLabels],
        n[kVariants]};
    const osim::JudgeScores scores{tables, logits.as<float>(), anchors.as<float>(), missing.as<std::uint8_t>(),
                                   multiplier.as<float>(), min_mass, n[kItems], reason.as<std::int32_t>(),
                                   figures.as<float>(), logprob.as<float>(), rewards.as<float>()};
    const auto with_elements = [&](auto element) {
        using Element = decltype(element);
        const osim::LabelLogits<Element> queries{
            hidden.as<Element>(),       head.as<Element>(), tokens.as<std::int64_t>(), tiles.as<osim::EdgeTile>(),
            logits.as<float>(),         n[kHidden],         n[kVocabStart],            n[kVocabRows],
            n[kItems],                  n[kContexts],       n[kEdges],                 n[kHidden],
            n[kTiles]};
        over_blocks(n[kItems], osim::kTileItems, 0, omitted, &random, [&](ShuffledBlock& block) {
            osim::label_logits(block, queries);
            osim::judge_items(block, scores);
        });
    };
    switch (n[kElement]) {
        case 0: with_elements(float{}); break;
        case 1: with_elements(osim::Bfloat16{}); break;
        default: with_elements(osim::Float16{}); break;
    }

    const Buffer found = poisoned(12 * items), size = poisoned(4 * items);
    const osim::GroupAdvantages groups{rewards.as<float>() + items, group.as<std::int64_t>(), n[kItems], n[kKind],
                                       epsilon, found.as<float>(), size.as<std::int32_t>()};
    std::vector<osim::GroupScratch> shared(n[kItems]);  // a block's outlives it, for a phase that waited to its end
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::fill_n(reinterpret_cast<float*>(shared.data()), shared.size() * sizeof(osim::GroupScratch) / 4, nan);
    over_blocks(n[kItems], osim::kJudgeWarps, 3, omitted, &random, [&](ShuffledBlock& block) {
        osim::group_advantages(block, &shared[block.index()], groups);
    });

    std::ofstream out(arguments[2], std::ios::binary);
    for (const Buffer* buffer : {&logits, &reason, &figures, &logprob, &rewards, &found, &size}) {
        write(out, *buffer);
    }
    return out.good() ? 0 : 2;
}
