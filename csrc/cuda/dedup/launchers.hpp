// Launchers of near-duplicate detection's kernels: plain C++ types, device pointers; nothing here waits or throws.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../../common/warp_sketch.hpp"

namespace osim::cuda {

// Sketches the `count` texts job.rows, of which all or none are below least_wide_bytes.
cudaError_t sketch(const SketchJob& job, std::int64_t count, bool may_be_wide, cudaStream_t stream);

}  // namespace osim::cuda
