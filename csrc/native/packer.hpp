// Global best-fit-decreasing packing of documents into rows of a fixed number of tokens.
// Called once per corpus and row length by osim_core/corpus/pack.py, before any training step.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace osim {

// Documents of row r are documents[row_offsets[r] .. row_offsets[r + 1]), longest first.
struct PackedRows {
    std::vector<std::int64_t> row_offsets;      // rows + 1 entries
    std::unique_ptr<std::int64_t[]> documents;  // a permutation of 0 .. count - 1
};

// Packs `count` documents of the given lengths into rows of `capacity` tokens, whole.
//
// Every document, longest first and ties by index, goes into the fullest open row that still has room for it;
// a new row opens only when none has. Deterministic. The number of rows is at most 11/9 of the optimum plus
// 6/9 (Doesa 2007, the tight bound for first-fit decreasing; best-fit decreasing shares it). How much padding is
// left depends on the lengths: with enough short documents practically none, with only documents longer than
// half a row as much as their lengths dictate, since no packer can put two of them into one row.
//
// Throws std::invalid_argument naming the first document that is empty or longer than a row.
template <typename Length>
PackedRows pack(const Length* lengths, std::int64_t count, std::int64_t capacity);

}  // namespace osim
