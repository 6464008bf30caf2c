// GPU twin of csrc/native's packed_metadata: the same shared functions, one thread a token (or a segment).
// Keeps cu_seqlens on the device: the alternative is a copy to the host and back, which stalls the stream.
#include "../common/packed_metadata.hpp"

#include "launchers.hpp"

namespace osim::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(std::int64_t items) { return static_cast<unsigned>((items + kThreads - 1) / kThreads); }

__global__ void packed_metadata_kernel(const std::int32_t* __restrict__ cu_seqlens, std::int32_t segments,
                                       std::int32_t tokens, std::int32_t* __restrict__ segments_T,
                                       std::int32_t* __restrict__ positions_T) {
    const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (token >= tokens) {
        return;
    }
    const auto t = static_cast<std::int32_t>(token);
    const std::int32_t segment = segment_of_token(cu_seqlens, segments, t);
    segments_T[token] = segment;
    positions_T[token] = position_in_segment(cu_seqlens, segment, t);
}

__global__ void squared_lengths_kernel(const std::int32_t* __restrict__ cu_seqlens, std::int32_t segments,
                                       std::int64_t* __restrict__ squares_S) {
    const std::int64_t segment = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (segment < segments) {
        squares_S[segment] = squared_length(cu_seqlens, static_cast<std::int32_t>(segment));
    }
}

}  // namespace

cudaError_t packed_metadata(const std::int32_t* cu_seqlens, std::int32_t segments, std::int32_t tokens,
                            std::int32_t* segments_T, std::int32_t* positions_T, cudaStream_t stream) {
    packed_metadata_kernel<<<blocks_for(tokens), kThreads, 0, stream>>>(cu_seqlens, segments, tokens, segments_T,
                                                                        positions_T);
    return cudaGetLastError();
}

cudaError_t squared_lengths(const std::int32_t* cu_seqlens, std::int32_t segments, std::int64_t* squares_S,
                            cudaStream_t stream) {
    squared_lengths_kernel<<<blocks_for(segments), kThreads, 0, stream>>>(cu_seqlens, segments, squares_S);
    return cudaGetLastError();
}

}  // namespace osim::cuda
