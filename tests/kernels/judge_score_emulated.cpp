// The device text of judge scoring on the CPU, by emulated blocks whose threads, warps and turns stand in random order.
//     judge_score_emulated IN OUT SEED
// IN holds arrays, each behind its bytes as int64, in the order that `main` takes them; OUT gets the results likewise.
// Built and run by test_judge_score_cuda.py, with the sanitizers: every array is an allocation of its own, with the exact
// size, and results start as 0xFF, which is NaN.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "judge_score.hpp"

namespace {

class ShuffledBlock {
public:
    static constexpr int kThreads = osim::kJudgeThreads;

    ShuffledBlock(int index, std::mt19937* random) : index_(index), random_(random) {}
    int index() const { return index_; }

    template <class F>
    void each(F phase) {
        for (const int thread : order(kThreads)) {
            phase(thread);
        }
    }

    template <int Count, class Add, class Combine, class Take>
    void reduce(int tasks, Add add, Combine combine, Take take) {
        constexpr int kLanes = osim::kWarpLanes;
        for (const int task : order(tasks)) {
            std::vector<float> values(kLanes * Count, 0.0f);
            for (const int lane : order(kLanes)) {
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
    }

private:
    std::vector<int> order(int count) {
        std::vector<int> numbers(count);
        std::iota(numbers.begin(), numbers.end(), 0);
        std::shuffle(numbers.begin(), numbers.end(), *random_);
        return numbers;
    }

    int index_;
    std::mt19937* random_;
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

template <class Work>
void over_blocks(std::int32_t items, int each, std::mt19937* random, Work work) {
    std::vector<int> blocks((items + each - 1) / each);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), *random);
    for (const int index : blocks) {
        ShuffledBlock block(index, random);
        work(block);
    }
}

template <class Element>
void label_logits(osim::LabelLogits<Element> job, const Buffer& hidden, const Buffer& head, std::mt19937* random) {
    job.hidden = hidden.as<Element>();
    job.head = head.as<Element>();
    over_blocks(job.items, osim::kTileItems, random, [&](ShuffledBlock& block) { osim::label_logits(block, job); });
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) {
        std::fprintf(stderr, "usage: judge_score_emulated IN OUT SEED\n");
        return 2;
    }
    std::ifstream in(arguments[1], std::ios::binary);
    std::mt19937 random(static_cast<unsigned>(std::atoi(arguments[3])));
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
    const auto with_elements = [&](auto element) {
        using Element = decltype(element);
        label_logits(osim::LabelLogits<Element>{nullptr, nullptr, tokens.as<std::int64_t>(),
                                                tiles.as<osim::EdgeTile>(), logits.as<float>(), n[kHidden],
                                                n[kVocabStart], n[kVocabRows], n[kItems], n[kContexts], n[kEdges],
                                                n[kHidden], n[kTiles]},
                     hidden, head, &random);
    };
    switch (n[kElement]) {
        case 0: with_elements(float{}); break;
        case 1: with_elements(osim::Bfloat16{}); break;
        default: with_elements(osim::Float16{}); break;
    }

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
    over_blocks(n[kItems], osim::kTileItems, &random, [&](ShuffledBlock& block) { osim::judge_items(block, scores); });

    const Buffer found = poisoned(12 * items), size = poisoned(4 * items);
    const osim::GroupAdvantages groups{rewards.as<float>() + items, group.as<std::int64_t>(), n[kItems], n[kKind],
                                       epsilon, found.as<float>(), size.as<std::int32_t>()};
    over_blocks(n[kItems], osim::kJudgeWarps, &random, [&](ShuffledBlock& block) {
        const auto shared = std::make_unique<osim::GroupScratch>();
        osim::group_advantages(block, shared.get(), groups);
    });

    std::ofstream out(arguments[2], std::ios::binary);
    for (const Buffer* buffer : {&logits, &reason, &figures, &logprob, &rewards, &found, &size}) {
        write(out, *buffer);
    }
    return out.good() ? 0 : 2;
}
