// Tensors at the border to Python, for the bindings of this folder: checks that name the argument, and errors.
#pragma once

#include <ATen/core/Tensor.h>
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/python_variable.h>

#include <stdexcept>
#include <string>

namespace osim::cuda {

namespace py = pybind11;

inline void require_gpu() {
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status != cudaSuccess || devices == 0) {
        throw std::runtime_error(std::string("osim_core._cuda needs an NVIDIA GPU and driver (") +
                                 (status != cudaSuccess ? cudaGetErrorString(status) : "no device") +
                                 "); on a CPU use the twins in osim_core._native and osim_core._dedup");
    }
}

inline void require_launched(cudaError_t status) {
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string("CUDA launch failed: ") + cudaGetErrorString(status));
    }
}

// The tensor behind `object`, after checking that it is a contiguous CUDA vector of `dtype`.
inline at::Tensor cuda_vector(py::handle object, const char* name, at::ScalarType dtype) {
    const std::string prefix = std::string(name) + ": expected ";
    if (!THPVariable_Check(object.ptr())) {
        throw py::type_error(prefix + "a torch.Tensor");
    }
    at::Tensor tensor = THPVariable_Unpack(object.ptr());
    if (!tensor.is_cuda()) {
        throw py::value_error(prefix + "a CUDA tensor, got one on " + tensor.device().str());
    }
    if (tensor.scalar_type() != dtype) {
        const char* wanted = dtype == at::kInt ? "int32" : dtype == at::kFloat ? "float32" : c10::toString(dtype);
        throw py::value_error(prefix + wanted + ", got " + c10::toString(tensor.scalar_type()));
    }
    if (tensor.dim() != 1 || !tensor.is_contiguous()) {
        throw py::value_error(prefix + "a contiguous vector");
    }
    return tensor;
}

inline py::object wrapped(const at::Tensor& tensor) {
    return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
}

}  // namespace osim::cuda
