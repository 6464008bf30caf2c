// A packed row as cu_seqlens and parents describe it, and what follows from them for one segment or token.
// Legend: T rows (tokens), S segments; cu_seqlens int32 [S+1] from 0 to at most T, never decreasing; rows behind the
// last border are padding. parents int32 [S], or null where nothing is shared: -1, or the segment whose content
// precedes this one's. Segments stand in depth-first order: a parent is the segment before or one of its ancestors.
#pragma once

#include <cstdint>

#include "block.hpp"

namespace osim {

struct Packing {
    const std::int32_t* cu_seqlens;
    const std::int32_t* parents;
    std::int32_t segments;
    std::int32_t rows;

    OSIM_DEVICE std::int32_t start(std::int32_t segment) const { return cu_seqlens[segment]; }
    // The padding behind the last border counts as segment S, which has no keys.
    OSIM_DEVICE std::int32_t stop(std::int32_t segment) const {
        return segment < segments ? cu_seqlens[segment + 1] : rows;
    }
    OSIM_DEVICE std::int32_t length(std::int32_t segment) const { return stop(segment) - start(segment); }

    // -1 for roots. A parent that does not come before its child is malformed; taking it for none ends every walk.
    OSIM_DEVICE std::int32_t parent(std::int32_t segment) const {
        if (parents == nullptr || segment >= segments) {
            return -1;
        }
        return parents[segment] < segment ? parents[segment] : -1;
    }

    // Tokens that precede `segment` in its own sequence: the lengths of its ancestors.
    OSIM_DEVICE std::int32_t prefix_length(std::int32_t segment) const {
        std::int32_t total = 0;
        for (std::int32_t up = parent(segment); up >= 0; up = parent(up)) {
            total += length(up);
        }
        return total;
    }

    // The segment that owns row t: the last s <= S with cu_seqlens[s] <= t, so that empty segments own nothing.
    OSIM_DEVICE std::int32_t segment_of(std::int32_t t) const {
        std::int32_t low = 0;              // cu_seqlens[low] <= t holds throughout
        std::int32_t high = segments + 1;  // as cu_seqlens[high] > t does, with S+1 standing for T
        while (high - low > 1) {
            const std::int32_t middle = low + (high - low) / 2;
            (cu_seqlens[middle] <= t ? low : high) = middle;
        }
        return low;
    }

    // Whether entry s < S, or for s = S the two ends of cu_seqlens, break the rules above.
    OSIM_DEVICE bool malformed(std::int32_t s) const {
        if (s == segments) {
            return cu_seqlens[0] != 0 || cu_seqlens[segments] > rows;
        }
        if (cu_seqlens[s + 1] < cu_seqlens[s]) {
            return true;
        }
        if (parents == nullptr || parents[s] == -1) {
            return false;
        }
        if (parents[s] < -1) {
            return true;
        }
        std::int32_t up = s - 1;
        while (up > parents[s]) {
            up = parent(up);
        }
        return up != parents[s];
    }
};

}  // namespace osim
