// Exact Jaccard indices of shingle sets, by a hash table that is filled with one set and probed with the other.
// Nothing is sorted and nothing is kept per document, which beats sorted arrays at chat lengths.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

namespace osim::dedup {

class ShingleSet {
  public:
    // Becomes the set of `shingles`; returns its size.
    std::size_t assign(std::span<const std::uint32_t> shingles) {
        start(shingles.size() * 2);
        for (const std::uint32_t shingle : shingles) {
            size_ += claim(shingle, kMine) == kFree;
        }
        return size_;
    }

    // Jaccard index of this set and `others`, or 0 as soon as it is sure to be below `threshold`. Uses the set up:
    // assign again before the next call.
    double jaccard(std::span<const std::uint32_t> others, double threshold) {
        if (static_cast<double>(others.size()) < threshold * static_cast<double>(size_)) {
            return 0.0;
        }
        reserve(size_ + others.size());
        // Each shingle of the other set only widens the union beyond what the threshold allows.
        const auto most_missing =
            threshold > 0 ? static_cast<std::size_t>(static_cast<double>(size_) / threshold) - size_ + 1
                          : others.size();
        std::size_t common = 0;
        std::size_t missing = 0;
        for (const std::uint32_t shingle : others) {
            const std::uint8_t before = claim(shingle, kOther);
            common += before == kMine;
            missing += before == kFree;
            if (missing > most_missing) {
                return 0.0;
            }
        }
        return static_cast<double>(common) / static_cast<double>(size_ + missing);
    }

  private:
    static constexpr std::uint8_t kFree = 0, kMine = 1, kOther = 2;

    void start(std::size_t entries) {
        const std::size_t slots = std::bit_ceil(std::max<std::size_t>(entries * 2, 64));
        if (keys_.size() < slots) {
            keys_.resize(slots);
            states_.resize(slots);
        }
        mask_ = slots - 1;
        std::fill_n(states_.begin(), slots, kFree);
        size_ = 0;
    }

    // Room for `entries` in all, keeping what is in.
    void reserve(std::size_t entries) {
        if (entries + entries / 2 <= mask_ + 1) {
            return;
        }
        std::vector<std::uint32_t> members;
        for (std::size_t slot = 0; slot <= mask_; ++slot) {
            if (states_[slot] == kMine) {
                members.push_back(keys_[slot]);
            }
        }
        start(entries);
        for (const std::uint32_t member : members) {
            claim(member, kMine);
        }
        size_ = members.size();
    }

    // Marks the shingle's slot; returns the mark it had.
    std::uint8_t claim(std::uint32_t shingle, std::uint8_t mark) {
        std::size_t slot = shingle & mask_;
        while (states_[slot] != kFree && keys_[slot] != shingle) {
            slot = (slot + 1) & mask_;
        }
        const std::uint8_t before = states_[slot];
        keys_[slot] = shingle;
        states_[slot] = mark;
        return before;
    }

    std::vector<std::uint32_t> keys_;
    std::vector<std::uint8_t> states_;
    std::size_t mask_ = 0;
    std::size_t size_ = 0;
};

}  // namespace osim::dedup
