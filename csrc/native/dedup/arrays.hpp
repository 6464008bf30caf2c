// NumPy arrays in, without a copy, and out, owning the C++ memory. For the files that make up module osim_core._dedup.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "tokens.hpp"

namespace osim::dedup {

namespace nb = nanobind;

template <typename T>
using Input1d = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Input2d = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Output1d = nb::ndarray<nb::numpy, T, nb::ndim<1>, nb::c_contig>;
template <typename T>
using Output2d = nb::ndarray<nb::numpy, T, nb::ndim<2>, nb::c_contig>;

// Memory that becomes a NumPy array.
template <typename T>
class Column {
  public:
    explicit Column(std::size_t count) : values_(std::make_unique_for_overwrite<T[]>(count)), count_(count) {}

    T* data() { return values_.get(); }

    template <typename As = T>
    Output1d<As> array() && {
        auto* data = reinterpret_cast<As*>(values_.release());
        return Output1d<As>(data, {count_}, owner(data));
    }
    template <typename As = T>
    Output2d<As> matrix(std::size_t rows, std::size_t columns) && {
        auto* data = reinterpret_cast<As*>(values_.release());
        return Output2d<As>(data, {rows, columns}, owner(data));
    }

  private:
    template <typename As>
    static nb::capsule owner(As* data) {
        return nb::capsule(data, [](void* pointer) noexcept { delete[] static_cast<T*>(pointer); });
    }

    std::unique_ptr<T[]> values_;
    std::size_t count_;
};

template <typename T>
Output1d<T> array_of(const std::vector<T>& values) {
    Column<T> column(values.size());
    std::ranges::copy(values, column.data());
    return std::move(column).array();
}

inline Text text_of(const nb::bytes& bytes) {
    return {static_cast<const std::uint8_t*>(bytes.data()), bytes.size()};
}

// The functions of lines.cpp.
void bind_lines(nb::module_& m);

}  // namespace osim::dedup
