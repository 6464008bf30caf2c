// What a token of a text is, in UTF-8 bytes, and its hash. One source for two compilers: csrc/native/dedup runs it on
// the CPU (as the scalar twin of an AVX2 splitter, and as that splitter's path for bytes past ASCII), csrc/cuda later
// on the GPU. No containers, no allocation.
//
// A token is a maximal run of word characters (ASCII letters, digits, underscore; past ASCII: everything that is not
// punctuation, a symbol, a space or an emoji; combining marks belong to their word), or ONE code point of a script
// that is written without spaces (Han, Kana, Thai, Lao, Khmer, Burmese, Tibetan). Hashes are taken of lower-cased
// bytes: ASCII, Latin-1, Latin Extended-A and the regular parts of -B and Additional, Greek, Cyrillic and full-width
// Latin, one code point to one of the same number of bytes. So the dotted capital I of Turkish, the long s and
// sharp s stay as they are, and accents count. No Unicode normalisation: composed and decomposed accents differ.
// Malformed UTF-8 never fails here: each malformed byte separates words. Readers refuse such rows before.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define OSIM_HD __host__ __device__
#else
#define OSIM_HD
#endif

namespace osim {

enum class Kind : std::uint8_t { kSeparator, kWord, kSingle };  // kSingle: a token by itself

struct CodePoint {
    std::uint32_t value;
    std::uint32_t bytes;  // 1 .. 4; 1 with value kMalformed for a byte that starts no valid sequence
};

constexpr std::uint32_t kMalformed = 0xFFFFFFFFu;

OSIM_HD constexpr bool between(std::uint32_t value, std::uint32_t low, std::uint32_t high) {
    return value - low <= high - low;
}

// The code point at text[at]; requires at < length. Refuses overlong forms, surrogates and values past U+10FFFF.
OSIM_HD inline CodePoint decode_utf8(const std::uint8_t* text, std::uint64_t at, std::uint64_t length) {
    const std::uint32_t lead = text[at];
    if (lead < 0x80) {
        return {lead, 1};
    }
    const std::uint32_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4 || at + bytes > length) {
        return {kMalformed, 1};
    }
    std::uint32_t value = lead & (0xFFu >> (bytes + 1));
    for (std::uint32_t i = 1; i < bytes; ++i) {
        const std::uint32_t next = text[at + i];
        if ((next & 0xC0) != 0x80) {
            return {kMalformed, 1};
        }
        value = value << 6 | (next & 0x3F);
    }
    const bool overlong = (bytes == 3 && value < 0x800) || (bytes == 4 && value < 0x10000);
    if (overlong || between(value, 0xD800, 0xDFFF) || value > 0x10FFFF) {
        return {kMalformed, 1};
    }
    return {value, bytes};
}

OSIM_HD constexpr bool is_ascii_word(std::uint32_t c) {
    return between(c | 0x20, 'a', 'z') || between(c, '0', '9') || c == '_';
}

OSIM_HD constexpr Kind kind_of(std::uint32_t c) {
    if (c < 0x80) {
        return is_ascii_word(c) ? Kind::kWord : Kind::kSeparator;
    }
    if (c < 0xC0) {  // Latin-1 punctuation, but for the letters and digits among it
        const bool word = c == 0xAA || c == 0xB5 || c == 0xBA || c == 0xB2 || c == 0xB3 || c == 0xB9 ||
                          between(c, 0xBC, 0xBE);
        return word ? Kind::kWord : Kind::kSeparator;
    }
    if (c < 0x0E00) {
        return c == 0xD7 || c == 0xF7 || c == 0x060C || c == 0x061B || c == 0x061F || c == 0x06D4 || c == 0x0964 ||
                       c == 0x0965 || c == 0x037E || c == 0x0387
                   ? Kind::kSeparator
                   : Kind::kWord;
    }
    if (c <= 0x109F || between(c, 0x1780, 0x17FF)) {  // Thai, Lao, Tibetan, Burmese; Khmer
        return Kind::kSingle;
    }
    if (c < 0x2000) {
        return Kind::kWord;
    }
    if (c < 0x2E80) {  // punctuation, currency, arrows, mathematics, boxes, dingbats
        const bool word = c == 0x2071 || c == 0x207F || between(c, 0x2C00, 0x2DFF);
        return word ? Kind::kWord : Kind::kSeparator;
    }
    if (c < 0xAC00) {
        if (between(c, 0x3000, 0x3004) || between(c, 0x3008, 0x3020) || c == 0x3030 || c == 0x30FB ||
            between(c, 0x3200, 0x33FF)) {
            return Kind::kSeparator;
        }
        return between(c, 0xA4D0, 0xABFF) || between(c, 0x3130, 0x318F) ? Kind::kWord : Kind::kSingle;
    }
    if (c < 0xF900) {  // Hangul, which has spaces; the private area
        return c < 0xE000 ? Kind::kWord : Kind::kSeparator;
    }
    if (c < 0x10000) {
        if (between(c, 0xF900, 0xFAFF) || between(c, 0xFF66, 0xFF9F)) {
            return Kind::kSingle;
        }
        const bool word = between(c, 0xFB00, 0xFDFB) || between(c, 0xFE70, 0xFEFC) || between(c, 0xFF10, 0xFF19) ||
                          between(c, 0xFF21, 0xFF3A) || between(c, 0xFF41, 0xFF5A) || between(c, 0xFFA0, 0xFFDC);
        return word ? Kind::kWord : Kind::kSeparator;
    }
    if (between(c, 0x1B000, 0x1B16F) || between(c, 0x20000, 0x3FFFF)) {  // old Kana; Han extensions
        return Kind::kSingle;
    }
    return c < 0x1D000 ? Kind::kWord : Kind::kSeparator;  // other scripts; musical signs, emoji, private planes
}

// Lower case of one code point, of the same number of UTF-8 bytes.
OSIM_HD constexpr std::uint32_t lower_case(std::uint32_t c) {
    if (c < 0x80) {
        return between(c, 'A', 'Z') ? c + 32 : c;
    }
    if (c < 0x100) {
        return between(c, 0xC0, 0xDE) && c != 0xD7 ? c + 32 : c;
    }
    if (c < 0x250) {
        if (c == 0x130 || c == 0x131 || c == 0x138 || c == 0x149 || c == 0x17F) {
            return c;
        }
        if (c == 0x178) {
            return 0xFF;
        }
        if (between(c, 0x139, 0x148) || between(c, 0x179, 0x17E) || between(c, 0x1CD, 0x1DC)) {
            return c + (c & 1);  // pairs that begin at an odd code point
        }
        const bool pairs = c < 0x180 || between(c, 0x1A0, 0x1A5) || between(c, 0x1DE, 0x1EF) ||
                           between(c, 0x1F8, 0x21F) || between(c, 0x222, 0x233) || between(c, 0x246, 0x24F);
        if (c == 0x1AF || c == 0x1F4) {
            return c + 1;
        }
        return pairs && c != 0x1F6 && c != 0x1F7 ? c + (~c & 1) : c;
    }
    if (c < 0x370) {
        return c;
    }
    if (c < 0x400) {
        if (between(c, 0x391, 0x3AB)) {
            return c == 0x3A2 ? c : c + 32;
        }
        if (c == 0x386) {
            return 0x3AC;
        }
        if (between(c, 0x388, 0x38A)) {
            return c + 37;
        }
        return c == 0x38C ? 0x3CC : c == 0x38E || c == 0x38F ? c + 63 : c == 0x3C2 ? 0x3C3 : c;  // final sigma too
    }
    if (c < 0x530) {
        if (c < 0x410) {
            return c + 80;
        }
        if (c < 0x430) {
            return c + 32;
        }
        if (c == 0x4C0) {
            return 0x4CF;
        }
        if (between(c, 0x4C1, 0x4CE)) {
            return c + (c & 1);
        }
        const bool pairs = between(c, 0x460, 0x481) || between(c, 0x48A, 0x4BF) || between(c, 0x4D0, 0x52F);
        return pairs ? c + (~c & 1) : c;
    }
    if (between(c, 0x1E00, 0x1E95) || between(c, 0x1EA0, 0x1EFF)) {
        return c + (~c & 1);
    }
    return between(c, 0xFF21, 0xFF3A) ? c + 32 : c;
}

// The UTF-8 bytes of a code point, the first one in the lowest eight bits.
OSIM_HD constexpr std::uint32_t utf8_bytes(std::uint32_t c, std::uint32_t bytes) {
    std::uint32_t encoded = 0;
    for (std::uint32_t i = 1; i < bytes; ++i, c >>= 6) {
        encoded = encoded << 8 | 0x80 | (c & 0x3F);
    }
    const std::uint32_t lead = bytes == 1 ? 0 : 0xF00 >> bytes & 0xFF;
    return encoded << 8 | lead | c;
}

OSIM_HD inline void encode_utf8(std::uint32_t c, std::uint32_t bytes, std::uint8_t* out) {
    for (std::uint32_t encoded = utf8_bytes(c, bytes), i = 0; i < bytes; ++i, encoded >>= 8) {
        out[i] = static_cast<std::uint8_t>(encoded);
    }
}

// Hash of a token's lower-cased bytes, taken eight at a time, little-endian, the last ones padded with zeros. Each
// step is a bijection of the state, so tokens of one length up to eight bytes never collide.
constexpr std::uint64_t kWordMultiplier = 0x9FB21C651E98DF25u;  // odd, well mixed (from splitmix-style searches)

OSIM_HD constexpr std::uint64_t word_hash_start(std::uint64_t bytes) { return bytes * 0xD6E8FEB86659FD93u; }

OSIM_HD constexpr std::uint64_t word_hash_step(std::uint64_t state, std::uint64_t eight_bytes) {
    state = (state ^ eight_bytes) * kWordMultiplier;
    return state ^ state >> 32;
}

OSIM_HD inline std::uint64_t eight_bytes_at(const std::uint8_t* bytes, std::uint64_t count) {
    std::uint64_t value = 0;
    for (std::uint64_t i = 0; i < count && i < 8; ++i) {
        value |= static_cast<std::uint64_t>(bytes[i]) << (8 * i);
    }
    return value;
}

// Hash of the token text[begin, end), a byte at a time. Lower case keeps the number of bytes, so the token's length is
// known before its bytes are lowered.
OSIM_HD inline std::uint64_t lowered_token_hash(const std::uint8_t* text, std::uint64_t begin, std::uint64_t end) {
    std::uint64_t state = word_hash_start(end - begin);
    std::uint64_t eight = 0;
    std::uint32_t held = 0;  // bytes of it that are set
    for (std::uint64_t at = begin; at < end;) {
        const CodePoint point = decode_utf8(text, at, end);
        const std::uint32_t encoded = utf8_bytes(lower_case(point.value), point.bytes);
        eight |= static_cast<std::uint64_t>(encoded) << (8 * held);
        held += point.bytes;
        at += point.bytes;
        if (held >= 8) {
            state = word_hash_step(state, eight);
            held -= 8;
            eight = held > 0 ? encoded >> (8 * (point.bytes - held)) : 0;
        }
    }
    return held > 0 ? word_hash_step(state, eight) : state;
}

// Walks a text and yields the hash of one token after another.
class TokenScanner {
  public:
    OSIM_HD TokenScanner(const std::uint8_t* text, std::uint64_t length) : text_(text), length_(length) {}

    // False at the end of the text.
    OSIM_HD bool next(std::uint64_t* hash) {
        CodePoint point{};
        Kind kind = Kind::kSeparator;
        for (; at_ < length_; at_ += point.bytes) {
            point = decode_utf8(text_, at_, length_);
            kind = point.value == kMalformed ? Kind::kSeparator : kind_of(point.value);
            if (kind != Kind::kSeparator) {
                break;
            }
        }
        if (at_ >= length_) {
            return false;
        }
        begin_ = at_;
        if (kind == Kind::kSingle) {
            at_ += point.bytes;
        } else {
            while (at_ < length_) {
                point = decode_utf8(text_, at_, length_);
                if (point.value == kMalformed || kind_of(point.value) != Kind::kWord) {
                    break;
                }
                at_ += point.bytes;
            }
        }
        *hash = lowered_token_hash(text_, begin_, at_);
        return true;
    }

    // Where the last token stands in the text, in bytes.
    OSIM_HD std::uint64_t begin() const { return begin_; }
    OSIM_HD std::uint64_t end() const { return at_; }

  private:
    const std::uint8_t* text_;
    std::uint64_t length_;
    std::uint64_t at_ = 0;
    std::uint64_t begin_ = 0;
};

}  // namespace osim
