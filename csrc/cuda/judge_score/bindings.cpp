// Judge scoring on the GPU for torch tensors; kernels/judge_score/cuda.py is its user. Work goes to torch's current stream
// and is not waited for. Legend: I items, J dimensions, S contexts, D hidden, V rows of the head, E edges, T tiles of them,
// L labels of all dimensions, N of the largest, R variants of a label.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <utility>

#include "../tensors.hpp"
#include "launchers.hpp"

namespace osim::cuda {
namespace {

// The tensor behind `object`, after checking its type, shape and device, and that it is contiguous.
at::Tensor shaped(py::handle object, const char* name, at::ScalarType dtype, at::IntArrayRef shape, at::Device device) {
    if (!THPVariable_Check(object.ptr())) {
        throw py::type_error(std::string(name) + ": expected a torch.Tensor");
    }
    at::Tensor tensor = THPVariable_Unpack(object.ptr());
    if (tensor.scalar_type() != dtype || tensor.sizes() != shape || tensor.device() != device ||
        !tensor.is_contiguous()) {
        std::string wanted;
        for (const std::int64_t size : shape) {
            wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
        }
        throw py::value_error(std::string(name) + ": expected contiguous " + c10::toString(dtype) + " [" + wanted +
                              "] on " + device.str());
    }
    return tensor;
}

// A CUDA tensor whose rows are whole loads at aligned addresses.
at::Tensor of_rows(py::handle object, const char* name, std::int64_t dimensions) {
    if (!THPVariable_Check(object.ptr())) {
        throw py::type_error(std::string(name) + ": expected a torch.Tensor");
    }
    at::Tensor tensor = THPVariable_Unpack(object.ptr());
    if (!tensor.is_cuda() || tensor.dim() != dimensions || tensor.stride(-1) != 1 ||
        tensor.size(-1) * tensor.element_size() % kLoadBytes != 0 ||
        tensor.stride(-2) * tensor.element_size() % kLoadBytes != 0 ||
        reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % kLoadBytes != 0) {
        throw py::value_error(std::string(name) + ": expected a CUDA tensor of " + std::to_string(dimensions) +
                              " dimensions, its rows contiguous, aligned and of whole 16-byte units");
    }
    return tensor;
}

struct Queries {
    at::Tensor hidden, head, tokens, tiles, logits;
    std::int64_t vocab_start;

    Queries(py::handle hidden_object, py::handle head_object, py::handle tokens_object, py::handle tiles_object,
            py::handle logits_object, std::int64_t start)
        : hidden(of_rows(hidden_object, "hidden", 3)), head(of_rows(head_object, "head", 2)), vocab_start(start) {
        const std::int64_t edges = py::len(tokens_object), tile_count = py::len(tiles_object);
        if (!hidden.is_contiguous() || hidden.scalar_type() != head.scalar_type() || hidden.size(2) != head.size(1)) {
            throw py::value_error("hidden: expected contiguous, of the head's dtype and width");
        }
        tokens = shaped(tokens_object, "tokens", at::kLong, {edges}, hidden.device());
        tiles = shaped(tiles_object, "tiles", at::kInt, {tile_count, 3}, hidden.device());
        logits = shaped(logits_object, "logits", at::kFloat, {hidden.size(0), edges}, hidden.device());
    }

    template <class Element>
    LabelLogits<Element> job() const {
        return {static_cast<const Element*>(hidden.const_data_ptr()),
                static_cast<const Element*>(head.const_data_ptr()),
                tokens.const_data_ptr<std::int64_t>(),
                static_cast<const EdgeTile*>(tiles.const_data_ptr()),
                logits.mutable_data_ptr<float>(),
                head.stride(0),
                vocab_start,
                head.size(0),
                static_cast<std::int32_t>(hidden.size(0)),
                static_cast<std::int32_t>(hidden.size(1)),
                static_cast<std::int32_t>(tokens.numel()),
                static_cast<std::int32_t>(hidden.size(2)),
                static_cast<std::int32_t>(tiles.size(0))};
    }

    // launch(job) for the tensors' dtype.
    template <class Launch>
    cudaError_t with_job(Launch launch) const {
        switch (hidden.scalar_type()) {
            case at::kFloat: return launch(job<float>());
            case at::kBFloat16: return launch(job<Bfloat16>());
            case at::kHalf: return launch(job<Float16>());
            default: throw py::value_error("hidden: expected float32, bfloat16 or float16");
        }
    }
};

// tables: context, anchor, parent [E], leaf [L, R], labels [J, N], value, bias [L], temperature, worst, best, weight [J].
// inputs: anchors [I, S], missing [I, J], multiplier [I], each or None.
// results: reason [I, J], figures [5, I, J], logprob [I, L], rewards [2, I].
JudgeScores scores_job(const at::Tensor& logits, std::int64_t contexts, const py::tuple& tables,
                       const py::tuple& inputs, float min_mass, const py::tuple& results) {
    if (tables.size() != 11 || inputs.size() != 3 || results.size() != 4) {
        throw py::value_error("expected 11 tables, 3 inputs and 4 results");
    }
    const at::Device device = logits.device();
    const std::int64_t items = logits.size(0), edges = logits.size(1);
    const auto sizes = [](py::handle object) {
        return py::cast<std::pair<std::int64_t, std::int64_t>>(object.attr("shape"));
    };
    const auto [label_count, variants] = sizes(tables[3]);
    const auto [dimensions, most_labels] = sizes(tables[4]);
    const auto whole = [&](int at, const char* name, at::IntArrayRef shape) {
        return shaped(tables[at], name, at::kInt, shape, device).const_data_ptr<std::int32_t>();
    };
    const auto real = [&](int at, const char* name, std::int64_t count) {
        return shaped(tables[at], name, at::kFloat, {count}, device).const_data_ptr<float>();
    };
    const auto input = [&](int at, const char* name, at::ScalarType dtype, at::IntArrayRef shape) -> const void* {
        return inputs[at].is_none() ? nullptr : shaped(inputs[at], name, dtype, shape, device).const_data_ptr();
    };
    const auto result = [&](int at, const char* name, at::ScalarType dtype, at::IntArrayRef shape) {
        return shaped(results[at], name, dtype, shape, device).mutable_data_ptr();
    };
    return {{whole(0, "context", {edges}), whole(1, "anchor", {edges}), whole(2, "parent", {edges}),
             whole(3, "leaf", {label_count, variants}), whole(4, "labels", {dimensions, most_labels}),
             real(5, "value", label_count), real(6, "bias", label_count), real(7, "temperature", dimensions),
             real(8, "worst", dimensions), real(9, "best", dimensions), real(10, "weight", dimensions),
             static_cast<std::int32_t>(contexts), static_cast<std::int32_t>(edges),
             static_cast<std::int32_t>(dimensions), static_cast<std::int32_t>(label_count),
             static_cast<std::int32_t>(most_labels), static_cast<std::int32_t>(variants)},
            logits.const_data_ptr<float>(),
            static_cast<const float*>(input(0, "anchors", at::kFloat, {items, contexts})),
            static_cast<const std::uint8_t*>(input(1, "missing", at::kByte, {items, dimensions})),
            static_cast<const float*>(input(2, "multiplier", at::kFloat, {items})),
            min_mass,
            static_cast<std::int32_t>(items),
            static_cast<std::int32_t*>(result(0, "reason", at::kInt, {items, dimensions})),
            static_cast<float*>(result(1, "figures", at::kFloat, {5, items, dimensions})),
            static_cast<float*>(result(2, "logprob", at::kFloat, {items, label_count})),
            static_cast<float*>(result(3, "rewards", at::kFloat, {2, items}))};
}

void judge_items_of(py::handle hidden, py::handle head, py::handle tokens, py::handle tiles, py::handle logits,
                    std::int64_t vocab_start, const py::tuple& tables, const py::tuple& inputs, float min_mass,
                    const py::tuple& results) {
    require_gpu();
    const Queries queries(hidden, head, tokens, tiles, logits, vocab_start);
    const JudgeScores scores =
        scores_job(queries.logits, queries.hidden.size(1), tables, inputs, min_mass, results);
    const c10::cuda::CUDAGuard guard(queries.hidden.device());
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
    require_launched(queries.with_job([&](const auto& job) { return judge_items(job, scores, stream); }));
}

void label_logits_of(py::handle hidden, py::handle head, py::handle tokens, py::handle tiles, py::handle logits,
                     std::int64_t vocab_start) {
    require_gpu();
    const Queries queries(hidden, head, tokens, tiles, logits, vocab_start);
    const c10::cuda::CUDAGuard guard(queries.hidden.device());
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
    require_launched(queries.with_job([&](const auto& job) { return label_logits(job, stream); }));
}

void judge_logits_of(py::handle logits_object, std::int64_t contexts, const py::tuple& tables, const py::tuple& inputs,
                     float min_mass, const py::tuple& results) {
    require_gpu();
    const at::Tensor context = cuda_vector(py::object(tables[0]), "context", at::kInt);
    const auto items = static_cast<std::int64_t>(py::len(logits_object));
    const at::Tensor logits = shaped(logits_object, "logits", at::kFloat, {items, context.numel()}, context.device());
    const JudgeScores scores = scores_job(logits, contexts, tables, inputs, min_mass, results);
    const c10::cuda::CUDAGuard guard(logits.device());
    require_launched(judge_logits(scores, c10::cuda::getCurrentCUDAStream().stream()));
}

void group_advantages_of(py::handle reward_object, py::handle group_object, int kind, float epsilon,
                         py::handle found_object, py::handle size_object) {
    require_gpu();
    const at::Tensor reward = cuda_vector(reward_object, "reward", at::kFloat);
    const std::int64_t items = reward.numel();
    const at::Tensor group = shaped(group_object, "group", at::kLong, {items}, reward.device());
    const at::Tensor found = shaped(found_object, "found", at::kFloat, {3, items}, reward.device());
    const at::Tensor size = shaped(size_object, "size", at::kInt, {items}, reward.device());
    const c10::cuda::CUDAGuard guard(reward.device());
    require_launched(group_advantages({reward.const_data_ptr<float>(), group.const_data_ptr<std::int64_t>(),
                                       static_cast<std::int32_t>(items), kind, epsilon,
                                       found.mutable_data_ptr<float>(), size.mutable_data_ptr<std::int32_t>()},
                                      c10::cuda::getCurrentCUDAStream().stream()));
}

}  // namespace

void bind_judge_score(py::module_& m) {
    m.def("judge_items", &judge_items_of, py::arg("hidden"), py::arg("head"), py::arg("tokens"), py::arg("tiles"),
          py::arg("logits"), py::arg("vocab_start"), py::arg("tables"), py::arg("inputs"), py::arg("min_mass"),
          py::arg("results"),
          "Label logits, scores and rewards in one launch; called through osim_kernels.judge_score, as are:");
    m.def("label_logits", &label_logits_of, py::arg("hidden"), py::arg("head"), py::arg("tokens"), py::arg("tiles"),
          py::arg("logits"), py::arg("vocab_start"), "The logits alone, of the tokens that this rank holds.");
    m.def("judge_logits", &judge_logits_of, py::arg("logits"), py::arg("contexts"), py::arg("tables"),
          py::arg("inputs"), py::arg("min_mass"), py::arg("results"), "Scores and rewards from the logits.");
    m.def("group_advantages", &group_advantages_of, py::arg("reward"), py::arg("group"), py::arg("kind"),
          py::arg("epsilon"), py::arg("found"), py::arg("size"), "Advantages within groups.");
}

}  // namespace osim::cuda
