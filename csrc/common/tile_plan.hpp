// The tile plan of kernels/packed_attention/tiles.py (which defines the tables) for a packed row, by one thread block
// a side: query tiles with their pieces, or key tiles with their visits. Bit-equal to the Python.
//
// Work: O(tiles + S + entries) per block and the threads share it; nothing is atomic, so tables repeat bit for bit.
#pragma once

#include <cstdint>

#include "block.hpp"
#include "packing.hpp"

namespace osim {

struct TileOptions {
    std::int32_t block_q;
    std::int32_t block_k;
    std::int32_t window;  // 0: unlimited
};

// Tables of one side, how many rows they have room for, and working memory.
struct SideTables {
    std::int32_t* tiles;    // [tile_room, 4]
    std::int32_t* entries;  // [entry_room, 3]
    std::int32_t tile_room;
    std::int32_t entry_room;
    std::int32_t* scratch;  // [side_scratch_size]
};

// The parts of one side's working memory.
struct SideScratch {
    std::int32_t* memory;
    std::int32_t segments;
    std::int64_t tile_room;

    OSIM_DEVICE std::int32_t* malformed() const { return memory; }                          // [1]
    OSIM_DEVICE std::int32_t* tile_begin() const { return memory + 1; }                     // [S + 2] first tile
    OSIM_DEVICE std::int32_t* entry_begin() const { return tile_begin() + segments + 2; }   // [tiles + 1]
    OSIM_DEVICE std::int32_t* row_start() const { return entry_begin() + tile_room + 1; }   // [tiles]
    OSIM_DEVICE std::int32_t* row_stop() const { return row_start() + tile_room; }
    OSIM_DEVICE std::int32_t* work() const { return row_stop() + tile_room; }
    OSIM_DEVICE std::int32_t* order(int which) const { return work() + (1 + which) * tile_room; }  // two of them
};

constexpr std::int64_t side_scratch_size(std::int64_t segments, std::int64_t tile_room) {
    return 1 + (segments + 2) + (tile_room + 1) + 5 * tile_room;
}

// Query tiles and the pieces of keys that they visit.
struct QuerySide {
    static constexpr bool kAscending = false;  // own keys come first below, and stand behind the ancestors' in the row
    Packing packing;
    TileOptions options;

    OSIM_DEVICE std::int32_t block() const { return options.block_q; }
    OSIM_DEVICE std::int32_t other_block() const { return options.block_k; }
    OSIM_DEVICE std::int32_t shorten_first() const { return options.block_q - options.block_k; }

    // emit(start, stop, delta) for each piece of the tile [row_start, row_stop) of `segment`.
    template <class Emit>
    OSIM_DEVICE void entries(std::int32_t segment, std::int32_t row_start, std::int32_t row_stop, Emit emit) const {
        if (segment == packing.segments) {
            return;
        }
        std::int32_t between = 0;  // tokens of the sequence from the ancestor's start to the segment's
        for (std::int32_t up = segment; up >= 0;) {
            const std::int32_t delta = packing.start(segment) - packing.start(up) - between;
            const std::int32_t stop = smaller(packing.stop(up), row_stop - delta);
            std::int32_t start = packing.start(up);
            if (options.window > 0) {
                start = larger(start, row_start - delta - options.window + 1);
            }
            if (start < stop) {
                emit(start, stop, delta);
            }
            up = packing.parent(up);
            between += up >= 0 ? packing.length(up) : 0;
        }
    }
};

// Key tiles and the query rows that visit them.
struct KeySide {
    static constexpr bool kAscending = true;
    Packing packing;
    TileOptions options;

    OSIM_DEVICE std::int32_t block() const { return options.block_k; }
    OSIM_DEVICE std::int32_t other_block() const { return options.block_q; }
    OSIM_DEVICE std::int32_t shorten_first() const { return 0; }

    // emit(start, stop, delta) for each visit to the tile [row_start, row_stop) of `segment`: by the segment itself
    // and by its descendants, which depth-first order puts right behind it.
    template <class Emit>
    OSIM_DEVICE void entries(std::int32_t segment, std::int32_t row_start, std::int32_t row_stop, Emit emit) const {
        if (segment == packing.segments) {
            return;
        }
        const std::int32_t origin = packing.start(segment) - packing.prefix_length(segment);
        std::int32_t reader = segment;
        do {
            const std::int32_t delta = packing.start(reader) - packing.prefix_length(reader) - origin;
            const std::int32_t start = larger(packing.start(reader), row_start + delta);
            std::int32_t stop = packing.stop(reader);
            if (options.window > 0 && stop - options.window > row_stop - 1 + delta) {  // no sum past int32
                stop = row_stop - 1 + delta + options.window;
            }
            if (start < stop) {
                emit(start, stop, delta);
            }
            ++reader;
        } while (reader < packing.segments && packing.parent(reader) >= segment);
    }
};

// Fills `tables` and sets counts[0], counts[1] to the tiles and entries that the batch needs. Tables are all zero where
// that exceeds their room, and where cu_seqlens or parents are malformed, which makes both counts -1.
template <class Block, class Side>
OSIM_DEVICE void plan_side(Block& block, BlockScratch<Block::kThreads>* shared, Side side, SideTables tables,
                           std::int32_t* counts) {
    constexpr int kThreads = Block::kThreads;
    const Packing packing = side.packing;
    const SideScratch scratch{tables.scratch, packing.segments, tables.tile_room};
    const std::int32_t ranges = packing.segments + 1;  // with the padding

    exclusive_scan(
        block, shared, ranges, [=](std::int32_t s) { return static_cast<std::int32_t>(packing.malformed(s)); },
        [=](std::int32_t s, std::int32_t sum) {
            if (s == ranges) {
                *scratch.malformed() = sum;
            }
        });
    const bool sound = *scratch.malformed() == 0;

    exclusive_scan(
        block, shared, ranges,
        [=](std::int32_t s) { return sound ? divide_up(packing.length(s), side.block()) : 0; },
        [=](std::int32_t s, std::int32_t sum) { scratch.tile_begin()[s] = sum; });
    const std::int32_t tiles_needed = scratch.tile_begin()[ranges];
    const std::int32_t tiles = tiles_needed <= tables.tile_room ? tiles_needed : 0;

    block.each([=](int thread) {
        for (std::int32_t tile = thread; tile < tiles; tile += kThreads) {
            std::int32_t range = 0;  // the last with tile_begin[range] <= tile
            for (std::int32_t high = ranges; high - range > 1;) {
                const std::int32_t middle = range + (high - range) / 2;
                (scratch.tile_begin()[middle] <= tile ? range : high) = middle;
            }
            const std::int32_t nth = tile - scratch.tile_begin()[range];
            const std::int32_t remainder = packing.length(range) % side.block();
            const bool short_first = remainder > 0 && remainder <= side.shorten_first();
            const std::int32_t first = packing.start(range) + nth * side.block() -
                                       (short_first ? side.block() - remainder : 0);
            const std::int32_t row_start = larger(packing.start(range), first);
            const std::int32_t row_stop = smaller(packing.stop(range), first + side.block());
            std::int32_t entries = 0;
            std::int32_t work = 0;
            side.entries(range, row_start, row_stop, [&](std::int32_t start, std::int32_t stop, std::int32_t) {
                ++entries;
                work += divide_up(stop - start, side.other_block());
            });
            scratch.row_start()[tile] = row_start;
            scratch.row_stop()[tile] = row_stop;
            scratch.entry_begin()[tile] = entries;
            scratch.work()[tile] = work;
            scratch.order(0)[tile] = tile;
        }
    });
    exclusive_scan(
        block, shared, tiles, [=](std::int32_t tile) { return scratch.entry_begin()[tile]; },
        [=](std::int32_t tile, std::int32_t sum) { scratch.entry_begin()[tile] = sum; });
    const std::int32_t entries_needed = scratch.entry_begin()[tiles];
    const bool fits = tiles_needed <= tables.tile_room && entries_needed <= tables.entry_room;
    const std::int32_t tiles_written = fits ? tiles : 0;
    const std::int32_t entries_written = fits ? entries_needed : 0;

    // A tile meets at most all blocks of the other side, plus a partial one per segment.
    const std::int32_t work_limit = packing.rows / side.other_block() + packing.segments + 1;
    int sorted = 0;
    for (int shift = 0; shift < 31 && work_limit >> shift > 0; shift += kDigitBits, sorted = 1 - sorted) {
        sort_pass(block, shared, tiles_written, scratch.work(), shift, scratch.order(sorted),
                  scratch.order(1 - sorted));
    }

    block.each([=](int thread) {
        for (std::int32_t place = thread; place < tables.tile_room; place += kThreads) {
            std::int32_t* row = tables.tiles + 4 * static_cast<std::int64_t>(place);
            const bool used = place < tiles_written;
            const std::int32_t tile = used ? scratch.order(sorted)[place] : 0;
            row[0] = used ? scratch.row_start()[tile] : 0;
            row[1] = used ? scratch.row_stop()[tile] : 0;
            row[2] = used ? scratch.entry_begin()[tile] : 0;
            row[3] = used ? scratch.entry_begin()[tile + 1] : 0;
        }
        for (std::int32_t tile = thread; tile < tiles_written; tile += kThreads) {
            const std::int32_t begin = scratch.entry_begin()[tile];
            const std::int32_t end = scratch.entry_begin()[tile + 1];
            const std::int32_t row_start = scratch.row_start()[tile];
            std::int32_t nth = 0;
            side.entries(packing.segment_of(row_start), row_start, scratch.row_stop()[tile],
                         [&](std::int32_t start, std::int32_t stop, std::int32_t delta) {
                             const std::int32_t place = Side::kAscending ? begin + nth : end - 1 - nth;
                             std::int32_t* row = tables.entries + 3 * static_cast<std::int64_t>(place);
                             row[0] = start;
                             row[1] = stop;
                             row[2] = delta;
                             ++nth;
                         });
        }
        for (std::int32_t place = entries_written + thread; place < tables.entry_room; place += kThreads) {
            for (int column = 0; column < 3; ++column) {
                tables.entries[3 * static_cast<std::int64_t>(place) + column] = 0;
            }
        }
        if (thread == 0) {
            counts[0] = sound ? tiles_needed : -1;
            counts[1] = sound ? entries_needed : -1;
        }
    });
}

}  // namespace osim
