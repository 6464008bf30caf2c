// Host side of batch_metadata, alike for both bindings: checks of its numbers, and one int32 buffer that holds all of
// its outputs and working memory, so that a call allocates once. Python splits the buffer (metadata.py) in this order:
//     counts [5], query_tiles [.., 4], pieces [.., 3], key_tiles [.., 4], visits [.., 3],
//     segment_of_row [T], positions [T], loss_rows [T, or 0 without weights], working memory
// Each part starts on a 128-byte border: Triton compiles a kernel once more for pointers off 16 bytes.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "batch_metadata.hpp"

namespace osim {

constexpr std::int64_t kPartAlignment = 32;  // int32: 128 bytes

// Rows that the four tables have room for.
struct TileRoom {
    std::int64_t query_tiles;
    std::int64_t pieces;
    std::int64_t key_tiles;
    std::int64_t visits;
};

inline void require_between(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
    if (value < low || value > high) {
        throw std::invalid_argument(std::string(name) + " must be between " + std::to_string(low) + " and " +
                                    std::to_string(high) + ", got " + std::to_string(value));
    }
}

// A batch without its buffer. The limits keep every sum of two row numbers and a block inside int32.
inline BatchMetadata checked_batch(const std::int32_t* cu_seqlens, std::int64_t borders, const std::int32_t* parents,
                                   const float* weights, std::int64_t rows, std::int64_t block_q,
                                   std::int64_t block_k, std::int64_t window, const TileRoom& room) {
    constexpr std::int64_t kLimit = 1 << 29;
    constexpr std::int64_t kLargestBlock = 1 << 16;
    require_between("borders in cu_seqlens", borders, 2, kLimit);
    require_between("num_rows", rows, 0, kLimit);
    require_between("block_q", block_q, 1, kLargestBlock);
    require_between("block_k", block_k, 1, kLargestBlock);
    require_between("window", window, 0, kLimit);
    for (const std::int64_t count : {room.query_tiles, room.pieces, room.key_tiles, room.visits}) {
        require_between("capacity", count, 0, kLimit);
    }
    BatchMetadata batch{};
    batch.packing = {cu_seqlens, parents, static_cast<std::int32_t>(borders - 1), static_cast<std::int32_t>(rows)};
    batch.options = {static_cast<std::int32_t>(block_q), static_cast<std::int32_t>(block_k),
                     static_cast<std::int32_t>(window)};
    batch.weights = weights;
    batch.query_side.tile_room = static_cast<std::int32_t>(room.query_tiles);
    batch.query_side.entry_room = static_cast<std::int32_t>(room.pieces);
    batch.key_side.tile_room = static_cast<std::int32_t>(room.key_tiles);
    batch.key_side.entry_room = static_cast<std::int32_t>(room.visits);
    return batch;
}

// Points the batch into `buffer` and returns how many int32 that takes; with a null buffer it only counts.
inline std::int64_t set_buffer(BatchMetadata& batch, std::int32_t* buffer) {
    std::int64_t size = 0;
    const auto take = [&](std::int64_t count) {
        std::int32_t* part = buffer == nullptr ? nullptr : buffer + size;
        size += (count + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
        return part;
    };
    const std::int64_t rows = batch.packing.rows;
    batch.counts = take(kCounts);
    for (SideTables* side : {&batch.query_side, &batch.key_side}) {
        side->tiles = take(4 * std::int64_t{side->tile_room});
        side->entries = take(3 * std::int64_t{side->entry_room});
    }
    batch.segment_of_row = take(rows);
    batch.positions = take(rows);
    batch.loss_rows = take(batch.weights != nullptr ? rows : 0);
    for (SideTables* side : {&batch.query_side, &batch.key_side}) {
        side->scratch = take(side_scratch_size(batch.packing.segments, side->tile_room));
    }
    return size;
}

}  // namespace osim
