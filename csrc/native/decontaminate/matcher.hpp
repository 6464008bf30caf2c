// Longest runs of tokens that a text shares with benchmark items (tokens as in common/text.hpp, so case, punctuation
// and spacing do not hide a match). Legend: N items, an n-gram is kGram tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tokens.hpp"

namespace osim::decontaminate {

using dedup::Simd;
using dedup::Text;
using dedup::Tokeniser;

constexpr std::uint32_t kGram = 8;  // shorter shared runs are ordinary language

struct Match {
    std::int64_t row;
    std::int32_t item;
    std::int32_t longest;  // tokens of the longest shared run
    std::int32_t covered;  // tokens of the item that lie in shared runs of at least kGram (or all of a short one)
};

// Bytes [begin, end) of one turn of a row that stand in a run shared with an item.
struct Span {
    std::int64_t row;
    std::int32_t item;
    std::int32_t turn;
    std::int64_t begin;
    std::int64_t end;
};

// An index of items, read-only once built, so that many threads may search it.
//
// An n-gram that stands in more than kCommon places says nothing about an item (a prompt that all items of a task
// share): no search starts from it. A run that starts from a rarer n-gram extends through common ones.
class Index {
  public:
    // `item_of` names the item of each text: several texts (turns, fields) may belong to one. Items are 0 .. N-1.
    Index(std::span<const Text> texts, std::span<const std::int32_t> item_of, std::int32_t num_items, Simd simd);

    std::int32_t num_items() const { return static_cast<std::int32_t>(lengths_.size()); }
    std::span<const std::int32_t> lengths() const { return lengths_; }  // tokens of each item

    static constexpr std::int64_t kCommon = 64;

  private:
    friend class Searcher;

    struct Place {
        std::uint64_t hash;
        std::uint32_t position;  // of the n-gram's first token in tokens_
    };
    std::span<const Place> places(std::uint64_t hash) const;
    bool maybe(std::uint64_t hash) const { return filter_[hash >> 6 & filter_mask_] >> (hash & 63) & 1; }

    std::vector<std::uint64_t> tokens_;     // of all texts, end to end
    std::vector<std::uint32_t> text_ends_;  // into tokens_
    std::vector<std::int32_t> item_of_;     // of each text
    std::vector<std::int32_t> lengths_;
    std::vector<Place> places_;             // sorted by hash, then position
    std::vector<std::uint32_t> starts_;     // of each bucket of the hash's top bits in places_
    std::uint32_t bucket_shift_ = 63;
    std::vector<std::uint64_t> filter_;     // one bit a hash: most n-grams of a corpus stop here
    std::uint64_t filter_mask_ = 0;
    std::vector<Place> short_;              // texts below kGram tokens by the hash of all their tokens
};

// Buffers of one thread.
class Searcher {
  public:
    Searcher(const Index& index, Simd simd) : index_(index), tokeniser_(simd) {}

    // Appends the matches of one row, items ascending. `turns` are searched end to end, since a conversation may cut
    // an item at a turn; a text of the items that is shorter than kGram only matches a whole turn.
    void search(std::int64_t row, std::span<const Text> turns, std::vector<Match>* matches);

    // Appends the places of the shared runs of one row, by item; those of one item may overlap.
    void locate(std::int64_t row, std::span<const Text> turns, std::vector<Span>* spans);

  private:
    struct Run {
        std::uint32_t text;
        std::uint32_t begin;  // in the index's tokens
        std::uint32_t end;
        std::size_t row_begin;  // of the first token in the row's
    };
    struct Diagonal {
        std::int64_t offset;  // position in the index minus position in the row
        std::size_t row_end;  // the row is matched on this diagonal up to here
    };

    // Fills row_ and runs_, these in the order of items.
    void find_runs(std::span<const Text> turns);
    void match_whole_turn(std::span<const std::uint64_t> tokens, std::size_t row_begin);
    void extend(std::size_t at, std::uint32_t position);

    const Index& index_;
    Tokeniser tokeniser_;
    std::vector<std::uint64_t> row_;
    std::vector<Run> runs_;
    std::vector<Diagonal> active_;
};

}  // namespace osim::decontaminate
