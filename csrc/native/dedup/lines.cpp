// Python face of the JSON Lines scanner (jsonl.hpp): which texts a chunk of a file holds, as places in it.
// Legend: L lines, F fields, T texts.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <string>
#include <tuple>
#include <unordered_map>

#include "arrays.hpp"
#include "jsonl.hpp"
#include "mask.hpp"
#include "threads.hpp"

namespace osim::dedup {
namespace {

// The non-blank lines of a chunk.
struct Lines {
    std::vector<std::int64_t> numbers;
    std::vector<Text> texts;
    std::int64_t count = 0;  // blank ones included
};

Lines split_lines(Text chunk) {
    Lines lines;
    for (std::size_t begin = 0; begin < chunk.size(); ++lines.count) {
        const auto* stop =
            static_cast<const std::uint8_t*>(std::memchr(chunk.data() + begin, '\n', chunk.size() - begin));
        const std::size_t end = stop == nullptr ? chunk.size() : static_cast<std::size_t>(stop - chunk.data());
        const Text line = chunk.subspan(begin, end - begin);
        if (!std::ranges::all_of(line, [](std::uint8_t c) { return c == ' ' || c == '\t' || c == '\r'; })) {
            lines.numbers.push_back(lines.count);
            lines.texts.push_back(line);
        }
        begin = end + 1;
    }
    return lines;
}

// F fields of the lines of a chunk: line numbers, begin and length of each field's raw string, error codes.
auto scan_lines(Input1d<std::uint8_t> chunk, const std::vector<nb::bytes>& fields, std::size_t longest, int threads) {
    const Text data(chunk.data(), chunk.shape(0));
    std::vector<Bytes> wanted(fields.size());
    std::ranges::transform(fields, wanted.begin(), text_of);
    Lines lines;
    {
        nb::gil_scoped_release unlocked;
        lines = split_lines(data);
    }
    const std::size_t count = lines.texts.size();
    Column<std::int64_t> begins(count * wanted.size());
    Column<std::uint32_t> lengths(count * wanted.size());
    Column<std::uint8_t> errors(count * wanted.size());
    {
        nb::gil_scoped_release unlocked;
        for_each_block(static_cast<std::int64_t>(count), 256, threads, [&] {
            return [&, found = std::vector<Located>(wanted.size())](std::int64_t begin, std::int64_t end) mutable {
                for (std::int64_t i = begin; i < end; ++i) {
                    const Text line = lines.texts[i];
                    if (line.size() > longest) {
                        std::ranges::fill(found, Located{.error = RowError::kTooLong});
                    } else {
                        locate(line, wanted, found);
                    }
                    for (std::size_t field = 0; field < found.size(); ++field) {
                        const std::size_t at = field * count + i;
                        begins.data()[at] = line.data() - data.data() + static_cast<std::int64_t>(found[field].begin);
                        lengths.data()[at] = static_cast<std::uint32_t>(found[field].end - found[field].begin);
                        errors.data()[at] = static_cast<std::uint8_t>(found[field].error);
                    }
                }
            };
        });
    }
    return std::make_tuple(array_of(lines.numbers), std::move(begins).matrix(wanted.size(), count),
                           std::move(lengths).matrix(wanted.size(), count),
                           std::move(errors).matrix(wanted.size(), count), lines.count);
}

// Messages of the lines of a chunk: line numbers, messages and error code of each line, and of each message its begin
// and length and whether the system says it.
auto scan_messages(Input1d<std::uint8_t> chunk, std::size_t longest, int threads) {
    const Text data(chunk.data(), chunk.shape(0));
    Lines lines;
    std::vector<std::vector<Message>> blocks;  // of 256 lines each, in order
    std::vector<std::int32_t> counts;
    std::vector<std::uint8_t> errors;
    std::size_t total = 0;
    {
        nb::gil_scoped_release unlocked;
        lines = split_lines(data);
        const auto count = static_cast<std::int64_t>(lines.texts.size());
        constexpr std::int64_t kBlock = 256;
        blocks.resize((count + kBlock - 1) / kBlock);
        counts.resize(count);
        errors.resize(count);
        for_each_block(count, kBlock, threads, [&] {
            return [&](std::int64_t begin, std::int64_t end) {
                std::vector<Message>& messages = blocks[begin / kBlock];
                for (std::int64_t i = begin; i < end; ++i) {
                    const Text line = lines.texts[i];
                    const std::size_t before = messages.size();
                    const RowError error =
                        line.size() > longest ? RowError::kTooLong : locate_messages(line, messages);
                    errors[i] = static_cast<std::uint8_t>(error);
                    counts[i] = static_cast<std::int32_t>(messages.size() - before);
                    for (std::size_t m = before; m < messages.size(); ++m) {
                        messages[m].content.begin += line.data() - data.data();
                        messages[m].content.end += line.data() - data.data();
                    }
                }
            };
        });
        for (const auto& block : blocks) {
            total += block.size();
        }
    }
    Column<std::int64_t> begins(total);
    Column<std::uint32_t> lengths(total);
    Column<std::uint8_t> system(total);
    std::size_t at = 0;
    for (const auto& block : blocks) {
        for (const Message& message : block) {
            begins.data()[at] = static_cast<std::int64_t>(message.content.begin);
            lengths.data()[at] = static_cast<std::uint32_t>(message.content.end - message.content.begin);
            system.data()[at++] = message.system;
        }
    }
    return std::make_tuple(array_of(lines.numbers), array_of(counts), array_of(errors), std::move(begins).array(),
                           std::move(lengths).array(), std::move(system).array(), lines.count);
}

// The different JSON strings at these places of a chunk, in order of appearance, and the number of each.
auto categories(Input1d<std::uint8_t> chunk, Input1d<std::int64_t> begins, Input1d<std::uint32_t> lengths) {
    Column<std::int32_t> codes(begins.shape(0));
    std::vector<std::string> names;
    std::unordered_map<std::string, std::int32_t> known;
    std::vector<std::uint8_t> decoded;
    for (std::size_t i = 0; i < begins.shape(0); ++i) {
        decoded.clear();
        unescape({chunk.data() + begins(i), lengths(i)}, decoded);
        const auto [entry, fresh] = known.try_emplace(std::string(decoded.begin(), decoded.end()),
                                                      static_cast<std::int32_t>(names.size()));
        if (fresh) {
            names.push_back(entry->first);
        }
        codes.data()[i] = entry->second;
    }
    return std::make_pair(std::move(codes).array(), names);
}

// First-line hashes of the JSON strings at these places of a chunk.
Output1d<std::uint64_t> first_lines(Input1d<std::uint8_t> chunk, Input1d<std::int64_t> begins,
                                    Input1d<std::uint32_t> lengths) {
    Column<std::uint64_t> hashes(begins.shape(0));
    {
        nb::gil_scoped_release unlocked;
        std::vector<std::uint8_t> decoded;
        for (std::size_t i = 0; i < begins.shape(0); ++i) {
            decoded.clear();
            unescape({chunk.data() + begins(i), lengths(i)}, decoded);
            hashes.data()[i] = first_line_hash(decoded);
        }
    }
    return std::move(hashes).array();
}

}  // namespace

void bind_lines(nb::module_& m) {
    m.def("scan", &scan_lines, nb::arg("chunk").noconvert(), nb::arg("fields"), nb::arg("longest"), nb::arg("threads"),
          "(lines int64 [L], begins int64 [F, L], lengths uint32 [F, L], errors uint8 [F, L], line count) of F fields "
          "of a chunk of JSON Lines.");
    m.def("scan_messages", &scan_messages, nb::arg("chunk").noconvert(), nb::arg("longest"), nb::arg("threads"),
          "(lines int64 [L], messages int32 [L], errors uint8 [L], begins int64 [T], lengths uint32 [T], system uint8 "
          "[T], line count) of the T messages of a chunk of JSON Lines.");
    m.def("categories", &categories, nb::arg("chunk").noconvert(), nb::arg("begins").noconvert(),
          nb::arg("lengths").noconvert(), "(codes int32 [N], names) of JSON strings in a chunk.");
    m.def("first_lines", &first_lines, nb::arg("chunk").noconvert(), nb::arg("begins").noconvert(),
          nb::arg("lengths").noconvert(),
          "Hash of each JSON string's first line, uint64; 0 where it is short or nothing follows.");
}

}  // namespace osim::dedup
