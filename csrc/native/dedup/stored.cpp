#include "stored.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>

#include "jsonl.hpp"

namespace osim::dedup {
namespace {

void read_fully(int descriptor, void* into, std::size_t bytes, std::int64_t offset) {
    auto* out = static_cast<std::uint8_t*>(into);
    while (bytes > 0) {
        const ssize_t got = pread(descriptor, out, bytes, offset);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            throw std::runtime_error(got < 0 ? std::string("cannot read a dedup input: ") + std::strerror(errno)
                                             : std::string("a dedup input became shorter while it was read"));
        }
        out += got;
        offset += got;
        bytes -= static_cast<std::size_t>(got);
    }
}

}  // namespace

Text JsonlTexts::read(std::int64_t row, std::vector<std::uint8_t>& buffer) const {
    const auto next = std::upper_bound(sources_.begin(), sources_.end(), row,
                                       [](std::int64_t value, const Extent& source) { return value < source.first; });
    thread_local std::vector<std::uint8_t> raw;
    raw.resize(lengths_[row]);
    read_fully((next - 1)->descriptor, raw.data(), raw.size(), begins_[row]);
    buffer.clear();
    unescape(raw, buffer);
    mask_.apply(buffer);
    return buffer;
}

const std::uint32_t* read_band(const std::vector<Extent>& parts, std::int64_t count, int band,
                               std::vector<std::uint32_t>& column) {
    column.resize(count);
    for (std::size_t i = 0; i < parts.size(); ++i) {
        const std::int64_t rows = (i + 1 < parts.size() ? parts[i + 1].first : count) - parts[i].first;
        read_fully(parts[i].descriptor, column.data() + parts[i].first, static_cast<std::size_t>(rows) * 4,
                   parts[i].offset + band * rows * 4);
    }
    return column.data();
}

}  // namespace osim::dedup
