// A text's token hashes and shingle hashes: the AVX2 splitter and its scalar twin (text.hpp says what a token is).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "shingle.hpp"

namespace osim::dedup {

enum class Simd { kScalar, kAvx2 };

// kAvx2 where this processor has it.
Simd best_simd();

using Text = std::span<const std::uint8_t>;

// Buffers of one thread, reused from text to text. The spans returned stay valid until the next call.
class Tokeniser {
  public:
    explicit Tokeniser(Simd simd) : simd_(simd) {}

    // Token hashes in the order of the text. Texts are below 2 GiB.
    std::span<const std::uint64_t> tokens(Text text);

    // Hashes of all runs of five of the last text's tokens, repeats included; empty below five tokens.
    std::span<const std::uint32_t> shingles();

    // Exact hash of the last text: of its tokens, or of its bytes where it has no token.
    ExactHash exact_hash(Text text) const;

    // Gives the memory of an unusually long text back.
    void trim();

  private:
    void split_scalar(Text text);
    void split_avx2(Text text);

    Simd simd_;
    std::size_t count_ = 0;
    std::vector<std::uint8_t> lowered_;
    std::vector<std::uint32_t> begins_;
    std::vector<std::uint32_t> ends_;
    std::vector<std::uint64_t> tokens_;
    std::vector<std::uint32_t> shingles_;
};

}  // namespace osim::dedup
