// Everything a packed batch needs besides its tokens, in one launch from device memory: both sides of the tile plan,
// segment and position of each row, and the rows that carry loss. Blocks share nothing, so their order is free:
//     block 0    query tiles and pieces
//     block 1    key tiles and visits
//     block 2 +  one chunk of rows each
// The CPU twin (csrc/native/bindings.cpp) runs this text block by block.
#pragma once

#include <cstdint>

#include "block.hpp"
#include "packing.hpp"
#include "tile_plan.hpp"

namespace osim {

constexpr int kBatchThreads = 256;
constexpr std::int32_t kChunkRows = 8 * kBatchThreads;
constexpr std::int32_t kPlanBlocks = 2;

// Places in `counts`. Those of the plan are what the batch needs, which may exceed the room of the tables, or -1.
enum Count { kQueryTiles, kPieces, kKeyTiles, kVisits, kLossRows, kCounts };

struct BatchMetadata {
    Packing packing;
    TileOptions options;
    const float* weights;  // [T], or null: then no row counts as carrying loss
    SideTables query_side;
    SideTables key_side;
    std::int32_t* segment_of_row;  // [T], padding gets S
    std::int32_t* positions;       // [T], offset in the segment's sequence, ancestors included
    std::int32_t* loss_rows;       // [T] rows of weight != 0, ascending, then -1; not touched without weights
    std::int32_t* counts;          // [kCounts]
};

constexpr std::int32_t batch_blocks(std::int32_t rows) {
    return kPlanBlocks + (rows > kChunkRows ? (rows - 1) / kChunkRows + 1 : 1);
}

// Rows of weight != 0 go to the front in order, the others fill the back with -1. A block counts all rows before its
// chunk itself, which costs reads (T^2 / 2 kChunkRows in all, from the cache) and saves a second launch.
template <class Block>
OSIM_DEVICE void describe_rows(Block& block, BlockScratch<Block::kThreads>* shared, BatchMetadata batch,
                               std::int32_t chunk_start, std::int32_t chunk_stop) {
    constexpr int kThreads = Block::kThreads;
    const float* weights = batch.weights;
    block.each([=](int thread) {
        for (std::int32_t row = chunk_start + thread; row < chunk_stop; row += kThreads) {
            const std::int32_t segment = batch.packing.segment_of(row);
            batch.segment_of_row[row] = segment;
            batch.positions[row] = row - batch.packing.start(segment) + batch.packing.prefix_length(segment);
        }
        std::int32_t earlier = 0;
        for (std::int32_t row = thread; weights != nullptr && row < chunk_start; row += kThreads) {
            earlier += weights[row] != 0.0f;
        }
        shared->own[thread] = earlier;
        if (weights == nullptr && chunk_start == 0 && thread == 0) {
            batch.counts[kLossRows] = 0;
        }
    });
    if (weights == nullptr) {
        return;
    }
    // One scan over the threads' counts of earlier rows and then the chunk's rows: sums come out for the whole batch.
    exclusive_scan(
        block, shared, kThreads + chunk_stop - chunk_start,
        [=](std::int32_t i) {
            return i < kThreads ? shared->own[i]
                                : static_cast<std::int32_t>(weights[chunk_start + i - kThreads] != 0.0f);
        },
        [=](std::int32_t i, std::int32_t loss_rows) {
            const std::int32_t row = chunk_start + i - kThreads;
            if (i < kThreads) {
                return;
            }
            if (row == chunk_stop) {
                if (row == batch.packing.rows) {
                    batch.counts[kLossRows] = loss_rows;
                }
            } else if (weights[row] != 0.0f) {
                batch.loss_rows[loss_rows] = row;
            } else {
                batch.loss_rows[batch.packing.rows - 1 - (row - loss_rows)] = -1;
            }
        });
}

template <class Block>
OSIM_DEVICE void batch_metadata(Block& block, BlockScratch<Block::kThreads>* shared, BatchMetadata batch) {
    const Packing packing = batch.packing;
    if (block.index() == 0) {
        plan_side(block, shared, QuerySide{packing, batch.options}, batch.query_side, batch.counts + kQueryTiles);
    } else if (block.index() == 1) {
        plan_side(block, shared, KeySide{packing, batch.options}, batch.key_side, batch.counts + kKeyTiles);
    } else {
        const std::int32_t chunk_start = (block.index() - kPlanBlocks) * kChunkRows;
        const std::int32_t chunk_stop =
            packing.rows - chunk_start > kChunkRows ? chunk_start + kChunkRows : packing.rows;
        describe_rows(block, shared, batch, chunk_start, chunk_stop);
    }
}

}  // namespace osim
