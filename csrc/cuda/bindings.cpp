// Torch-facing face of the CUDA code: module osim_core._cuda (pybind11). Imports without a driver; a call without
// a GPU raises one RuntimeError. Work goes to torch's current stream of the argument's device and is never waited
// for. Includes single operators instead of torch/extension.h, which would cost a minute of compile time.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/headeronly/version.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "launchers.hpp"

namespace py = pybind11;

namespace {

void require_gpu() {
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status != cudaSuccess || devices == 0) {
        throw std::runtime_error(std::string("osim_core._cuda needs an NVIDIA GPU and driver (") +
                                 (status != cudaSuccess ? cudaGetErrorString(status) : "no device") +
                                 "); on a CPU use the same functions of osim_core._native");
    }
}

void require_launched(cudaError_t status) {
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string("CUDA launch failed: ") + cudaGetErrorString(status));
    }
}

// The tensor behind `object`, after checking that it is a contiguous CUDA int32 vector of at least two borders.
at::Tensor cu_seqlens_tensor(py::handle object) {
    if (!THPVariable_Check(object.ptr())) {
        throw py::type_error("cu_seqlens: expected a torch.Tensor");
    }
    at::Tensor tensor = THPVariable_Unpack(object.ptr());
    if (!tensor.is_cuda()) {
        throw py::value_error("cu_seqlens: expected a CUDA tensor, got one on " + tensor.device().str());
    }
    if (tensor.scalar_type() != at::kInt) {
        throw py::value_error(std::string("cu_seqlens: expected int32, got ") + c10::toString(tensor.scalar_type()));
    }
    if (tensor.dim() != 1 || !tensor.is_contiguous() || tensor.numel() < 2) {
        throw py::value_error("cu_seqlens: expected a contiguous vector of at least two borders");
    }
    if (tensor.numel() > std::numeric_limits<std::int32_t>::max()) {
        throw py::value_error("cu_seqlens: more than 2^31 - 1 borders");
    }
    return tensor;
}

py::object wrap(const at::Tensor& tensor) { return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor)); }

// cu_seqlens must end at `tokens`; checking that here would wait for the GPU, so PackedBatch checks it on the host.
py::tuple packed_metadata(py::handle cu_seqlens_object, std::int64_t tokens) {
    require_gpu();
    const at::Tensor cu_seqlens = cu_seqlens_tensor(cu_seqlens_object);
    if (tokens < 0 || tokens > std::numeric_limits<std::int32_t>::max()) {
        throw py::value_error("tokens: " + std::to_string(tokens) + " is not between 0 and 2^31 - 1");
    }
    const c10::cuda::CUDAGuard guard(cu_seqlens.device());
    const at::Tensor segments = at::empty({tokens}, cu_seqlens.options());
    const at::Tensor positions = at::empty({tokens}, cu_seqlens.options());
    if (tokens > 0) {  // a grid of zero blocks is a launch error
        require_launched(osim::cuda::packed_metadata(
            cu_seqlens.const_data_ptr<std::int32_t>(), static_cast<std::int32_t>(cu_seqlens.numel() - 1),
            static_cast<std::int32_t>(tokens), segments.mutable_data_ptr<std::int32_t>(),
            positions.mutable_data_ptr<std::int32_t>(), c10::cuda::getCurrentCUDAStream().stream()));
    }
    return py::make_tuple(wrap(segments), wrap(positions));
}

py::object squared_lengths(py::handle cu_seqlens_object) {
    require_gpu();
    const at::Tensor cu_seqlens = cu_seqlens_tensor(cu_seqlens_object);
    const c10::cuda::CUDAGuard guard(cu_seqlens.device());
    const std::int64_t segments = cu_seqlens.numel() - 1;
    const at::Tensor squares = at::empty({segments}, cu_seqlens.options().dtype(at::kLong));
    require_launched(osim::cuda::squared_lengths(
        cu_seqlens.const_data_ptr<std::int32_t>(), static_cast<std::int32_t>(segments),
        squares.mutable_data_ptr<std::int64_t>(), c10::cuda::getCurrentCUDAStream().stream()));
    return wrap(squares);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA code of OSim Core for torch tensors; the CPU twins are in osim_core._native.";
    m.attr("architectures") = OSIM_CUDA_ARCHITECTURES;
    m.attr("torch_version") = TORCH_VERSION;
    m.def("packed_metadata", &packed_metadata, py::arg("cu_seqlens"), py::arg("tokens"),
          "(segments int32 [T], positions int32 [T]) of a packed row from CUDA cu_seqlens int32 [S+1].");
    m.def("squared_lengths", &squared_lengths, py::arg("cu_seqlens"),
          "Squared segment lengths, int64 [S], from CUDA cu_seqlens int32 [S+1].");
}
