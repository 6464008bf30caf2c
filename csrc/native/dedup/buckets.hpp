// Groups of equal 32-bit keys: one radix pass by the high bits, so that a part fits the cache, then a small hash
// table per part. Most keys of a band are alone, and those cost no more than the table look-up.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

namespace osim::dedup {

class Buckets {
  public:
    // Calls visit(span of ids) for each key that occurs more than once among the first `count` pairs that
    // entry(i, &key, &id) admits; ids come in the order of i.
    template <typename Entry, typename Visit>
    void each(std::int64_t count, Entry entry, Visit visit) {
        const int bits = std::clamp<int>(std::bit_width(static_cast<std::uint64_t>(count) / kPartEntries), 0, 14);
        borders_.assign((std::size_t{1} << bits) + 1, 0);
        for (std::int64_t i = 0; i < count; ++i) {
            Item item;
            if (entry(i, &item.key, &item.id)) {
                ++borders_[part_of(item.key, bits) + 1];
            }
        }
        for (std::size_t part = 1; part < borders_.size(); ++part) {
            borders_[part] += borders_[part - 1];
        }
        items_.resize(borders_.back());
        cursors_.assign(borders_.begin(), borders_.end() - 1);
        for (std::int64_t i = 0; i < count; ++i) {
            Item item;
            if (entry(i, &item.key, &item.id)) {
                items_[cursors_[part_of(item.key, bits)]++] = item;
            }
        }
        for (std::size_t part = 0; part + 1 < borders_.size(); ++part) {
            each_in_part({items_.data() + borders_[part], items_.data() + borders_[part + 1]}, visit);
        }
    }

  private:
    struct Item {
        std::uint32_t key;
        std::uint32_t id;
    };
    static constexpr std::uint32_t kNone = 0xFFFFFFFFu;
    static constexpr std::uint64_t kPartEntries = 4096;

    static std::size_t part_of(std::uint32_t key, int bits) {
        return static_cast<std::size_t>(static_cast<std::uint64_t>(key) >> (32 - bits));
    }

    // slots_ holds the first item of each key, which starts a list of its equals through next_; last_ is its end.
    template <typename Visit>
    void each_in_part(std::span<const Item> items, Visit visit) {
        const std::size_t slots = std::bit_ceil(items.size() * 2 + 1);
        slots_.assign(slots, kNone);
        next_.resize(items.size());
        last_.resize(items.size());
        shared_.clear();
        for (std::uint32_t i = 0; i < items.size(); ++i) {
            std::size_t slot = items[i].key * 0x9E3779B1u & (slots - 1);
            while (slots_[slot] != kNone && items[slots_[slot]].key != items[i].key) {
                slot = (slot + 1) & (slots - 1);
            }
            next_[i] = kNone;
            const std::uint32_t first = slots_[slot];
            if (first == kNone) {
                slots_[slot] = i;
                last_[i] = i;
            } else {
                if (last_[first] == first) {
                    shared_.push_back(first);
                }
                next_[last_[first]] = i;
                last_[first] = i;
            }
        }
        for (const std::uint32_t first : shared_) {
            members_.clear();
            for (std::uint32_t i = first; i != kNone; i = next_[i]) {
                members_.push_back(items[i].id);
            }
            visit(std::span<std::uint32_t>(members_));
        }
    }

    std::vector<std::uint64_t> borders_;
    std::vector<std::uint64_t> cursors_;
    std::vector<Item> items_;
    std::vector<std::uint32_t> slots_;
    std::vector<std::uint32_t> next_;
    std::vector<std::uint32_t> last_;
    std::vector<std::uint32_t> shared_;
    std::vector<std::uint32_t> members_;
};

}  // namespace osim::dedup
