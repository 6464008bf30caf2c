// Python face of near-duplicate detection: module osim_core._dedup (nanobind). Arrays come in without a copy (NumPy,
// Arrow buffers) and go out as NumPy arrays that own the C++ memory; the GIL is released while C++ works.
// Legend: N texts, K lanes of a signature, B bands, M texts with wide lanes, S shingles.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "cluster.hpp"
#include "jsonl.hpp"
#include "mask.hpp"
#include "shingle_set.hpp"
#include "sketch.hpp"
#include "stored.hpp"
#include "threads.hpp"

namespace osim::dedup {
namespace {

// Texts as an Arrow string column has them: one buffer of bytes, N + 1 offsets.
class BufferTexts : public Texts {
  public:
    BufferTexts(const Input1d<std::uint8_t>& data, const Input1d<std::int64_t>& offsets)
        : data_(data.data()), offsets_(offsets.data()), count_(static_cast<std::int64_t>(offsets.shape(0)) - 1) {
        if (count_ < 0) {
            throw std::invalid_argument("offsets must hold one more entry than there are texts");
        }
        for (std::int64_t row = 0; row <= count_; ++row) {
            const std::int64_t before = row == 0 ? 0 : offsets_[row - 1];
            if (offsets_[row] < before || offsets_[row] > static_cast<std::int64_t>(data.shape(0))) {
                throw std::invalid_argument("offsets[" + std::to_string(row) + "] = " +
                                            std::to_string(offsets_[row]) + " decreases or is past the data");
            }
            if (offsets_[row] - before >= std::int64_t{1} << 31) {
                throw std::invalid_argument("text " + std::to_string(row - 1) + " is 2 GiB or longer");
            }
        }
    }

    std::int64_t count() const { return count_; }
    Text text(std::int64_t row) const {
        return {data_ + offsets_[row], static_cast<std::size_t>(offsets_[row + 1] - offsets_[row])};
    }
    Text read(std::int64_t row, std::vector<std::uint8_t>&) const override { return text(row); }
    void prefetch(std::int64_t row) const override {
        constexpr std::size_t kLine = 64;
        const Text bytes = text(row);
        for (std::size_t at = 0; at < std::min(bytes.size(), kPrefetchBytes); at += kLine) {
            __builtin_prefetch(bytes.data() + at);
        }
    }

  private:
    static constexpr std::size_t kPrefetchBytes = 2048;  // then the processor goes on by itself

    const std::uint8_t* data_;
    const std::int64_t* offsets_;
    std::int64_t count_;
};

Simd simd_of(bool scalar) { return scalar ? Simd::kScalar : best_simd(); }

auto sketched(const std::function<Text(std::int64_t)>& text, std::int64_t rows, double threshold, int threads,
              bool signatures, bool scalar) {
    const auto count = static_cast<std::size_t>(rows);
    Column<ExactHash> hashes(count);
    Column<Width> widths(count);
    Column<std::uint32_t> keys(count * kBands);
    Column<Digits> digits(count);
    Column<std::uint16_t> lanes(signatures ? count * kLanes : 0);
    std::vector<WideKeys> wide;
    {
        nb::gil_scoped_release unlocked;
        sketch(text, rows, threshold, threads, simd_of(scalar),
               {hashes.data(), widths.data(), keys.data(), digits.data(), signatures ? lanes.data() : nullptr, &wide});
    }
    Column<std::int64_t> wide_rows(wide.size());
    Column<std::uint32_t> wide_keys(wide.size() * kBands);
    for (std::size_t i = 0; i < wide.size(); ++i) {
        wide_rows.data()[i] = wide[i].row;
        std::copy(wide[i].keys.begin(), wide[i].keys.end(), wide_keys.data() + i * kBands);
    }
    return std::make_tuple(std::move(hashes).matrix<std::uint64_t>(count, 2), std::move(widths).array<std::uint8_t>(),
                           std::move(keys).matrix(kBands, count),
                           std::move(digits).matrix<std::uint64_t>(count, kLanes / 16),
                           std::move(lanes).matrix(signatures ? count : 0, kLanes), std::move(wide_rows).array(),
                           std::move(wide_keys).matrix(wide.size(), kBands));
}

auto sketch_texts(Input1d<std::uint8_t> data, Input1d<std::int64_t> offsets, double threshold, int threads,
                  bool signatures, bool scalar) {
    const BufferTexts texts(data, offsets);
    return sketched([&](std::int64_t row) { return texts.text(row); }, texts.count(), threshold, threads, signatures,
                    scalar);
}

Mask mask_of(bool roles, const Input1d<std::uint64_t>& prompts) {
    return {roles, {prompts.data(), prompts.shape(0)}};
}

void require_within(const Input1d<std::uint8_t>& chunk, const Input1d<std::int64_t>& begins,
                    const Input1d<std::uint32_t>& lengths) {
    for (std::size_t i = 0; i < begins.shape(0); ++i) {
        if (begins(i) < 0 || begins(i) + lengths(i) > static_cast<std::int64_t>(chunk.shape(0))) {
            throw std::invalid_argument("text " + std::to_string(i) + " is past the chunk");
        }
    }
}

// Sketches of the JSON strings at these places of a chunk, and the bytes of the decoded texts.
auto sketch_lines(Input1d<std::uint8_t> chunk, Input1d<std::int64_t> begins, Input1d<std::uint32_t> lengths,
                  bool roles, Input1d<std::uint64_t> prompts, double threshold, int threads, bool signatures,
                  bool scalar) {
    const Mask mask = mask_of(roles, prompts);
    std::atomic<std::int64_t> bytes{0};
    require_within(chunk, begins, lengths);
    auto columns = sketched(
        [&](std::int64_t row) -> Text {
            thread_local std::vector<std::uint8_t> decoded;
            decoded.clear();
            unescape({chunk.data() + begins(row), lengths(row)}, decoded);
            mask.apply(decoded);
            bytes.fetch_add(static_cast<std::int64_t>(decoded.size()), std::memory_order_relaxed);
            return decoded;
        },
        static_cast<std::int64_t>(begins.shape(0)), threshold, threads, signatures, scalar);
    return std::make_pair(std::move(columns), bytes.load());
}

// The texts that `sketch_lines` sketches, one after the other: bytes and N + 1 offsets, for a sketcher elsewhere.
auto decode_lines(Input1d<std::uint8_t> chunk, Input1d<std::int64_t> begins, Input1d<std::uint32_t> lengths,
                  bool roles, Input1d<std::uint64_t> prompts, int threads) {
    constexpr std::int64_t kBlock = 256;
    const Mask mask = mask_of(roles, prompts);
    require_within(chunk, begins, lengths);
    const auto count = static_cast<std::int64_t>(begins.shape(0));
    Column<std::int64_t> offsets(count + 1);
    std::vector<std::vector<std::uint8_t>> blocks((count + kBlock - 1) / kBlock);
    {
        nb::gil_scoped_release unlocked;
        for_each_block(count, kBlock, threads, [&] {
            return [&](std::int64_t begin, std::int64_t end) {
                std::vector<std::uint8_t>& block = blocks[begin / kBlock];
                for (std::int64_t row = begin; row < end; ++row) {
                    const std::size_t before = block.size();
                    unescape({chunk.data() + begins(row), lengths(row)}, block);
                    mask.apply(std::span(block).subspan(before));
                    offsets.data()[row + 1] = static_cast<std::int64_t>(block.size() - before);
                }
            };
        });
        offsets.data()[0] = 0;
        std::partial_sum(offsets.data(), offsets.data() + count + 1, offsets.data());
    }
    Column<std::uint8_t> data(offsets.data()[count]);
    {
        nb::gil_scoped_release unlocked;
        for_each_block(count, kBlock, threads, [&] {
            return [&](std::int64_t begin, std::int64_t) {
                std::ranges::copy(blocks[begin / kBlock], data.data() + offsets.data()[begin]);
            };
        });
    }
    return std::make_pair(std::move(data).array(), std::move(offsets).array());
}

// Columns of sketches that both ways of clustering take.
struct Sketches {
    Input2d<std::uint64_t> hashes;
    Input1d<std::uint8_t> widths;
    Input2d<std::uint64_t> digits;
    Input1d<std::int64_t> wide_rows;
    Input2d<std::uint32_t> wide_keys;
    std::optional<Input1d<std::int32_t>> priorities;
};

auto clustered(const Sketches& columns, const Texts& texts, std::int64_t rows,
               const std::function<const std::uint32_t*(int, std::vector<std::uint32_t>&)>& band, double threshold,
               int threads, bool scalar, const std::function<void(int)>& progress = {},
               const std::function<KeyRuns(int)>& runs = {}) {
    const auto count = static_cast<std::size_t>(rows);
    if (columns.hashes.shape(0) != count || columns.hashes.shape(1) != 2 || columns.widths.shape(0) != count ||
        columns.digits.shape(0) != count || columns.digits.shape(1) != kLanes / 16 ||
        columns.wide_keys.shape(0) != columns.wide_rows.shape(0) || columns.wide_keys.shape(1) != kBands ||
        (columns.priorities && columns.priorities->shape(0) != count)) {
        throw std::invalid_argument("sketch columns do not belong to these " + std::to_string(count) + " texts");
    }
    std::vector<WideKeys> wide(columns.wide_rows.shape(0));
    for (std::size_t i = 0; i < wide.size(); ++i) {
        wide[i].row = columns.wide_rows(i);
        if (wide[i].row < 0 || wide[i].row >= rows) {
            throw std::invalid_argument("wide_rows[" + std::to_string(i) + "] is not a row");
        }
        std::copy_n(columns.wide_keys.data() + i * kBands, kBands, wide[i].keys.begin());
    }
    Column<std::int64_t> survivor(count);
    Column<float> jaccard(count);
    ClusterStatistics statistics;
    {
        nb::gil_scoped_release unlocked;
        ClusterInput input;
        input.count = rows;
        input.hashes = reinterpret_cast<const ExactHash*>(columns.hashes.data());
        input.widths = reinterpret_cast<const Width*>(columns.widths.data());
        input.digits = reinterpret_cast<const Digits*>(columns.digits.data());
        input.band = band;
        input.wide = wide;
        input.texts = &texts;
        input.priorities = columns.priorities ? columns.priorities->data() : nullptr;
        input.threshold = threshold;
        input.progress = progress;
        input.runs = runs;
        statistics = cluster(input, threads, simd_of(scalar), survivor.data(), jaccard.data());
    }
    return std::make_tuple(std::move(survivor).array(), std::move(jaccard).array(),
                           std::make_tuple(statistics.exact, statistics.candidates, statistics.verified,
                                           statistics.accepted));
}

// For each band the rows and borders of KeyRuns, as another device sorted them.
using SortedBands = std::vector<std::pair<Input1d<std::uint32_t>, Input1d<std::int64_t>>>;

void require_runs(const SortedBands& bands, std::size_t count) {
    if (bands.size() != kBands) {
        throw std::invalid_argument("runs: expected " + std::to_string(kBands) + " bands, got " +
                                    std::to_string(bands.size()));
    }
    for (const auto& [rows, borders] : bands) {
        const std::span<const std::uint32_t> row(rows.data(), rows.shape(0));
        const std::span<const std::int64_t> border(borders.data(), borders.shape(0));
        if (border.empty() || border.front() != 0 || border.back() != static_cast<std::int64_t>(row.size()) ||
            !std::ranges::is_sorted(border) || std::ranges::any_of(row, [&](auto r) { return r >= count; })) {
            throw std::invalid_argument("runs: borders must ascend from 0 to the number of rows, rows be below " +
                                        std::to_string(count));
        }
    }
}

auto cluster_texts(Input1d<std::uint8_t> data, Input1d<std::int64_t> offsets, Input2d<std::uint64_t> hashes,
                   Input1d<std::uint8_t> widths, Input2d<std::uint32_t> keys, Input2d<std::uint64_t> digits,
                   Input1d<std::int64_t> wide_rows, Input2d<std::uint32_t> wide_keys,
                   std::optional<Input1d<std::int32_t>> priorities, double threshold, int threads, bool scalar,
                   const std::optional<SortedBands>& runs) {
    const BufferTexts texts(data, offsets);
    const auto count = static_cast<std::size_t>(texts.count());
    if (keys.shape(0) != kBands || keys.shape(1) != count) {
        throw std::invalid_argument("band keys do not belong to these " + std::to_string(count) + " texts");
    }
    std::function<KeyRuns(int)> sorted_band;
    if (runs) {
        require_runs(*runs, count);
        sorted_band = [&](int band) -> KeyRuns {
            const auto& [rows, borders] = (*runs)[band];
            return {{rows.data(), rows.shape(0)}, {borders.data(), borders.shape(0)}};
        };
    }
    return clustered({hashes, widths, digits, wide_rows, wide_keys, priorities}, texts, texts.count(),
                     [&](int band, std::vector<std::uint32_t>&) { return keys.data() + band * count; }, threshold,
                     threads, scalar, {}, sorted_band);
}

using Extents = Input2d<std::int64_t>;

// [F, 3]: first row, offset, descriptor.
std::vector<Extent> extents_of(const Extents& table) {
    std::vector<Extent> extents;
    for (std::size_t i = 0; i < table.shape(0); ++i) {
        extents.push_back({table(i, 0), table(i, 1), static_cast<int>(table(i, 2))});
    }
    return extents;
}

auto cluster_stored(Extents sources, Extents parts, Input1d<std::int64_t> begins, Input1d<std::uint32_t> lengths,
                    bool roles, Input1d<std::uint64_t> prompts, Input2d<std::uint64_t> hashes,
                    Input1d<std::uint8_t> widths, Input2d<std::uint64_t> digits, Input1d<std::int64_t> wide_rows,
                    Input2d<std::uint32_t> wide_keys, std::optional<Input1d<std::int32_t>> priorities,
                    double threshold, int threads, bool scalar, nb::object progress) {
    const auto count = static_cast<std::int64_t>(begins.shape(0));
    const JsonlTexts texts(extents_of(sources), begins.data(), lengths.data(), mask_of(roles, prompts));
    const std::vector<Extent> columns = extents_of(parts);
    const auto band = [&](int number, std::vector<std::uint32_t>& column) {
        return read_band(columns, count, number, column);
    };
    const auto report = [&](int bands) {
        const nb::gil_scoped_acquire locked;
        progress(bands, kBands);
    };
    return clustered({hashes, widths, digits, wide_rows, wide_keys, priorities}, texts, count, band, threshold, threads,
                     scalar, report);
}

Output1d<std::uint64_t> token_hashes(nb::bytes text, bool scalar) {
    Tokeniser tokeniser(simd_of(scalar));
    const auto tokens = tokeniser.tokens(text_of(text));
    Column<std::uint64_t> out(tokens.size());
    std::copy(tokens.begin(), tokens.end(), out.data());
    return std::move(out).array();
}

Output1d<std::uint32_t> shingle_hashes(nb::bytes text, bool scalar) {
    Tokeniser tokeniser(simd_of(scalar));
    tokeniser.tokens(text_of(text));
    const auto shingles = tokeniser.shingles();
    Column<std::uint32_t> out(shingles.size());
    std::copy(shingles.begin(), shingles.end(), out.data());
    return std::move(out).array();
}

// Lanes of sets of shingles; minhash16 or minhash32 makes them.
template <typename Lane>
Output2d<Lane> minhash(Input1d<std::uint32_t> shingles, Input1d<std::int64_t> offsets, bool scalar,
                       void (*lanes_of)(const std::uint32_t*, std::size_t, Simd, Lane*)) {
    const auto count = offsets.shape(0) - 1;
    for (std::size_t i = 0; i < count; ++i) {
        if (offsets(i) < 0 || offsets(i + 1) <= offsets(i) ||
            offsets(i + 1) > static_cast<std::int64_t>(shingles.shape(0))) {
            throw std::invalid_argument("set " + std::to_string(i) + " is empty or past the shingles");
        }
    }
    Column<Lane> out(count * kLanes);
    {
        nb::gil_scoped_release unlocked;
        for (std::size_t i = 0; i < count; ++i) {
            lanes_of(shingles.data() + offsets(i), static_cast<std::size_t>(offsets(i + 1) - offsets(i)),
                     simd_of(scalar), out.data() + i * kLanes);
        }
    }
    return std::move(out).matrix(count, kLanes);
}

Output2d<std::uint32_t> band_keys(Input2d<std::uint16_t> lanes) {
    const std::size_t count = lanes.shape(0);
    if (lanes.shape(1) != kLanes) {
        throw std::invalid_argument("signatures have " + std::to_string(kLanes) + " lanes");
    }
    Column<std::uint32_t> keys(kBands * count);
    for (std::size_t i = 0; i < count; ++i) {
        for (int band = 0; band < kBands; ++band) {
            keys.data()[band * count + i] = band_key(lanes.data() + i * kLanes + band * kRows);
        }
    }
    return std::move(keys).matrix(kBands, count);
}

}  // namespace
}  // namespace osim::dedup

NB_MODULE(_dedup, m) {
    using namespace osim::dedup;
    bind_lines(m);
    m.doc() = "Near-duplicates in C++: tokens, shingles, MinHash, clusters; osim_core.corpus.dedup is its user.";
    m.attr("LANES") = osim::kLanes;
    m.attr("BANDS") = osim::kBands;
    m.attr("ROWS") = osim::kRows;
    m.attr("WIDE_SHINGLES") = osim::kWideShingles;
    m.attr("SIMD") = best_simd() == Simd::kAvx2 ? "avx2" : "scalar";
    m.def("sketch", &sketch_texts, nb::arg("data").noconvert(), nb::arg("offsets").noconvert(), nb::arg("threshold"),
          nb::arg("threads"), nb::arg("signatures"), nb::arg("scalar") = false,
          "(hashes uint64 [N, 2], widths uint8 [N], keys uint32 [B, N], digits uint64 [N, K / 16], signatures uint16 "
          "[N, K] or [0, K], wide_rows int64 [M], wide_keys uint32 [M, B]) of texts in data uint8 with offsets int64 "
          "[N + 1].");
    m.def("cluster", &cluster_texts, nb::arg("data").noconvert(), nb::arg("offsets").noconvert(),
          nb::arg("hashes").noconvert(), nb::arg("widths").noconvert(), nb::arg("keys").noconvert(),
          nb::arg("digits").noconvert(), nb::arg("wide_rows").noconvert(), nb::arg("wide_keys").noconvert(),
          nb::arg("priorities").none().noconvert(), nb::arg("threshold"), nb::arg("threads"),
          nb::arg("scalar") = false, nb::arg("runs") = nb::none(),
          "(survivor int64 [N], jaccard float32 [N], (exact, candidates, verified, accepted)) from sketches. runs: for "
          "each band (rows uint32, borders int64) of the texts that share a key with others, in place of keys.");
    m.def("sketch_lines", &sketch_lines, nb::arg("chunk").noconvert(), nb::arg("begins").noconvert(),
          nb::arg("lengths").noconvert(), nb::arg("mask_roles"), nb::arg("prompts").noconvert(), nb::arg("threshold"),
          nb::arg("threads"), nb::arg("signatures"), nb::arg("scalar") = false,
          "(columns as `sketch` gives them, bytes) of JSON strings in a chunk.");
    m.def("decode_lines", &decode_lines, nb::arg("chunk").noconvert(), nb::arg("begins").noconvert(),
          nb::arg("lengths").noconvert(), nb::arg("mask_roles"), nb::arg("prompts").noconvert(), nb::arg("threads"),
          "(data uint8, offsets int64 [N + 1]): the texts that `sketch_lines` sketches.");
    m.def("cluster_stored", &cluster_stored, nb::arg("sources").noconvert(), nb::arg("parts").noconvert(),
          nb::arg("begins").noconvert(), nb::arg("lengths").noconvert(), nb::arg("mask_roles"),
          nb::arg("prompts").noconvert(), nb::arg("hashes").noconvert(), nb::arg("widths").noconvert(),
          nb::arg("digits").noconvert(), nb::arg("wide_rows").noconvert(), nb::arg("wide_keys").noconvert(),
          nb::arg("priorities").none().noconvert(), nb::arg("threshold"),
          nb::arg("threads"), nb::arg("scalar"), nb::arg("progress"),
          "`cluster` with texts and band keys on disk; sources and parts are int64 [F, 3]: first row, offset, file "
          "descriptor. progress(bands done, bands) is called now and then.");
    m.def("mask_roles", [](nb::bytes text) {
        std::vector<std::uint8_t> masked(text_of(text).begin(), text_of(text).end());
        Mask{.roles = true, .prompts = {}}.apply(masked);
        return nb::bytes(masked.data(), masked.size());
    }, nb::arg("text"), "The text with role tags at line starts blanked.");
    m.def("tokens", &token_hashes, nb::arg("text"), nb::arg("scalar") = false, "Token hashes of UTF-8, uint64.");
    m.def("shingles", &shingle_hashes, nb::arg("text"), nb::arg("scalar") = false,
          "Hashes of all runs of five tokens, uint32 [S], repeats included.");
    m.def("minhash",
          [](Input1d<std::uint32_t> shingles, Input1d<std::int64_t> offsets, bool scalar) {
              return minhash<std::uint16_t>(shingles, offsets, scalar, minhash16);
          },
          nb::arg("shingles").noconvert(), nb::arg("offsets").noconvert(), nb::arg("scalar") = false,
          "16-bit lanes, uint16 [N, K], of non-empty sets: uint32 and offsets [N + 1].");
    m.def("minhash_wide",
          [](Input1d<std::uint32_t> shingles, Input1d<std::int64_t> offsets, bool scalar) {
              return minhash<std::uint32_t>(shingles, offsets, scalar, minhash32);
          },
          nb::arg("shingles").noconvert(), nb::arg("offsets").noconvert(), nb::arg("scalar") = false,
          "32-bit lanes, uint32 [N, K], which sets of more than WIDE_SHINGLES have.");
    m.def("band_keys", &band_keys, nb::arg("lanes").noconvert(), "uint32 [B, N] of 16-bit lanes [N, K].");
}
