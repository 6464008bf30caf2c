// Torch-facing face of the CUDA code: module osim_core._cuda (pybind11). Imports without a driver; a call without
// a GPU raises one RuntimeError. Work goes to torch's current stream of the argument's device and is never waited
// for. Includes single operators instead of torch/extension.h, which would cost a minute of compile time.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/headeronly/version.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../common/batch_buffer.hpp"
#include "launchers.hpp"
#include "tensors.hpp"

namespace py = pybind11;

namespace osim::cuda {
void bind_dedup(py::module_& m);        // dedup/bindings.cpp
void bind_judge_score(py::module_& m);  // judge_score/bindings.cpp
}

namespace {

using osim::cuda::cuda_vector;
using osim::cuda::require_gpu;
using osim::cuda::require_launched;

// The same for an argument that may be None and otherwise stands on the device of `first` with `length` entries.
at::Tensor optional_vector(py::handle object, const char* name, at::ScalarType dtype, const at::Tensor& first,
                           std::int64_t length) {
    if (object.is_none()) {
        return at::Tensor();
    }
    at::Tensor tensor = cuda_vector(object, name, dtype);
    if (tensor.device() != first.device()) {
        throw py::value_error(std::string(name) + ": on " + tensor.device().str() + ", cu_seqlens on " +
                              first.device().str());
    }
    if (tensor.numel() != length) {
        throw py::value_error(std::string(name) + ": expected " + std::to_string(length) + " entries, got " +
                              std::to_string(tensor.numel()));
    }
    return tensor;
}

// Borders and parents are checked by the kernel, which says so in its counts: checking here would wait for the GPU.
py::object batch_metadata(py::handle cu_seqlens_object, py::handle parents_object, py::handle weights_object,
                          std::int64_t rows, std::int64_t block_q, std::int64_t block_k, std::int64_t window,
                          const std::array<std::int64_t, 4>& capacity) {
    require_gpu();
    const at::Tensor cu_seqlens = cuda_vector(cu_seqlens_object, "cu_seqlens", at::kInt);
    const std::int64_t borders = cu_seqlens.numel();
    const at::Tensor parents = optional_vector(parents_object, "parents", at::kInt, cu_seqlens, borders - 1);
    const at::Tensor weights = optional_vector(weights_object, "weights", at::kFloat, cu_seqlens, rows);
    osim::BatchMetadata batch = osim::checked_batch(
        cu_seqlens.const_data_ptr<std::int32_t>(), borders,
        parents.defined() ? parents.const_data_ptr<std::int32_t>() : nullptr,
        weights.defined() ? weights.const_data_ptr<float>() : nullptr, rows, block_q, block_k, window,
        {capacity[0], capacity[1], capacity[2], capacity[3]});
    const c10::cuda::CUDAGuard guard(cu_seqlens.device());
    const at::Tensor buffer = at::empty({osim::set_buffer(batch, nullptr)}, cu_seqlens.options());
    osim::set_buffer(batch, buffer.mutable_data_ptr<std::int32_t>());
    require_launched(osim::cuda::batch_metadata(batch, c10::cuda::getCurrentCUDAStream().stream()));
    return osim::cuda::wrapped(buffer);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA code of OSim Core for torch tensors; the CPU twins are in osim_core._native.";
    m.attr("architectures") = OSIM_CUDA_ARCHITECTURES;
    m.attr("torch_version") = TORCH_VERSION;
    m.def("batch_metadata", &batch_metadata, py::arg("cu_seqlens"), py::arg("parents"), py::arg("weights"),
          py::arg("num_rows"), py::arg("block_q"), py::arg("block_k"), py::arg("window"), py::arg("capacity"),
          "All tables of a packed batch in one int32 buffer (csrc/common/batch_buffer.hpp), one launch; "
          "called through osim_kernels.packed_attention.metadata.");
    osim::cuda::bind_dedup(m);
    osim::cuda::bind_judge_score(m);
}
