// Label logits of judge scoring: for a tile of items, the products of their hidden states with the head's rows of the
// tokens that may answer, a warp for a few items times a few tokens. Part of the text that csrc/cuda compiles and the
// tests run on the CPU (judge_score.hpp). Legend: I items, S contexts (rows of an item), D hidden, E edges (context,
// token), T tiles of edges.
#pragma once

#include <cstdint>
#include <cstring>

#include "block.hpp"

#ifdef __CUDACC__
#define OSIM_UNROLL _Pragma("unroll")
#else
#define OSIM_UNROLL
#endif

namespace osim {

constexpr int kWarpLanes = 32;
constexpr int kTileItems = 4;  // 4 x 4 sums a lane from 4 + 4 loads: a head row is read once for four items
constexpr int kTileEdges = 4;
constexpr int kLoadBytes = 16;

// Sixteen-bit numbers as they lie in memory, widened exactly.
struct Bfloat16 {
    std::uint16_t bits;
};
struct Float16 {
    std::uint16_t bits;
};

OSIM_DEVICE inline float from_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
OSIM_DEVICE inline float widened(float x) { return x; }
OSIM_DEVICE inline float widened(Bfloat16 x) { return from_bits(static_cast<std::uint32_t>(x.bits) << 16); }
OSIM_DEVICE inline float widened(Float16 x) {
    const std::uint32_t magnitude = static_cast<std::uint32_t>(x.bits & 0x7FFF) << 13;
    const bool finite = (x.bits & 0x7C00) != 0x7C00;
    const float value = finite ? from_bits(magnitude) * 0x1p112f : from_bits(magnitude | 0x7F800000u);
    return (x.bits & 0x8000) != 0 ? -value : value;
}

// What one load brings.
template <class Element>
struct alignas(kLoadBytes) Load {
    static constexpr int kCount = kLoadBytes / sizeof(Element);
    Element values[kCount];
};

// A few edges of one context.
struct EdgeTile {
    std::int32_t first;
    std::int32_t count;
    std::int32_t context;
};

// Rows are whole loads, at aligned addresses.
template <class Element>
struct LabelLogits {
    const Element* hidden;          // [I, S, D]
    const Element* head;            // [V, D] with `head_stride`; this rank's rows
    const std::int64_t* tokens;     // [E]
    const EdgeTile* tiles;          // [T]
    float* logits;                  // [I, E]; 0 where another rank holds the token
    std::int64_t head_stride;       // elements
    std::int64_t vocab_start;       // token of the head's first row
    std::int64_t vocab_rows;
    std::int32_t items;
    std::int32_t contexts;
    std::int32_t edges;
    std::int32_t hidden_size;
    std::int32_t tile_count;
};

// Logits of the block's kTileItems items.
template <class Block, class Element>
OSIM_DEVICE void label_logits(Block& block, const LabelLogits<Element>& job) {
    using Vector = Load<Element>;
    const std::int32_t first_item = block.index() * kTileItems;
    const std::int32_t vectors = job.hidden_size / Vector::kCount;
    block.template reduce<kTileItems * kTileEdges>(
        job.tile_count,
        [=](int task, int lane, float* sums) {
            const EdgeTile tile = job.tiles[task];
            const Vector* states[kTileItems];
            const Vector* rows[kTileEdges];
            for (int i = 0; i < kTileItems; ++i) {  // beyond the last item or edge: once more the last one, not kept
                const std::int64_t item = smaller(first_item + i, job.items - 1);
                states[i] = reinterpret_cast<const Vector*>(
                    job.hidden + (item * job.contexts + tile.context) * job.hidden_size);
            }
            for (int e = 0; e < kTileEdges; ++e) {
                const std::int64_t row = job.tokens[tile.first + smaller(e, tile.count - 1)] - job.vocab_start;
                const bool mine = row >= 0 && row < job.vocab_rows;
                rows[e] = reinterpret_cast<const Vector*>(job.head + (mine ? row : 0) * job.head_stride);
            }
            for (std::int32_t at = lane; at < vectors; at += kWarpLanes) {
                Vector state[kTileItems];
                Vector row[kTileEdges];
                for (int i = 0; i < kTileItems; ++i) {
                    state[i] = states[i][at];
                }
                for (int e = 0; e < kTileEdges; ++e) {
                    row[e] = rows[e][at];
                }
                OSIM_UNROLL  // or fp16's many instructions an element keep the loop, and its arrays in memory
                for (int d = 0; d < Vector::kCount; ++d) {
                    for (int i = 0; i < kTileItems; ++i) {
                        for (int e = 0; e < kTileEdges; ++e) {
                            sums[i * kTileEdges + e] += widened(state[i].values[d]) * widened(row[e].values[d]);
                        }
                    }
                }
            }
        },
        [](float a, float b, int) { return a + b; },
        [=](int task, const float* sums) {
            const EdgeTile tile = job.tiles[task];
            for (int i = 0; i < kTileItems && first_item + i < job.items; ++i) {
                for (int e = 0; e < kTileEdges && e < tile.count; ++e) {
                    const std::int64_t row = job.tokens[tile.first + e] - job.vocab_start;
                    const bool mine = row >= 0 && row < job.vocab_rows;
                    const std::int64_t at = static_cast<std::int64_t>(first_item + i) * job.edges + tile.first + e;
                    job.logits[at] = mine ? sums[i * kTileEdges + e] : 0.0f;
                }
            }
        });
}

}  // namespace osim
