// Near-duplicate detection on the GPU for torch tensors; osim_core/corpus/dedup/cuda.py is its user. Work goes to
// torch's current stream and is not waited for. Legend: N texts, W of them long, K lanes of a signature, B bands.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <pybind11/pybind11.h>

#include <cstdint>

#include "../tensors.hpp"
#include "launchers.hpp"

namespace osim::cuda {
namespace {

// What cannot be checked without waiting is up to the caller: ascending offsets that end within the data, texts below
// 2 GiB, rows a permutation that begins with the W texts of least_wide_bytes or more.
py::tuple sketch_texts(py::handle data_object, py::handle offsets_object, py::handle rows_object,
                       std::int64_t long_texts, double threshold, bool signatures) {
    require_gpu();
    const at::Tensor data = cuda_vector(data_object, "data", at::kByte);
    const at::Tensor offsets = cuda_vector(offsets_object, "offsets", at::kLong);
    const at::Tensor rows = cuda_vector(rows_object, "rows", at::kInt);
    const std::int64_t texts = rows.numel();
    if (data.numel() % kBlockBytes != 0 || reinterpret_cast<std::uintptr_t>(data.const_data_ptr()) % kBlockBytes != 0) {
        throw py::value_error("data: expected 16-byte aligned memory and a multiple of 16 bytes");
    }
    if (offsets.numel() != texts + 1 || long_texts < 0 || long_texts > texts) {
        throw py::value_error("expected one offset more than there are rows, and no more long texts than rows");
    }
    const c10::cuda::CUDAGuard guard(data.device());
    const auto column = [&](at::IntArrayRef shape, at::ScalarType dtype) {
        return at::empty(shape, data.options().dtype(dtype));
    };
    const at::Tensor hashes = column({texts, 2}, at::kUInt64);
    const at::Tensor widths = column({texts}, at::kByte);
    const at::Tensor keys = column({kBands, texts}, at::kUInt32);
    const at::Tensor digits = column({texts, kLanes / 16}, at::kUInt64);
    const at::Tensor lanes = column({signatures ? texts : 0, kLanes}, at::kUInt16);
    const at::Tensor wide_keys = column({long_texts, kBands}, at::kUInt32);
    SketchJob job{data.const_data_ptr<std::uint8_t>(),
                  offsets.const_data_ptr<std::int64_t>(),
                  reinterpret_cast<const std::uint32_t*>(rows.const_data_ptr<std::int32_t>()),
                  texts,
                  wide_from(threshold),
                  static_cast<ExactHash*>(hashes.mutable_data_ptr()),
                  widths.mutable_data_ptr<std::uint8_t>(),
                  static_cast<std::uint32_t*>(keys.mutable_data_ptr()),
                  static_cast<Digits*>(digits.mutable_data_ptr()),
                  signatures ? static_cast<std::uint16_t*>(lanes.mutable_data_ptr()) : nullptr,
                  static_cast<std::uint32_t*>(wide_keys.mutable_data_ptr())};
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
    require_launched(sketch(job, long_texts, true, stream));
    job.rows += long_texts;
    require_launched(sketch(job, texts - long_texts, false, stream));
    return py::make_tuple(wrapped(hashes), wrapped(widths), wrapped(keys), wrapped(digits), wrapped(lanes),
                          wrapped(wide_keys));
}

}  // namespace

void bind_dedup(py::module_& m) {
    m.def("sketch_texts", &sketch_texts, py::arg("data"), py::arg("offsets"), py::arg("rows"), py::arg("long_texts"),
          py::arg("threshold"), py::arg("signatures"),
          "(hashes uint64 [N, 2], widths uint8 [N], keys uint32 [B, N], digits uint64 [N, K / 16], signatures uint16 "
          "[N, K] or [0, K], wide_keys uint32 [W, B], set where widths are 2 or 3) of texts in data uint8, padded to "
          "16 bytes, with offsets int64 [N + 1]; rows int32 [N] lists the W long texts first.");
    m.def("least_wide_bytes", [](double threshold) { return least_wide_bytes(wide_from(threshold)); },
          py::arg("threshold"), "Bytes from which a text counts as long.");
}

}  // namespace osim::cuda
