// The AVX2 splitter works on blocks of 64 bytes: two byte shuffles classify ASCII into a 64-bit mask of word bytes,
// and code points past ASCII correct the mask one by one through the functions of text.hpp. Where the mask changes,
// tokens begin and end; only then is each token hashed from the lowered copy, eight bytes a step.
#include "tokens.hpp"

#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace osim::dedup {
namespace {

constexpr std::size_t kBlock = 64;
constexpr std::size_t kTrimBytes = std::size_t{4} << 20;

// Sizes a buffer without giving its memory back between texts.
template <typename T>
T* at_least(std::vector<T>& buffer, std::size_t count) {
    if (buffer.size() < count) {
        buffer.resize(count + count / 2);
    }
    return buffer.data();
}

}  // namespace

Simd best_simd() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi")) {
        return Simd::kAvx2;
    }
#endif
    return Simd::kScalar;
}

std::span<const std::uint64_t> Tokeniser::tokens(Text text) {
    simd_ == Simd::kAvx2 ? split_avx2(text) : split_scalar(text);
    return {tokens_.data(), count_};
}

void Tokeniser::split_scalar(Text text) {
    TokenScanner scanner(text.data(), text.size());
    std::uint64_t* out = at_least(tokens_, text.size() + 1);
    count_ = 0;
    while (scanner.next(&out[count_])) {
        ++count_;
    }
}

#if defined(__x86_64__)

namespace {

// Word bytes and bytes past ASCII of 64 bytes; writes them lowered.
struct Classes {
    std::uint64_t word;
    std::uint64_t high;
};

__attribute__((target("avx2,bmi"))) inline std::uint32_t classify(__m256i bytes, std::uint8_t* lowered) {
    // A byte is a word byte if the classes of its two halves share a bit: digits, letters of columns 4 and 6,
    // letters of columns 5 and 7, underscore. Bytes past ASCII have a high half of 8 or more, which has no class.
    const __m256i by_low = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(1 + 4, 1 + 2 + 4, 1 + 2 + 4, 1 + 2 + 4, 1 + 2 + 4, 1 + 2 + 4, 1 + 2 + 4, 1 + 2 + 4, 1 + 2 + 4,
                      1 + 2 + 4, 2 + 4, 2, 2, 2, 2, 2 + 8));
    const __m256i by_high =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 1, 2, 4 + 8, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m256i low_half = _mm256_set1_epi8(0x0F);
    const __m256i low = _mm256_and_si256(bytes, low_half);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low_half);
    const __m256i shared = _mm256_and_si256(_mm256_shuffle_epi8(by_low, low), _mm256_shuffle_epi8(by_high, high));
    const __m256i letters = _mm256_and_si256(shared, _mm256_set1_epi8(2 + 4));
    const __m256i is_letter = _mm256_cmpgt_epi8(letters, _mm256_setzero_si256());
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lowered),
                        _mm256_or_si256(bytes, _mm256_and_si256(is_letter, _mm256_set1_epi8(0x20))));
    return static_cast<std::uint32_t>(
        _mm256_movemask_epi8(_mm256_cmpgt_epi8(shared, _mm256_setzero_si256())));
}

__attribute__((target("avx2,bmi"))) inline Classes classify_block(const std::uint8_t* bytes, std::uint8_t* lowered) {
    const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
    const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 32));
    const std::uint64_t high_first = static_cast<std::uint32_t>(_mm256_movemask_epi8(first));
    const std::uint64_t high_second = static_cast<std::uint32_t>(_mm256_movemask_epi8(second));
    const std::uint64_t word_first = classify(first, lowered);
    const std::uint64_t word_second = classify(second, lowered + 32);
    return {word_first | word_second << 32, high_first | high_second << 32};
}

// Bits of the current block and, in the upper half, what a code point at its end spills into the next one.
struct Marks {
    unsigned __int128 word = 0;
    unsigned __int128 border = 0;  // a token begins here even if the byte before belongs to one
};

// Classifies and lowers the code points past ASCII that begin in this block.
void mark_past_ascii(Text text, std::size_t base, std::uint64_t high, std::uint8_t* lowered, Marks& marks) {
    while (high != 0) {
        const int bit = std::countr_zero(high);
        const CodePoint point = decode_utf8(text.data(), base + bit, text.size());
        high &= bit + point.bytes >= 64 ? 0 : ~std::uint64_t{0} << (bit + point.bytes);
        if (point.value == kMalformed) {
            continue;
        }
        const Kind kind = kind_of(point.value);
        if (kind == Kind::kSeparator) {
            continue;
        }
        const auto one = static_cast<unsigned __int128>(1);
        marks.word |= ((one << point.bytes) - 1) << bit;
        if (kind == Kind::kSingle) {
            marks.border |= one << bit | one << (bit + point.bytes);
        }
        encode_utf8(lower_case(point.value), point.bytes, lowered + base + bit);
    }
}

__attribute__((target("avx2,bmi"))) inline std::uint32_t* write_positions(std::uint64_t bits, std::uint32_t base,
                                                                          std::uint32_t* out) {
    // Eight at a time without asking whether there are so many: the surplus is overwritten by the next block.
    const int count = std::popcount(bits);
    for (int written = 0; written < count; written += 8) {
        for (int i = 0; i < 8; ++i) {
            out[written + i] = base + static_cast<std::uint32_t>(_tzcnt_u64(bits));
            bits = _blsr_u64(bits);
        }
    }
    return out + count;
}

std::uint64_t load_eight(const std::uint8_t* bytes) {
    std::uint64_t value;
    std::memcpy(&value, bytes, 8);
    return value;
}

}  // namespace

__attribute__((target("avx2,bmi"))) void Tokeniser::split_avx2(Text text) {
    const std::size_t length = text.size();
    std::uint8_t* lowered = at_least(lowered_, length + 2 * kBlock);
    std::uint32_t* begins = at_least(begins_, length + kBlock + 8);
    std::uint32_t* ends = at_least(ends_, length + kBlock + 8);
    const std::uint32_t* const first_begin = begins;
    const std::uint32_t* const first_end = ends;

    Marks marks;
    std::uint64_t inside = 0;  // 1 if the byte before this block belongs to a token
    alignas(32) std::uint8_t padded[kBlock];
    for (std::size_t base = 0; base < length; base += kBlock) {
        const std::uint8_t* block = text.data() + base;
        if (length - base < kBlock) {
            std::memset(padded, ' ', kBlock);
            std::memcpy(padded, block, length - base);
            block = padded;
        }
        const auto spilled = static_cast<std::uint64_t>(marks.word);  // continuation bytes, lowered already
        std::uint8_t kept[4];
        std::memcpy(kept, lowered + base, 4);
        const Classes classes = classify_block(block, lowered + base);
        std::uint64_t word = classes.word;
        std::uint64_t border = 0;
        if (classes.high != 0) {
            std::memcpy(lowered + base, kept, std::popcount(spilled));
            marks.word |= classes.word;
            // Bytes of a straddling separator look malformed here, and separate as well.
            mark_past_ascii(text, base, classes.high & ~spilled, lowered, marks);
            word = static_cast<std::uint64_t>(marks.word);
        }
        border = static_cast<std::uint64_t>(marks.border) & word;
        marks.word >>= 64;
        marks.border >>= 64;
        const std::uint64_t before = word << 1 | inside;
        begins = write_positions((word & ~before) | border, static_cast<std::uint32_t>(base), begins);
        ends = write_positions(before & (~word | border), static_cast<std::uint32_t>(base), ends);
        inside = word >> 63;
    }
    if (inside != 0) {
        *ends++ = static_cast<std::uint32_t>(length);
    }
    count_ = static_cast<std::size_t>(begins - first_begin);

    std::uint64_t* hashes = at_least(tokens_, count_ + 1);
    for (std::size_t i = 0; i < count_; ++i) {
        const std::uint8_t* bytes = lowered + first_begin[i];
        std::uint32_t left = first_end[i] - first_begin[i];
        std::uint64_t state = word_hash_start(left);
        for (; left > 8; left -= 8, bytes += 8) {
            state = word_hash_step(state, load_eight(bytes));
        }
        const std::uint64_t keep = ~std::uint64_t{0} >> (64 - 8 * left);  // 1 <= left <= 8
        hashes[i] = word_hash_step(state, load_eight(bytes) & keep);
    }
}

#else

void Tokeniser::split_avx2(Text text) { split_scalar(text); }  // unreachable: best_simd never says so

#endif

std::span<const std::uint32_t> Tokeniser::shingles() {
    if (count_ < kShingleTokens) {
        return {};
    }
    const std::size_t count = count_ - kShingleTokens + 1;
    std::uint32_t* out = at_least(shingles_, count);
    const std::uint64_t* token = tokens_.data();
    std::uint64_t pair = token_pair(token[0], token[1]);
    std::uint64_t after = token_pair(token[1], token[2]);
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint64_t next = token_pair(token[i + 2], token[i + 3]);
        out[i] = shingle_hash(pair, next, token[i + 4]);
        pair = after;
        after = next;
    }
    return {out, count};
}

ExactHash Tokeniser::exact_hash(Text text) const {
    ExactHasher hasher;
    if (count_ == 0) {
        for (std::size_t at = 0; at < text.size(); at += 16) {
            const std::size_t left = text.size() - at;
            hasher.pair(eight_bytes_at(text.data() + at, left),
                        left > 8 ? eight_bytes_at(text.data() + at + 8, left - 8) : 0);
        }
        return hasher.finish(text.size(), 1);
    }
    std::size_t i = 0;
    for (; i + 2 <= count_; i += 2) {
        hasher.pair(tokens_[i], tokens_[i + 1]);
    }
    if (i < count_) {
        hasher.last(tokens_[i]);
    }
    return hasher.finish(count_, 0);
}

void Tokeniser::trim() {
    if (lowered_.capacity() + begins_.capacity() * 4 > kTrimBytes || tokens_.capacity() * 8 > kTrimBytes) {
        *this = Tokeniser(simd_);
    }
}

}  // namespace osim::dedup
