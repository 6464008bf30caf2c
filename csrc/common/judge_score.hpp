// Judge scoring behind the label logits: calibrated labels, scores, what is missing, rewards, advantages within groups.
// kernels/judge_score/README.md has the definition. The same text is a GPU thread block's work (csrc/cuda/judge_score)
// and, by an emulated block, the tests' on the CPU.
//
// Beside `index` and `each` (block.hpp) a Block policy offers
//     template <int Count, ...> void reduce(int tasks, Add add, Combine combine, Take take)
//         // for every task a warp: all lanes add(task, lane, values[Count]), which start at 0; the lanes' values are
//         // combined as combine(a, b, which) in a butterfly; take(task, values) once; then a barrier
//
// Legend: I items, J dimensions, S contexts, E edges, L labels of all dimensions, N of the largest, R variants of a label.
#pragma once

#include <cmath>
#include <cstdint>

#include "block.hpp"
#include "judge_logits.hpp"

namespace osim {

constexpr int kJudgeThreads = 256;
constexpr int kJudgeWarps = kJudgeThreads / kWarpLanes;

enum Reason : std::int32_t { kPresent, kGiven, kNonFinite, kLowMass };  // kernels/judge_score/scores.py

struct JudgeTables {  // kernels/judge_score/tables.py
    const std::int32_t* context;    // [E]
    const std::int32_t* anchor;     // [E]
    const std::int32_t* parent;     // [E]
    const std::int32_t* leaf;       // [L, R]
    const std::int32_t* labels;     // [J, N]
    const float* value;             // [L]
    const float* bias;              // [L]
    const float* temperature;       // [J]
    const float* worst;             // [J]
    const float* best;              // [J]
    const float* weight;            // [J]
    std::int32_t contexts;
    std::int32_t edges;
    std::int32_t dimensions;
    std::int32_t label_count;
    std::int32_t most_labels;
    std::int32_t variants;
};

struct JudgeScores {
    JudgeTables tables;
    const float* logits;         // [I, E]
    const float* anchors;        // [I, S], or null: no masses
    const std::uint8_t* missing; // [I, J], or null
    const float* multiplier;     // [I], or null
    float min_mass;              // below 0: no threshold
    std::int32_t items;
    std::int32_t* reason;        // [I, J]
    float* figures;              // [5, I, J]: score, normalised, entropy, margin, mass
    float* logprob;              // [I, L]
    float* rewards;              // [2, I]: raw, times the multiplier
};

OSIM_DEVICE inline bool is_finite(float x) { return std::fabs(x) < INFINITY; }

// log P(label) over the whole vocabulary; without anchors, up to a constant of its row.
OSIM_DEVICE inline float log_mass(const JudgeScores& job, std::int64_t item, std::int32_t label) {
    const JudgeTables& tables = job.tables;
    const float* const logits = job.logits + item * tables.edges;
    float highest = -INFINITY;
    float sum = 0.0f;
    for (std::int32_t variant = 0; variant < tables.variants; ++variant) {
        std::int32_t edge = tables.leaf[label * tables.variants + variant];
        if (edge < 0) {
            break;
        }
        float path = 0.0f;
        for (; edge >= 0; edge = tables.parent[edge]) {
            path += logits[edge];
            if (job.anchors != nullptr) {
                path += job.anchors[item * tables.contexts + tables.context[edge]] - logits[tables.anchor[edge]];
            }
        }
        const float after = path > highest ? path : highest;
        const float shift = after == -INFINITY ? 0.0f : after;
        sum = sum * std::exp(highest - shift) + std::exp(path - shift);  // carries a NaN, which `after` may not
        highest = after;
    }
    return highest + std::log(sum);
}

// One item on one dimension.
OSIM_DEVICE inline void judge(const JudgeScores& job, std::int64_t item, std::int32_t dimension) {
    const JudgeTables& tables = job.tables;
    const std::int32_t* const labels = tables.labels + dimension * tables.most_labels;
    float* const logprob = job.logprob + item * tables.label_count;
    const auto is_label = [=](std::int32_t place) { return place < tables.most_labels && labels[place] >= 0; };
    const float temperature = tables.temperature[dimension];

    bool finite = true;
    float mass = 0.0f;
    float highest = -INFINITY;
    for (std::int32_t place = 0; is_label(place); ++place) {
        const float log_m = log_mass(job, item, labels[place]);
        const float calibrated = log_m / temperature + tables.bias[labels[place]];
        finite = finite && is_finite(log_m);
        mass += std::exp(log_m);
        highest = calibrated > highest ? calibrated : highest;
        logprob[labels[place]] = calibrated;
    }
    float sum = 0.0f;
    for (std::int32_t place = 0; is_label(place); ++place) {
        sum += std::exp(logprob[labels[place]] - highest);
    }
    const float log_sum = std::log(sum);

    const std::int64_t at = item * tables.dimensions + dimension;
    const bool has_mass = job.anchors != nullptr;
    std::int32_t reason = has_mass && mass < job.min_mass ? kLowMass : kPresent;
    reason = finite ? reason : kNonFinite;
    reason = job.missing != nullptr && job.missing[at] != 0 ? kGiven : reason;
    const bool present = reason == kPresent;

    float score = 0.0f;
    float entropy = 0.0f;
    float first = 0.0f;
    float second = 0.0f;
    for (std::int32_t place = 0; is_label(place); ++place) {
        const float own = logprob[labels[place]] - highest - log_sum;
        const float probability = std::exp(own);
        score += probability * tables.value[labels[place]];
        entropy -= probability * own;
        second = probability > first ? first : (probability > second ? probability : second);
        first = probability > first ? probability : first;
        logprob[labels[place]] = present ? own : NAN;
    }
    const float worst = tables.worst[dimension];
    const std::int64_t plane = static_cast<std::int64_t>(job.items) * tables.dimensions;
    float* const figures = job.figures + at;
    job.reason[at] = reason;
    figures[0] = present ? score : NAN;
    figures[plane] = present ? (score - worst) / (tables.best[dimension] - worst) : NAN;
    figures[2 * plane] = present ? entropy : NAN;
    figures[3 * plane] = present ? first - second : NAN;
    figures[4 * plane] = has_mass && (present || reason == kLowMass) ? mass : NAN;
}

OSIM_DEVICE inline void reward(const JudgeScores& job, std::int64_t item) {
    const JudgeTables& tables = job.tables;
    const std::int64_t plane = static_cast<std::int64_t>(job.items) * tables.dimensions;
    float total = 0.0f;
    float weights = 0.0f;
    for (std::int32_t dimension = 0; dimension < tables.dimensions; ++dimension) {
        const std::int64_t at = item * tables.dimensions + dimension;
        if (job.reason[at] == kPresent) {
            total += tables.weight[dimension] * job.figures[plane + at];
            weights += tables.weight[dimension];
        }
    }
    const float raw = weights > 0.0f ? total / weights : NAN;
    const float multiplier = job.multiplier != nullptr ? job.multiplier[item] : 1.0f;
    job.rewards[item] = raw;
    job.rewards[job.items + item] = is_finite(multiplier) ? raw * multiplier : NAN;
}

// Scores and rewards of the block's kTileItems items, from their logits.
template <class Block>
OSIM_DEVICE void judge_items(Block& block, const JudgeScores& job) {
    const std::int32_t first = block.index() * kTileItems;
    const std::int32_t count = smaller(kTileItems, job.items - first);
    block.each([=](int thread) {
        for (std::int32_t pair = thread; pair < count * job.tables.dimensions; pair += Block::kThreads) {
            judge(job, first + pair / job.tables.dimensions, pair % job.tables.dimensions);
        }
    });
    block.each([=](int thread) {
        if (thread < count) {
            reward(job, first + thread);
        }
    });
}

enum AdvantageKind : std::int32_t { kGrpo, kDrGrpo, kRloo };

struct GroupAdvantages {
    const float* reward;         // [I]; missing where not finite
    const std::int64_t* group;   // [I]
    std::int32_t items;
    std::int32_t kind;
    float epsilon;
    float* found;                // [3, I]: advantage, mean, std
    std::int32_t* size;          // [I]
};

// Of the items that a block's warps compare with all others.
struct GroupScratch {
    float size[kJudgeWarps];
    float least[kJudgeWarps];
    float mean_above[kJudgeWarps];
};

// The block's kJudgeWarps items, a warp each. Sums are of rewards above the group's least: where all are equal, each is
// exactly 0.
template <class Block>
OSIM_DEVICE void group_advantages(Block& block, GroupScratch* shared, const GroupAdvantages& job) {
    const std::int32_t first = block.index() * kJudgeWarps;
    const std::int32_t count = smaller(kJudgeWarps, job.items - first);
    // visit(reward) for this lane's share of the present rewards of the item's group
    const auto over_group = [=](int task, int lane, auto visit) {
        const std::int64_t group = job.group[first + task];
        for (std::int32_t other = lane; other < job.items; other += kWarpLanes) {
            if (job.group[other] == group && is_finite(job.reward[other])) {
                visit(job.reward[other]);
            }
        }
    };
    const auto plus = [](float a, float b, int) { return a + b; };
    block.template reduce<2>(
        count,
        [=](int task, int lane, float* values) {
            values[1] = INFINITY;
            over_group(task, lane, [=](float one) {
                values[0] += 1.0f;
                values[1] = one < values[1] ? one : values[1];
            });
        },
        [](float a, float b, int which) { return which == 0 ? a + b : (a < b ? a : b); },
        [=](int task, const float* values) {
            shared->size[task] = values[0];
            shared->least[task] = values[0] > 0.0f ? values[1] : 0.0f;
        });
    block.template reduce<1>(
        count,
        [=](int task, int lane, float* values) {
            over_group(task, lane, [=](float one) { values[0] += one - shared->least[task]; });
        },
        plus,
        [=](int task, const float* values) {
            shared->mean_above[task] = values[0] / (shared->size[task] > 0.0f ? shared->size[task] : 1.0f);
        });
    block.template reduce<1>(
        count,
        [=](int task, int lane, float* values) {
            over_group(task, lane, [=](float one) {
                const float centred = one - shared->least[task] - shared->mean_above[task];
                values[0] += centred * centred;
            });
        },
        plus,
        [=](int task, const float* values) {
            const std::int32_t item = first + task;
            const float size = shared->size[task];
            const float others = size > 1.0f ? size - 1.0f : 1.0f;
            const float std = std::sqrt(values[0] / others);
            float advantage = job.reward[item] - shared->least[task] - shared->mean_above[task];
            advantage = job.kind == kGrpo ? advantage / (std + job.epsilon) : advantage;
            advantage = job.kind == kRloo ? advantage * size / others : advantage;
            job.found[item] = size > 1.0f && is_finite(job.reward[item]) ? advantage : 0.0f;
            job.found[job.items + item] = size > 0.0f ? shared->least[task] + shared->mean_above[task] : NAN;
            job.found[2 * static_cast<std::int64_t>(job.items) + item] = std;
            job.size[item] = static_cast<std::int32_t>(size);
        });
}

}  // namespace osim
