// Python face of the torch-free C++ code: module osim_core._native (nanobind). Arrays come in without a copy
// through DLPack or the buffer protocol and go out as NumPy arrays that own the C++ memory; the GIL is released
// while C++ works. Wrong dtypes are refused, not converted. std::invalid_argument arrives as ValueError.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "balance.hpp"
#include "packed_metadata.hpp"
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

// Number of segments, after checking that cu_seqlens starts at 0, never decreases and ends at `tokens`.
std::int32_t checked_segments(const Input1d<std::int32_t>& cu_seqlens, std::int64_t tokens) {
    const auto borders = cu_seqlens.shape(0);
    const std::int32_t* border = cu_seqlens.data();
    if (borders < 2 || border[0] != 0) {
        throw std::invalid_argument("cu_seqlens must start at 0 and hold at least one segment");
    }
    for (std::size_t s = 1; s < borders; ++s) {
        if (border[s] < border[s - 1]) {
            throw std::invalid_argument("cu_seqlens decreases at entry " + std::to_string(s));
        }
    }
    if (border[borders - 1] != tokens) {
        throw std::invalid_argument("cu_seqlens ends at " + std::to_string(border[borders - 1]) + ", not at " +
                                    std::to_string(tokens) + " tokens");
    }
    return static_cast<std::int32_t>(borders - 1);
}

auto packed_metadata(Input1d<std::int32_t> cu_seqlens, std::int64_t tokens) {
    const std::int32_t segments = checked_segments(cu_seqlens, tokens);
    auto segment_of = std::make_unique_for_overwrite<std::int32_t[]>(tokens);
    auto position = std::make_unique_for_overwrite<std::int32_t[]>(tokens);
    {
        nb::gil_scoped_release unlocked;
        for (std::int32_t token = 0; token < tokens; ++token) {
            segment_of[token] = osim::segment_of_token(cu_seqlens.data(), segments, token);
            position[token] = osim::position_in_segment(cu_seqlens.data(), segment_of[token], token);
        }
    }
    return std::make_pair(to_numpy(std::move(segment_of), tokens), to_numpy(std::move(position), tokens));
}

Output1d<std::int64_t> squared_lengths(Input1d<std::int32_t> cu_seqlens) {
    const auto borders = cu_seqlens.shape(0);
    const std::int32_t segments = checked_segments(cu_seqlens, borders > 0 ? cu_seqlens(borders - 1) : 0);
    std::vector<std::int64_t> squares(segments);
    for (std::int32_t segment = 0; segment < segments; ++segment) {
        squares[segment] = osim::squared_length(cu_seqlens.data(), segment);
    }
    return to_numpy(std::move(squares));
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Torch-free C++ of OSim Core: packing, balancing, packed-row metadata.";
    m.def("pack", &pack<std::int32_t>, nb::arg("lengths").noconvert(), nb::arg("capacity"),
          "Best-fit decreasing: (row_offsets int64 [R+1], documents int64 [N]) from lengths [N] and a capacity.");
    m.def("pack", &pack<std::int64_t>, nb::arg("lengths").noconvert(), nb::arg("capacity"));
    m.def("balance", &balance, nb::arg("loads").noconvert(), nb::arg("groups"),
          "Group of each row, int32 [N], from loads int64 [N, 2]; every group gets N / groups rows.");
    m.def("packed_metadata", &packed_metadata, nb::arg("cu_seqlens").noconvert(), nb::arg("tokens"),
          "(segments int32 [T], positions int32 [T]) of a packed row from cu_seqlens int32 [S+1].");
    m.def("squared_lengths", &squared_lengths, nb::arg("cu_seqlens").noconvert(),
          "Squared segment lengths, int64 [S], from cu_seqlens int32 [S+1].");
}
