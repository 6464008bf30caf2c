// Sketches of texts, a warp each: csrc/common/warp_sketch.hpp with a real warp. The tests run the same text on the CPU;
// only the class below is the GPU's own.
#include "../../common/warp_sketch.hpp"

#include "launchers.hpp"

namespace osim::cuda {
namespace {

class GpuWarp {
  public:
    template <class T>
    class Local {
      public:
        __device__ T& operator[](int) { return value_; }
        __device__ const T& operator[](int) const { return value_; }

      private:
        T value_;
    };

    template <class F>
    __device__ void each(F phase) {
        phase(thread());
    }

    __device__ void sync(Barrier) { __syncwarp(); }

    template <class T>
    __device__ T shift_up(Local<T>& values, T first) {
        const T last = __shfl_sync(kAll, values[0], kWarp - 1);
        const T before = __shfl_up_sync(kAll, values[0], 1);
        values[0] = thread() == 0 ? first : before;
        return last;
    }

    __device__ std::uint32_t exclusive_sum(Local<std::uint32_t>& values) {
        std::uint32_t sum = values[0];
        for (int reach = 1; reach < kWarp; reach *= 2) {
            const std::uint32_t before = __shfl_up_sync(kAll, sum, reach);
            sum += thread() >= reach ? before : 0;
        }
        values[0] = sum - values[0];
        return __shfl_sync(kAll, sum, kWarp - 1);
    }

    template <class T>
    __device__ T value_of(const Local<T>& values, int thread) {
        return __shfl_sync(kAll, values[0], thread);
    }

    __device__ static std::uint32_t claim(std::uint32_t* slot, std::uint32_t value) {
        return atomicCAS(slot, 0u, value);
    }

  private:
    static constexpr unsigned kAll = 0xFFFFFFFFu;
    __device__ static int thread() { return static_cast<int>(threadIdx.x % kWarp); }
};

__device__ constexpr LaneTable kDeviceLanes = make_lanes(kLaneSeed);

constexpr int kWarps = 4;  // of a block; they share nothing

template <bool kMayBeWide>
__global__ void __launch_bounds__(kWarps * kWarp) sketch_kernel(SketchJob job, std::int64_t count) {
    __shared__ SketchMemory<kMayBeWide> memory[kWarps];
    const int in_block = static_cast<int>(threadIdx.x) / kWarp;
    const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * kWarps + in_block;
    if (slot < count) {
        GpuWarp warp;
        WarpSketch<GpuWarp, kMayBeWide>(warp, memory + in_block, &kDeviceLanes, job).run(slot);
    }
}

}  // namespace

cudaError_t sketch(const SketchJob& job, std::int64_t count, bool may_be_wide, cudaStream_t stream) {
    if (count == 0) {
        return cudaSuccess;
    }
    const auto blocks = static_cast<unsigned>((count + kWarps - 1) / kWarps);
    if (may_be_wide) {
        sketch_kernel<true><<<blocks, kWarps * kWarp, 0, stream>>>(job, count);
    } else {
        sketch_kernel<false><<<blocks, kWarps * kWarp, 0, stream>>>(job, count);
    }
    return cudaGetLastError();
}

}  // namespace osim::cuda
