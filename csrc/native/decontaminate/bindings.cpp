// Python face of decontamination: module osim_core._decontaminate (nanobind). Texts come as one UTF-8 buffer with
// offsets (an Arrow string column) and are not copied; the GIL is released while C++ works.
// Legend: C texts, N items, R rows, M matches.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "matcher.hpp"
#include "threads.hpp"

namespace nb = nanobind;

namespace osim::decontaminate {
namespace {

template <typename T>
using Input = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Output = nb::ndarray<nb::numpy, T, nb::ndim<1>, nb::c_contig>;

constexpr std::int64_t kRowsAtATime = 256;

void check_offsets(const Input<std::int64_t>& offsets, std::int64_t end, const char* name) {
    const std::int64_t* values = offsets.data();
    bool ordered = offsets.size() > 0 && values[0] >= 0 && values[offsets.size() - 1] <= end;
    for (std::size_t i = 1; ordered && i < offsets.size(); ++i) {
        ordered = values[i - 1] <= values[i];
    }
    if (!ordered) {
        throw std::invalid_argument(std::string(name) + " must be ascending, from 0 or more to at most " +
                                    std::to_string(end));
    }
}

std::vector<Text> texts_of(const Input<std::uint8_t>& data, const Input<std::int64_t>& offsets) {
    check_offsets(offsets, static_cast<std::int64_t>(data.size()), "text_offsets");
    std::vector<Text> texts;
    texts.reserve(offsets.size() - 1);
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
        texts.emplace_back(data.data() + offsets.data()[i], offsets.data()[i + 1] - offsets.data()[i]);
    }
    return texts;
}

template <typename T, typename Field>
Output<T> column(const std::vector<Match>& matches, Field field) {
    auto values = std::make_unique_for_overwrite<T[]>(matches.size());
    std::transform(matches.begin(), matches.end(), values.get(), field);
    T* data = values.release();
    return Output<T>(data, {matches.size()}, nb::capsule(data, [](void* p) noexcept { delete[] static_cast<T*>(p); }));
}

using Columns = std::tuple<Output<std::int64_t>, Output<std::int32_t>, Output<std::int32_t>, Output<std::int32_t>>;

Columns search(const Index& index, const Input<std::uint8_t>& data, const Input<std::int64_t>& text_offsets,
               const Input<std::int64_t>& row_offsets, int threads) {
    if (threads < 1) {
        throw std::invalid_argument("threads must be at least 1, got " + std::to_string(threads));
    }
    const std::vector<Text> texts = texts_of(data, text_offsets);
    check_offsets(row_offsets, static_cast<std::int64_t>(texts.size()), "row_offsets");
    const auto rows = static_cast<std::int64_t>(row_offsets.size()) - 1;
    std::vector<Match> matches;
    {
        nb::gil_scoped_release release;
        std::mutex lock;
        dedup::for_each_block(rows, kRowsAtATime, threads, [&] {
            return [&, searcher = Searcher(index, dedup::best_simd())](std::int64_t begin, std::int64_t end) mutable {
                std::vector<Match> found;
                for (std::int64_t row = begin; row < end; ++row) {
                    const std::int64_t first = row_offsets.data()[row];
                    const std::int64_t last = row_offsets.data()[row + 1];
                    searcher.search(row, std::span(texts).subspan(first, last - first), &found);
                }
                const std::scoped_lock hold(lock);
                matches.insert(matches.end(), found.begin(), found.end());
            };
        });
        std::sort(matches.begin(), matches.end(), [](const Match& a, const Match& b) {  // for any number of threads
            return a.row != b.row ? a.row < b.row : a.item < b.item;
        });
    }
    return {column<std::int64_t>(matches, [](const Match& m) { return m.row; }),
            column<std::int32_t>(matches, [](const Match& m) { return m.item; }),
            column<std::int32_t>(matches, [](const Match& m) { return m.longest; }),
            column<std::int32_t>(matches, [](const Match& m) { return m.covered; })};
}

}  // namespace

NB_MODULE(_decontaminate, module) {
    module.attr("GRAM") = kGram;
    module.attr("COMMON") = Index::kCommon;
    nb::class_<Index>(module, "Index")
        .def(
            "__init__",
            [](Index* self, const Input<std::uint8_t>& data, const Input<std::int64_t>& text_offsets,
               const Input<std::int32_t>& item_of, std::int32_t num_items) {
                const std::vector<Text> texts = texts_of(data, text_offsets);
                const std::span<const std::int32_t> items(item_of.data(), item_of.size());
                const auto outside = [&](std::int32_t item) { return item < 0 || item >= num_items; };
                if (items.size() != texts.size() || std::ranges::any_of(items, outside)) {
                    throw std::invalid_argument("item_of must name one of num_items items for each text");
                }
                nb::gil_scoped_release release;
                new (self) Index(texts, items, num_items, dedup::best_simd());
            },
            nb::arg("data"), nb::arg("text_offsets"), nb::arg("item_of"), nb::arg("num_items"))
        .def_prop_ro("lengths",
                     [](const Index& self) {
                         return Output<const std::int32_t>(self.lengths().data(), {self.lengths().size()},
                                                           nb::find(self));
                     })
        .def("search", &search, nb::arg("data"), nb::arg("text_offsets"), nb::arg("row_offsets"),
             nb::arg("threads") = 1);
}

}  // namespace osim::decontaminate
