// Launchers of the CUDA kernels: plain C++ types, so that only bindings.cpp sees torch's headers.
// All pointers are device pointers; nothing here allocates, synchronises or throws.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace osim::cuda {

// segments_T and positions_T of a packed row from cu_seqlens [segments + 1]; one launch on `stream`.
cudaError_t packed_metadata(const std::int32_t* cu_seqlens, std::int32_t segments, std::int32_t tokens,
                            std::int32_t* segments_T, std::int32_t* positions_T, cudaStream_t stream);

// squares_S[s] = (length of segment s) squared; one launch on `stream`.
cudaError_t squared_lengths(const std::int32_t* cu_seqlens, std::int32_t segments, std::int64_t* squares_S,
                            cudaStream_t stream);

}  // namespace osim::cuda
