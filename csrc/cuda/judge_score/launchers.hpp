// Launchers of judge scoring's kernels: plain C++ types, device pointers; nothing here waits or throws.
#pragma once

#include <cuda_runtime_api.h>

#include "../../common/judge_score.hpp"

namespace osim::cuda {

// Logits, scores and rewards in one launch.
template <class Element>
cudaError_t judge_items(const LabelLogits<Element>& logits, const JudgeScores& scores, cudaStream_t stream);

// The same in two, for a rank that has only its own logits until they are summed over the ranks.
template <class Element>
cudaError_t label_logits(const LabelLogits<Element>& logits, cudaStream_t stream);
cudaError_t judge_logits(const JudgeScores& scores, cudaStream_t stream);

cudaError_t group_advantages(const GroupAdvantages& groups, cudaStream_t stream);

}  // namespace osim::cuda
