// Judge scoring by thread blocks: csrc/common/judge_score.hpp with real warps. The tests run the same text on the CPU;
// only the class below is the GPU's own.
#include "launchers.hpp"

namespace osim::cuda {
namespace {

class JudgeBlock {
  public:
    static constexpr int kThreads = kJudgeThreads;

    __device__ int index() const { return static_cast<int>(blockIdx.x); }

    template <class F>
    __device__ void each(F phase) {
        phase(static_cast<int>(threadIdx.x));
        __syncthreads();
    }

    template <int Count, class Add, class Combine, class Take>
    __device__ void reduce(int tasks, Add add, Combine combine, Take take) {
        const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
        for (int task = static_cast<int>(threadIdx.x) / kWarpLanes; task < tasks; task += kJudgeWarps) {
            float values[Count] = {};
            add(task, lane, values);
            for (int reach = kWarpLanes / 2; reach > 0; reach /= 2) {
                for (int which = 0; which < Count; ++which) {
                    values[which] =
                        combine(values[which], __shfl_xor_sync(0xFFFFFFFFu, values[which], reach), which);
                }
            }
            if (lane == 0) {
                take(task, values);
            }
        }
        __syncthreads();
    }
};

template <class Element>
__global__ void __launch_bounds__(kJudgeThreads, 2)
    judge_items_kernel(LabelLogits<Element> logits, JudgeScores scores) {
    JudgeBlock block;
    osim::label_logits(block, logits);
    osim::judge_items(block, scores);
}

template <class Element>
__global__ void __launch_bounds__(kJudgeThreads, 2) label_logits_kernel(LabelLogits<Element> logits) {
    JudgeBlock block;
    osim::label_logits(block, logits);
}

__global__ void __launch_bounds__(kJudgeThreads) judge_logits_kernel(JudgeScores scores) {
    JudgeBlock block;
    osim::judge_items(block, scores);
}

__global__ void __launch_bounds__(kJudgeThreads) group_advantages_kernel(GroupAdvantages groups) {
    __shared__ GroupScratch shared;
    JudgeBlock block;
    osim::group_advantages(block, &shared, groups);
}

// kernel(job...) in a block for every `each` items.
template <class... Job>
cudaError_t launch(void (*kernel)(Job...), std::int32_t items, int each, cudaStream_t stream, const Job&... job) {
    if (items == 0) {
        return cudaSuccess;
    }
    kernel<<<static_cast<unsigned>((items + each - 1) / each), kJudgeThreads, 0, stream>>>(job...);
    return cudaGetLastError();
}

}  // namespace

template <class Element>
cudaError_t judge_items(const LabelLogits<Element>& logits, const JudgeScores& scores, cudaStream_t stream) {
    return launch(judge_items_kernel<Element>, scores.items, kTileItems, stream, logits, scores);
}

template <class Element>
cudaError_t label_logits(const LabelLogits<Element>& logits, cudaStream_t stream) {
    return launch(label_logits_kernel<Element>, logits.items, kTileItems, stream, logits);
}

cudaError_t judge_logits(const JudgeScores& scores, cudaStream_t stream) {
    return launch(judge_logits_kernel, scores.items, kTileItems, stream, scores);
}

cudaError_t group_advantages(const GroupAdvantages& groups, cudaStream_t stream) {
    return launch(group_advantages_kernel, groups.items, kJudgeWarps, stream, groups);
}

template cudaError_t judge_items(const LabelLogits<float>&, const JudgeScores&, cudaStream_t);
template cudaError_t judge_items(const LabelLogits<Bfloat16>&, const JudgeScores&, cudaStream_t);
template cudaError_t judge_items(const LabelLogits<Float16>&, const JudgeScores&, cudaStream_t);
template cudaError_t label_logits(const LabelLogits<float>&, cudaStream_t);
template cudaError_t label_logits(const LabelLogits<Bfloat16>&, cudaStream_t);
template cudaError_t label_logits(const LabelLogits<Float16>&, cudaStream_t);

}  // namespace osim::cuda
