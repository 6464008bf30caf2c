// Launchers of the CUDA kernels: plain C++ types, so that only bindings.cpp sees torch's headers.
// All pointers are device pointers; nothing here allocates, synchronises or throws.
#pragma once

#include <cuda_runtime_api.h>

#include "../common/batch_metadata.hpp"

namespace osim::cuda {

// Fills the tables of `batch`; one launch on `stream`.
cudaError_t batch_metadata(const BatchMetadata& batch, cudaStream_t stream);

}  // namespace osim::cuda
