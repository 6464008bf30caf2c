// Best-fit decreasing over runs instead of single documents; see packer.hpp for the contract.
//
// Equal documents are interchangeable, and so are open rows with equal room. So the packer never touches one
// document at a time while deciding: it moves runs of rows ("rows 70..95, 312 tokens free") through buckets of
// remaining room, and a run of equal lengths is dealt to a run of rows in one placement. A corpus has millions
// of documents but at most `capacity` lengths; each length splits at most two runs, so the decisions cost
// next to nothing and the time is that of a counting sort and one streaming write of the answer.
#include "packer.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <stdexcept>
#include <string>

namespace osim {
namespace {

constexpr std::int64_t kMaxCapacity = std::int64_t{1} << 26;

// A set of integers below `size` that answers "smallest member >= x" by looking at one 64-bit word a level.
class OrderedBitset {
  public:
    explicit OrderedBitset(std::size_t size) {
        do {
            size = (size + 63) / 64;
            levels_.emplace_back(size, 0);
        } while (size > 1);
    }

    void insert(std::size_t value) {
        for (auto& level : levels_) {
            level[value / 64] |= bit(value);
            value /= 64;
        }
    }

    void erase(std::size_t value) {
        for (auto& level : levels_) {
            level[value / 64] &= ~bit(value);
            if (level[value / 64] != 0) {
                return;  // the word still has members, so the levels above stay as they are
            }
            value /= 64;
        }
    }

    // The smallest member >= value, or -1.
    std::int64_t at_least(std::size_t value) const {
        for (std::size_t depth = 0; depth < levels_.size(); ++depth) {
            const std::size_t word = value / 64;
            if (word >= levels_[depth].size()) {
                return -1;
            }
            const std::uint64_t members = levels_[depth][word] & (~std::uint64_t{0} << (value % 64));
            if (members != 0) {
                value = word * 64 + std::countr_zero(members);
                while (depth > 0) {
                    --depth;
                    value = value * 64 + std::countr_zero(levels_[depth][value]);
                }
                return static_cast<std::int64_t>(value);
            }
            value = word + 1;  // nothing left in this word: go on with the next one, a level up
        }
        return -1;
    }

  private:
    static std::uint64_t bit(std::size_t value) { return std::uint64_t{1} << (value % 64); }

    std::vector<std::vector<std::uint64_t>> levels_;
};

struct RowRun {
    std::uint32_t begin;
    std::uint32_t end;
};

// Row `rows.begin + i` takes documents order[first + i * each .. first + (i + 1) * each).
struct Placement {
    RowRun rows;
    std::uint32_t first;
    std::uint32_t each;
};

// Open rows by remaining room. Runs with equal room are taken last in, first out.
class OpenRows {
  public:
    explicit OpenRows(std::int64_t capacity) : runs_(capacity + 1), room_(capacity + 1) {}

    void add(std::int64_t room, RowRun run) {
        if (run.begin == run.end || room == 0) {
            return;
        }
        if (runs_[room].empty()) {
            room_.insert(room);
        }
        runs_[room].push_back(run);
    }

    RowRun take(std::int64_t room) {
        const RowRun run = runs_[room].back();
        runs_[room].pop_back();
        if (runs_[room].empty()) {
            room_.erase(room);
        }
        return run;
    }

    std::int64_t smallest_room(std::int64_t at_least) const { return room_.at_least(at_least); }

  private:
    std::vector<std::vector<RowRun>> runs_;
    OrderedBitset room_;
};

template <typename Length>
void check(const Length* lengths, std::int64_t count, std::int64_t capacity) {
    if (capacity < 1 || capacity > kMaxCapacity) {
        throw std::invalid_argument("capacity " + std::to_string(capacity) + " is not between 1 and " +
                                    std::to_string(kMaxCapacity) + " tokens");
    }
    if (count > std::numeric_limits<std::uint32_t>::max()) {
        throw std::invalid_argument(std::to_string(count) + " documents: one packing holds fewer than 2^32; "
                                    "pack the corpus in parts");
    }
    for (std::int64_t i = 0; i < count; ++i) {
        if (lengths[i] < 1 || lengths[i] > capacity) {
            const auto length = static_cast<std::int64_t>(lengths[i]);
            throw std::invalid_argument(
                "document " + std::to_string(i) + " has length " + std::to_string(length) +
                (length < 1 ? ": drop empty documents before packing"
                            : ", more than a row's " + std::to_string(capacity) +
                                  " tokens: split, truncate or drop it before packing"));
        }
    }
}

}  // namespace

template <typename Length>
PackedRows pack(const Length* lengths, std::int64_t count, std::int64_t capacity) {
    check(lengths, count, capacity);

    // Counting sort, longest first, stable in the document index.
    std::vector<std::uint32_t> documents_of_length(capacity + 1, 0);
    for (std::int64_t i = 0; i < count; ++i) {
        ++documents_of_length[lengths[i]];
    }
    std::vector<std::uint32_t> next_slot(capacity + 1, 0);
    for (std::int64_t length = capacity, slot = 0; length > 0; --length) {
        next_slot[length] = static_cast<std::uint32_t>(slot);
        slot += documents_of_length[length];
    }
    const auto order = std::make_unique_for_overwrite<std::uint32_t[]>(count);
    for (std::int64_t i = 0; i < count; ++i) {
        order[next_slot[lengths[i]]++] = static_cast<std::uint32_t>(i);
    }

    // Decide: deal each length, as a run, to the fullest rows that can take it.
    OpenRows open(capacity);
    std::vector<Placement> placements;
    std::uint32_t rows = 0;
    std::uint32_t first = 0;
    for (std::int64_t length = capacity; length > 0; --length) {
        std::uint32_t left = documents_of_length[length];
        while (left > 0) {
            std::int64_t room = open.smallest_room(length);
            if (room < 0) {  // nothing fits: open exactly as many rows as the rest of this length fills
                const auto per_row = static_cast<std::uint32_t>(capacity / length);
                const std::uint32_t fresh = left / per_row + (left % per_row != 0);
                open.add(capacity, {rows, rows + fresh});
                rows += fresh;
                room = capacity;
            }
            const RowRun run = open.take(room);
            // The best fit after placing one document is the same row again while it has room, so a row takes
            // all it can before the next one does.
            const std::uint32_t each = std::min(left, static_cast<std::uint32_t>(room / length));
            const std::uint32_t used = std::min(run.end - run.begin, left / each);
            const RowRun filled{run.begin, run.begin + used};
            placements.push_back({filled, first, each});
            open.add(room, {filled.end, run.end});
            open.add(room - each * length, filled);
            first += used * each;
            left -= used * each;
        }
    }

    // Write: count the documents of every row, then stream each placement to its place.
    PackedRows packed{std::vector<std::int64_t>(static_cast<std::size_t>(rows) + 1, 0),
                      std::make_unique_for_overwrite<std::int64_t[]>(count)};
    std::vector<std::uint32_t> cursor(rows, 0);
    for (const auto& [run, _, each] : placements) {
        for (std::uint32_t row = run.begin; row < run.end; ++row) {
            cursor[row] += each;
        }
    }
    for (std::uint32_t row = 0; row < rows; ++row) {
        packed.row_offsets[row + 1] = packed.row_offsets[row] + cursor[row];
        cursor[row] = static_cast<std::uint32_t>(packed.row_offsets[row]);
    }
    for (const auto& [run, start, each] : placements) {
        const std::uint32_t* document = order.get() + start;
        for (std::uint32_t row = run.begin; row < run.end; ++row) {
            std::copy_n(document, each, packed.documents.get() + cursor[row]);
            cursor[row] += each;
            document += each;
        }
    }
    return packed;
}

template PackedRows pack(const std::int32_t*, std::int64_t, std::int64_t);
template PackedRows pack(const std::int64_t*, std::int64_t, std::int64_t);

}  // namespace osim
