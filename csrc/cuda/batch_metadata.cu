// GPU twin of csrc/native's batch_metadata: the same text with a thread block for the emulation.
// Keeps cu_seqlens on the device: the alternative is a copy to the host and back, which stalls the stream.
#include "../common/batch_metadata.hpp"

#include "launchers.hpp"

namespace osim::cuda {
namespace {

class ThreadBlock {
public:
    static constexpr int kThreads = kBatchThreads;

    __device__ int index() const { return static_cast<int>(blockIdx.x); }

    template <class F>
    __device__ void each(F phase) {
        phase(static_cast<int>(threadIdx.x));
        __syncthreads();
    }
};

__global__ void __launch_bounds__(kBatchThreads, 1) batch_metadata_kernel(BatchMetadata batch) {
    __shared__ BlockScratch<kBatchThreads> shared;
    ThreadBlock block;
    osim::batch_metadata(block, &shared, batch);
}

}  // namespace

cudaError_t batch_metadata(const BatchMetadata& batch, cudaStream_t stream) {
    batch_metadata_kernel<<<batch_blocks(batch.packing.rows), kBatchThreads, 0, stream>>>(batch);
    return cudaGetLastError();
}

}  // namespace osim::cuda
