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

template <typename T, typename Record, typename Field>
Output<T> column(const std::vector<Record>& records, Field Record::* field) {
    auto values = std::make_unique_for_overwrite<T[]>(records.size());
    std::ranges::transform(records, values.get(), field);
    T* data = values.release();
    return Output<T>(data, {records.size()}, nb::capsule(data, [](void* p) noexcept { delete[] static_cast<T*>(p); }));
}

// What visit(searcher, row, turns, found) finds in all rows, by row and item for any number of threads.
template <typename Record, typename Visit>
std::vector<Record> each_row(const Index& index, const Input<std::uint8_t>& data,
                             const Input<std::int64_t>& text_offsets, const Input<std::int64_t>& row_offsets,
                             int threads, Visit visit) {
    if (threads < 1) {
        throw std::invalid_argument("threads must be at least 1, got " + std::to_string(threads));
    }
    const std::vector<Text> texts = texts_of(data, text_offsets);
    check_offsets(row_offsets, static_cast<std::int64_t>(texts.size()), "row_offsets");
    const auto rows = static_cast<std::int64_t>(row_offsets.size()) - 1;
    std::vector<Record> records;
    const nb::gil_scoped_release release;
    std::mutex lock;
    dedup::for_each_block(rows, kRowsAtATime, threads, [&] {
        return [&, searcher = Searcher(index, dedup::best_simd())](std::int64_t begin, std::int64_t end) mutable {
            std::vector<Record> found;
            for (std::int64_t row = begin; row < end; ++row) {
                const std::int64_t first = row_offsets.data()[row];
                const std::int64_t last = row_offsets.data()[row + 1];
                visit(searcher, row, std::span(texts).subspan(first, last - first), &found);
            }
            const std::scoped_lock hold(lock);
            records.insert(records.end(), found.begin(), found.end());
        };
    });
    std::ranges::stable_sort(records, {}, &Record::row);  // a row's records are in the order of items already
    return records;
}

using Matches = std::tuple<Output<std::int64_t>, Output<std::int32_t>, Output<std::int32_t>, Output<std::int32_t>>;

Matches search(const Index& index, const Input<std::uint8_t>& data, const Input<std::int64_t>& text_offsets,
               const Input<std::int64_t>& row_offsets, int threads) {
    const auto matches = each_row<Match>(
        index, data, text_offsets, row_offsets, threads,
        [](Searcher& searcher, std::int64_t row, auto turns, auto* found) { searcher.search(row, turns, found); });
    return {column<std::int64_t>(matches, &Match::row), column<std::int32_t>(matches, &Match::item),
            column<std::int32_t>(matches, &Match::longest), column<std::int32_t>(matches, &Match::covered)};
}

using Spans = std::tuple<Output<std::int64_t>, Output<std::int32_t>, Output<std::int32_t>, Output<std::int64_t>,
                         Output<std::int64_t>>;

Spans locate(const Index& index, const Input<std::uint8_t>& data, const Input<std::int64_t>& text_offsets,
             const Input<std::int64_t>& row_offsets, int threads) {
    const auto spans = each_row<Span>(
        index, data, text_offsets, row_offsets, threads,
        [](Searcher& searcher, std::int64_t row, auto turns, auto* found) { searcher.locate(row, turns, found); });
    return {column<std::int64_t>(spans, &Span::row), column<std::int32_t>(spans, &Span::item),
            column<std::int32_t>(spans, &Span::turn), column<std::int64_t>(spans, &Span::begin),
            column<std::int64_t>(spans, &Span::end)};
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
             nb::arg("threads") = 1, "(row, item, longest, covered) of each row and item that share a run.")
        .def("locate", &locate, nb::arg("data"), nb::arg("text_offsets"), nb::arg("row_offsets"),
             nb::arg("threads") = 1, "(row, item, turn, begin, end) of each shared run and turn, in bytes.");
}

}  // namespace osim::decontaminate
