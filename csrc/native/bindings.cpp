// Python face of the torch-free C++ code: module osim_core._native (nanobind). Arrays come in without a copy
// through DLPack or the buffer protocol and go out as NumPy arrays that own the C++ memory; the GIL is released
// while C++ works. Wrong dtypes are refused, not converted. std::invalid_argument arrives as ValueError.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include <array>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "balance.hpp"
#include "batch_buffer.hpp"
#include "emulated_block.hpp"
#include "packer.hpp"

namespace nb = nanobind;

namespace {

template <typename T>
using Input1d = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Output1d = nb::ndarray<nb::numpy, T, nb::ndim<1>, nb::c_contig>;

template <typename T>
Output1d<T> to_numpy(std::unique_ptr<T[]> values, std::size_t count) {
    T* data = values.release();
    nb::capsule owner(data, [](void* pointer) noexcept { delete[] static_cast<T*>(pointer); });
    return Output1d<T>(data, {count}, owner);
}

template <typename T>
Output1d<T> to_numpy(std::vector<T>&& values) {
    auto* kept = new std::vector<T>(std::move(values));
    nb::capsule owner(kept, [](void* pointer) noexcept { delete static_cast<std::vector<T>*>(pointer); });
    return Output1d<T>(kept->data(), {kept->size()}, owner);
}

template <typename Length>
auto pack(Input1d<Length> lengths, std::int64_t capacity) {
    osim::PackedRows packed;
    const auto count = lengths.shape(0);
    {
        nb::gil_scoped_release unlocked;
        packed = osim::pack(lengths.data(), static_cast<std::int64_t>(count), capacity);
    }
    return std::make_pair(to_numpy(std::move(packed.row_offsets)), to_numpy(std::move(packed.documents), count));
}

using Loads = nb::ndarray<const std::int64_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;

Output1d<std::int32_t> balance(Loads loads, std::int64_t groups) {
    std::vector<std::int32_t> group_of_row;
    {
        nb::gil_scoped_release unlocked;
        group_of_row = osim::balance(loads.data(), static_cast<std::int64_t>(loads.shape(0)), groups);
    }
    return to_numpy(std::move(group_of_row));
}

// batch_metadata of csrc/cuda by an emulated thread block at a time: the same text, the same bits.
Output1d<std::int32_t> batch_metadata(Input1d<std::int32_t> cu_seqlens, std::optional<Input1d<std::int32_t>> parents,
                                      std::optional<Input1d<float>> weights, std::int64_t rows, std::int64_t block_q,
                                      std::int64_t block_k, std::int64_t window,
                                      std::array<std::int64_t, 4> capacity) {
    const auto borders = static_cast<std::int64_t>(cu_seqlens.shape(0));
    if (parents && static_cast<std::int64_t>(parents->shape(0)) + 1 != borders) {
        throw std::invalid_argument("parents: expected one per segment");
    }
    if (weights && static_cast<std::int64_t>(weights->shape(0)) != rows) {
        throw std::invalid_argument("weights: expected one per row");
    }
    osim::BatchMetadata batch = osim::checked_batch(
        cu_seqlens.data(), borders, parents ? parents->data() : nullptr, weights ? weights->data() : nullptr, rows,
        block_q, block_k, window, {capacity[0], capacity[1], capacity[2], capacity[3]});
    const std::int64_t size = osim::set_buffer(batch, nullptr);
    auto buffer = std::make_unique_for_overwrite<std::int32_t[]>(size);
    osim::set_buffer(batch, buffer.get());
    {
        nb::gil_scoped_release unlocked;
        const auto shared = std::make_unique_for_overwrite<osim::BlockScratch<osim::kBatchThreads>>();
        for (int index = 0; index < osim::batch_blocks(batch.packing.rows); ++index) {
            osim::EmulatedBlock<osim::kBatchThreads> block(index);
            osim::batch_metadata(block, shared.get(), batch);
        }
    }
    return to_numpy(std::move(buffer), size);
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Torch-free C++ of OSim Core: packing, balancing, the metadata of packed batches.";
    m.def("pack", &pack<std::int32_t>, nb::arg("lengths").noconvert(), nb::arg("capacity"),
          "Best-fit decreasing: (row_offsets int64 [R+1], documents int64 [N]) from lengths [N] and a capacity.");
    m.def("pack", &pack<std::int64_t>, nb::arg("lengths").noconvert(), nb::arg("capacity"));
    m.def("balance", &balance, nb::arg("loads").noconvert(), nb::arg("groups"),
          "Group of each row, int32 [N], from loads int64 [N, 2]; every group gets N / groups rows.");
    m.def("batch_metadata", &batch_metadata, nb::arg("cu_seqlens").noconvert(), nb::arg("parents").noconvert().none(),
          nb::arg("weights").noconvert().none(), nb::arg("num_rows"), nb::arg("block_q"), nb::arg("block_k"),
          nb::arg("window"), nb::arg("capacity"),
          "All tables of a packed batch in one int32 buffer (csrc/common/batch_buffer.hpp); "
          "called through osim_kernels.packed_attention.metadata.");
}
