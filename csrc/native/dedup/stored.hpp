// What is read back from disk while clustering: texts from their JSON Lines files, band keys from signature files.
// Everything through pread, since the pages of a memory map would count as this process's memory.
#pragma once

#include <cstdint>
#include <vector>

#include "cluster.hpp"
#include "mask.hpp"

namespace osim::dedup {

// Rows [first, next entry's first) of a file that is open for reading.
struct Extent {
    std::int64_t first;
    std::int64_t offset;  // of the key column, where the extent is a part of the signature store
    int descriptor;
};

// Text `row` is the JSON string (without quotes) at begins[row], lengths[row] bytes long, of its extent's file.
class JsonlTexts : public Texts {
  public:
    JsonlTexts(std::vector<Extent> sources, const std::int64_t* begins, const std::uint32_t* lengths,
               Mask mask)
        : sources_(std::move(sources)), begins_(begins), lengths_(lengths), mask_(mask) {}

    Text read(std::int64_t row, std::vector<std::uint8_t>& buffer) const override;

  private:
    std::vector<Extent> sources_;
    const std::int64_t* begins_;
    const std::uint32_t* lengths_;
    Mask mask_;
};

// Key column of one band, gathered from all parts; a part's column is [B, its rows], band-major.
const std::uint32_t* read_band(const std::vector<Extent>& parts, std::int64_t count, int band,
                               std::vector<std::uint32_t>& column);

}  // namespace osim::dedup
