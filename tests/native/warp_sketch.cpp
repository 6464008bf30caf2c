// The device text of csrc/common/warp_sketch.hpp on emulated warps; built with the sanitizers by test_dedup_cuda.py.
// A request on stdin is int64 seed, omitted barrier or -1, wide_from, count; int64 offsets [count + 1]; the bytes. The
// answer on stdout is the columns of SketchJob, with wide_keys for all texts that may be wide, whose rows precede it.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "emulated_warp.hpp"

namespace {

using Rows = std::vector<std::uint32_t>;

struct Request {
    std::int64_t seed;
    std::int64_t omitted;
    std::int64_t wide_from;
    std::int64_t count;
};

template <bool kMayBeWide>
void sketch(osim::SketchJob job, const Rows& rows, const Request& request) {
    using Sketch = osim::WarpSketch<osim::EmulatedWarp, kMayBeWide>;
    job.rows = rows.data();
    const auto memory = std::make_unique<typename Sketch::Memory>();
    for (std::size_t slot = 0; slot < rows.size(); ++slot) {
        std::memset(memory.get(), 0xA5, sizeof *memory);  // what a block before has left
        const auto seed = static_cast<unsigned>(request.seed == 0 ? 0 : request.seed + slot);
        osim::EmulatedWarp warp(seed, static_cast<int>(request.omitted));
        Sketch sketch(warp, memory.get(), &osim::kLaneTable, job);
        sketch.run(static_cast<std::int64_t>(slot));
        warp.run();
    }
}

void read(void* into, std::size_t bytes) {
    if (bytes > 0 && std::fread(into, 1, bytes, stdin) != bytes) {
        std::fprintf(stderr, "warp_sketch: the request ends early\n");
        std::exit(2);
    }
}

template <class T>
void write(const std::vector<T>& column) {
    if (!column.empty()) {
        std::fwrite(column.data(), sizeof(T), column.size(), stdout);
    }
}

// A column that nobody has written yet.
template <class T>
std::vector<T> poisoned(std::int64_t count) {
    std::vector<T> column(count);
    std::fill_n(reinterpret_cast<std::uint8_t*>(column.data()), count * sizeof(T), std::uint8_t{0xA5});
    return column;
}

void answer(const Request& request) {
    std::vector<std::int64_t> offsets(request.count + 1);
    read(offsets.data(), offsets.size() * sizeof(std::int64_t));
    const std::size_t size = (offsets.back() + 15) / 16 * 16;
    const std::unique_ptr<std::uint8_t, decltype(&std::free)> data(
        static_cast<std::uint8_t*>(std::aligned_alloc(16, size)), &std::free);
    std::memset(data.get(), 'x', size);  // behind the last text: letters, so that reading on would show
    read(data.get(), offsets.back());

    Rows short_rows;
    Rows wide_rows;
    const auto wide_from = static_cast<std::uint32_t>(request.wide_from);
    for (std::uint32_t row = 0; row < request.count; ++row) {
        const bool wide = offsets[row + 1] - offsets[row] >= osim::least_wide_bytes(wide_from);
        (wide ? wide_rows : short_rows).push_back(row);
    }
    auto hashes = poisoned<osim::ExactHash>(request.count);
    auto widths = poisoned<std::uint8_t>(request.count);
    auto keys = poisoned<std::uint32_t>(osim::kBands * request.count);
    auto digits = poisoned<osim::Digits>(request.count);
    auto signatures = poisoned<std::uint16_t>(osim::kLanes * request.count);
    auto wide_keys = poisoned<std::uint32_t>(osim::kBands * static_cast<std::int64_t>(wide_rows.size()));
    osim::SketchJob job{};
    job.data = data.get();
    job.offsets = offsets.data();
    job.texts = request.count;
    job.wide_from = wide_from;
    job.hashes = hashes.data();
    job.widths = widths.data();
    job.keys = keys.data();
    job.digits = digits.data();
    job.signatures = signatures.data();
    job.wide_keys = wide_keys.data();
    sketch<false>(job, short_rows, request);
    sketch<true>(job, wide_rows, request);
    write(hashes);
    write(widths);
    write(keys);
    write(digits);
    write(signatures);
    write(std::vector<std::int64_t>{static_cast<std::int64_t>(wide_rows.size())});
    write(wide_rows);
    write(wide_keys);
    std::fflush(stdout);
}

}  // namespace

int main() {
    for (Request request{}; std::fread(&request, 1, sizeof request, stdin) == sizeof request;) {
        answer(request);
    }
}
