// Per-token facts about a packed row, derived from cu_seqlens alone. One source for two compilers:
// csrc/native runs these functions on the CPU (and the tests check them there), csrc/cuda compiles the very
// same text for the GPU. Legend: T tokens in the row, S segments, cu_seqlens int32 [S+1] from 0 to T.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define OSIM_HD __host__ __device__
#else
#define OSIM_HD
#endif

namespace osim {

// The segment that owns token `token`: the last s with cu_seqlens[s] <= token. Segments of length zero own
// nothing, and "last" is what steps over them. Requires 0 <= token < cu_seqlens[segments].
OSIM_HD inline std::int32_t segment_of_token(const std::int32_t* cu_seqlens, std::int32_t segments,
                                             std::int32_t token) {
    std::int32_t low = 0;          // cu_seqlens[low] <= token holds throughout
    std::int32_t high = segments;  // cu_seqlens[high] > token holds throughout
    while (high - low > 1) {
        const std::int32_t middle = low + (high - low) / 2;
        if (cu_seqlens[middle] <= token) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// Offset of `token` inside its segment, which is where rotary positions restart.
OSIM_HD inline std::int32_t position_in_segment(const std::int32_t* cu_seqlens, std::int32_t segment,
                                                std::int32_t token) {
    return token - cu_seqlens[segment];
}

// Attention work of one segment up to a constant: its length squared. 64-bit, since 65,536^2 is past int32.
OSIM_HD inline std::int64_t squared_length(const std::int32_t* cu_seqlens, std::int32_t segment) {
    const std::int64_t length = cu_seqlens[segment + 1] - cu_seqlens[segment];
    return length * length;
}

}  // namespace osim
