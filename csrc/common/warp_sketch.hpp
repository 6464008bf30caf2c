// A text's row of the signature columns by one warp: the GPU twin of csrc/native/dedup/sketch.cpp, bit for bit.
//
//     512 bytes, 16 a thread   -> where tokens begin and end (text_block.hpp, a scan over the warp)
//     32 tokens, one a thread  -> their hashes, from the lowered bytes in shared memory; then their shingles
//     32 shingles              -> four lanes of the signature a thread, in registers; four threads do the exact hash
//     at the end               -> exact hash, band keys, digits
//
// Texts long enough for 32-bit lanes (`least_wide_bytes`) count their distinct shingles in a hash set, which need not grow
// past the count that decides, and are read once more for these lanes. So no text takes more memory than another.
//
// A Warp policy offers
//     template <class T> Local                            // one value a thread: local[thread]
//     void each(F phase)                                  // phase(thread) for all 32, no barrier
//     void sync(Barrier which)                            // what was written to memory before it is seen after it
//     T shift_up(Local<T>&, T first)                      // each gets the one of the thread before; returns the last
//     std::uint32_t exclusive_sum(Local<std::uint32_t>&)  // each gets the sum of those before; returns that of all
//     T value_of(const Local<T>&, int thread)
//     static std::uint32_t claim(std::uint32_t* slot, std::uint32_t value)  // atomic: replaces 0; returns the old value
// Code outside of `each` runs alike in every thread. Phases capture uniform values by value, since an emulation may
// run one later than the statement that names it (tests/native/emulated_warp.hpp).
// Legend: N texts, K = kLanes, B = kBands.
#pragma once

#include <cstdint>

#include "minhash.hpp"
#include "shingle.hpp"
#include "text_block.hpp"

#ifdef __CUDACC__
#define OSIM_DEVICE __device__
#else
#define OSIM_DEVICE
#endif

namespace osim {

constexpr int kWarp = 32;
constexpr int kChunkBytes = kWarp * kBlockBytes;
constexpr int kCarriedBytes = 64;             // of a token that goes on in the next chunk
constexpr std::uint16_t kLongToken = 0xFFFF;  // for the begin of one that is longer: hashed from global memory
constexpr int kTokensBefore = kShingleTokens - 1;
constexpr int kLanesPerThread = kLanes / kWarp;
constexpr std::uint32_t kSetSlots = 2 * kWideShingles;

// What a barrier makes visible to the other threads.
enum class Barrier { kTokenBorders, kTokens, kShingles, kCarriedBytes, kLanes };

// Texts to sketch, and columns to fill as sketch.hpp describes them; all in device memory.
struct SketchJob {
    const std::uint8_t* data;     // 16-byte aligned, readable up to a multiple of 16
    const std::int64_t* offsets;  // [N + 1], ascending; a text is below 2 GiB
    const std::uint32_t* rows;    // [n] the texts of this launch
    std::int64_t texts;           // N
    std::uint32_t wide_from;      // distinct shingles from which a text needs 32-bit lanes
    ExactHash* hashes;            // [N]
    std::uint8_t* widths;         // [N]
    std::uint32_t* keys;          // [B, N]
    Digits* digits;               // [N]
    std::uint16_t* signatures;    // [N, K] or null
    std::uint32_t* wide_keys;     // [n, B] for texts that may be wide; rows of others stay as they are
};

// Bytes below which a text cannot have `wide_from` shingles: its tokens take two bytes each, one and a separator, or
// three; the last one does without a separator.
OSIM_HD constexpr std::int64_t least_wide_bytes(std::uint32_t wide_from) {
    return 2 * (static_cast<std::int64_t>(wide_from) + kTokensBefore) - 1;
}

// Shared memory of one warp.
template <bool kMayBeWide>
struct SketchMemory {
    alignas(16) std::uint32_t lowered[(kCarriedBytes + kChunkBytes) / 4 + 2];  // two more, to read eight bytes anywhere
    alignas(16) std::uint32_t shingles[kWarp];
    std::uint64_t tokens[kTokensBefore + kWarp];  // the last four of the round before, then this round's
    std::uint32_t lanes[kLanes];
    std::uint16_t begins[kChunkBytes / 2 + 1];  // of tokens, in bytes from the start of `lowered`
    std::uint16_t ends[kChunkBytes / 2 + 1];
    std::uint32_t set[kMayBeWide ? kSetSlots + 1 : 1];  // shingles; 0 is free, and shingle 0 is a 1 in the last slot
};

template <class Warp, bool kMayBeWide>
class WarpSketch {
  public:
    using Memory = SketchMemory<kMayBeWide>;

    OSIM_DEVICE WarpSketch(Warp& warp, Memory* memory, const LaneTable* table, const SketchJob& job)
        : warp_(warp), memory_(memory), table_(table), job_(job) {}

    // Sketches text rows[slot].
    OSIM_DEVICE void run(std::int64_t slot) {
        const std::int64_t row = job_.rows[slot];
        text_ = job_.data + job_.offsets[row];
        length_ = job_.offsets[row + 1] - job_.offsets[row];
        start();
        const std::uint32_t tokens = read<Lanes::kNarrow>();
        const Width width = width_of(tokens);
        write_hash(row, tokens);
        write_width(row, width);
        if (width != kWide) {
            gather_lanes(width != kNone);
            write_row(row);
        }
        write_keys(job_.keys + row, job_.texts, width == kNarrow || width == kBoth);
        if (kMayBeWide && (width == kBoth || width == kWide)) {
            read<Lanes::kWide>();
            gather_lanes(true);
            write_keys(job_.wide_keys + slot * kBands, 1, true);
            if (width == kWide) {
                write_row(row);
            }
        }
    }

  private:
    enum Width : std::uint8_t { kNone, kNarrow, kBoth, kWide };  // dedup::Width
    enum class Lanes { kNarrow, kWide };
    struct OfThread {
        std::uint32_t lanes[kLanesPerThread];
    };
    struct Reading {
        std::uint32_t tokens = 0;     // before this chunk or round
        std::uint32_t last_byte = 0;  // bit 0: of a token, bit 1: of one that is a single code point
        std::int64_t open_begin = 0;  // of the token that the last byte belongs to
    };

    OSIM_DEVICE static std::uint8_t* lowered_bytes(Memory* memory) {
        return reinterpret_cast<std::uint8_t*>(memory->lowered);
    }

    OSIM_DEVICE void start() {
        Memory* const memory = memory_;
        warp_.each([this, memory](int thread) {
            chain_[thread] = chain_start(thread);
            if constexpr (kMayBeWide) {
                for (std::uint32_t slot = thread; slot <= kSetSlots; slot += kWarp) {
                    memory->set[slot] = 0;
                }
            }
        });
    }

    // The text's lanes; returns its number of tokens. Narrow: also the chains of the exact hash and, in a text that may
    // be wide, the number of distinct shingles, or one above kWideShingles.
    template <Lanes kind>
    OSIM_DEVICE std::uint32_t read() {
        const LaneTable* const table = table_;
        warp_.each([this, table](int thread) {
            for (int i = 0; i < kLanesPerThread; ++i) {
                const int lane = thread * kLanesPerThread + i;
                // A 16-bit lane is the upper half of a 32-bit one whose multiplier ends in 16 zeros.
                const bool narrow = kind == Lanes::kNarrow;
                flip_[thread].lanes[i] = narrow ? table->flip16[lane] : table->flip[lane];
                multiply_[thread].lanes[i] =
                    narrow ? static_cast<std::uint32_t>(table->multiply16[lane]) << 16 : table->multiply[lane];
                least_[thread].lanes[i] = 0xFFFFFFFFu;
            }
        });
        Reading reading;
        const auto misaligned = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(text_) % kBlockBytes);
        for (std::int64_t base = -misaligned; base <= length_; base += kChunkBytes) {
            read_chunk<kind>(base, reading);
        }
        warp_.each([this](int thread) {
            for (int i = 0; i < kLanesPerThread; ++i) {
                least_[thread].lanes[i] >>= kind == Lanes::kNarrow ? 16 : 0;
            }
        });
        return reading.tokens;
    }

    // Bytes [base, base + kChunkBytes) of the text, whose last one is followed by a byte outside of any token.
    template <Lanes kind>
    OSIM_DEVICE void read_chunk(std::int64_t base, Reading& reading) {
        Memory* const memory = memory_;
        classify(base);
        const std::uint32_t open = reading.last_byte & 1;
        reading.last_byte = warp_.shift_up(before_, reading.last_byte);
        find_borders();
        const std::uint32_t total = warp_.exclusive_sum(counts_);
        const std::uint32_t begun = open + (total & 0xFFFF);
        const std::uint32_t ended = total >> 16;
        const std::int64_t open_bytes = base - reading.open_begin;
        warp_.each([this, memory, open, open_bytes](int thread) {
            const auto from = static_cast<std::uint16_t>(kCarriedBytes + thread * kBlockBytes);
            std::uint32_t begin = open + (counts_[thread] & 0xFFFF);
            for (std::uint32_t bits = begins_[thread]; bits != 0; bits &= bits - 1) {
                memory->begins[begin++] = from + lowest_bit(bits);
            }
            std::uint32_t end = counts_[thread] >> 16;
            for (std::uint32_t bits = ends_[thread]; bits != 0; bits &= bits - 1) {
                memory->ends[end++] = from + lowest_bit(bits);
            }
            if (open != 0 && thread == 0) {
                memory->begins[0] = open_bytes <= kCarriedBytes ? kCarriedBytes - open_bytes : kLongToken;
            }
        });
        warp_.sync(Barrier::kTokenBorders);
        for (std::uint32_t first = 0; first < ended; first += kWarp) {
            const int count = static_cast<int>(ended - first < kWarp ? ended - first : kWarp);
            hash_tokens(base, first, count, reading.open_begin);
            take_tokens<kind>(count, reading.tokens);
            reading.tokens += count;
        }
        if ((reading.last_byte & 1) != 0) {
            if (begun > open) {
                reading.open_begin = base + memory->begins[begun - 1] - kCarriedBytes;
            }
            warp_.each([=](int thread) {
                if (thread < kCarriedBytes / 4) {
                    memory->lowered[thread] = memory->lowered[kChunkBytes / 4 + thread];
                }
            });
            warp_.sync(Barrier::kCarriedBytes);
        }
    }

    OSIM_DEVICE void classify(std::int64_t base) {
        Memory* const memory = memory_;
        const std::uint8_t* const text = text_;
        const std::int64_t length = length_;
        warp_.each([this, memory, text, length, base](int thread) {
            const std::int64_t at = base + thread * kBlockBytes;
            ByteClasses classes{0, 0, 0};
            if (at < length) {
                const ByteBlock raw = *reinterpret_cast<const ByteBlock*>(text + at);
                classes = classify_block(raw, text, at, length,
                                         lowered_bytes(memory) + kCarriedBytes + thread * kBlockBytes);
            }
            classes_[thread] = classes;
            before_[thread] = classes.word >> 15 | classes.single >> 15 << 1;
        });
    }

    // One bit a byte where a token begins, and one where it has ended, at the first byte behind it; their numbers.
    OSIM_DEVICE void find_borders() {
        warp_.each([this](int thread) {
            const auto [word, single, lead] = classes_[thread];
            const std::uint32_t after_word = (word << 1 | (before_[thread] & 1)) & 0xFFFF;
            const std::uint32_t after_single = (single << 1 | before_[thread] >> 1) & ~(single & ~lead);
            const std::uint32_t border = ~(word & after_word) | lead | after_single;
            begins_[thread] = word & border;
            ends_[thread] = after_word & border;
            counts_[thread] = count_bits(begins_[thread]) | count_bits(ends_[thread]) << 16;
        });
    }

    // Tokens first .. first + count - 1 of the chunk, a thread each.
    OSIM_DEVICE void hash_tokens(std::int64_t base, std::uint32_t first, int count, std::int64_t open_begin) {
        Memory* const memory = memory_;
        const std::uint8_t* const text = text_;
        warp_.each([=](int thread) {
            if (thread < count) {
                const std::uint32_t begin = memory->begins[first + thread];
                const std::uint32_t end = memory->ends[first + thread];
                memory->tokens[kTokensBefore + thread] =
                    begin == kLongToken ? lowered_token_hash(text, open_begin, base + end - kCarriedBytes)
                                        : token_hash(memory->lowered, begin, end);
            }
        });
        warp_.sync(Barrier::kTokens);
    }

    OSIM_DEVICE static std::uint64_t token_hash(const std::uint32_t* lowered, std::uint32_t begin, std::uint32_t end) {
        std::uint64_t state = word_hash_start(end - begin);
        for (; end - begin > 8; begin += 8) {
            state = word_hash_step(state, eight_bytes(lowered, begin));
        }
        return word_hash_step(state, eight_bytes(lowered, begin) & ~std::uint64_t{0} >> (64 - 8 * (end - begin)));
    }

    OSIM_DEVICE static std::uint64_t eight_bytes(const std::uint32_t* words, std::uint32_t at) {
        words += at / 4;
        const std::uint32_t shift = 8 * (at % 4);
        const std::uint64_t low = (static_cast<std::uint64_t>(words[1]) << 32 | words[0]) >> shift;
        const std::uint64_t high = (static_cast<std::uint64_t>(words[2]) << 32 | words[1]) >> shift;
        return high << 32 | static_cast<std::uint32_t>(low);
    }

    // Shingles that end in this round's tokens, of which `before` came earlier.
    template <Lanes kind>
    OSIM_DEVICE void take_tokens(int count, std::uint32_t before) {
        Memory* const memory = memory_;
        const int without = before < kTokensBefore ? kTokensBefore - static_cast<int>(before) : 0;
        const int shingles = count > without ? count - without : 0;
        const bool needed = kind == Lanes::kWide || distinct_ <= kWideShingles;
        warp_.each([this, memory, count, without, shingles, before, needed](int thread) {
            fresh_[thread] = 0;
            if (thread >= without && thread < count) {
                const std::uint64_t* const token = memory->tokens + thread;
                const std::uint32_t shingle =
                    shingle_hash(token_pair(token[0], token[1]), token_pair(token[2], token[3]), token[4]);
                const int at = thread - without;
                memory->shingles[at] = shingle;
                for (int padded = at + 1; at + 1 == shingles && padded % 4 != 0; ++padded) {
                    memory->shingles[padded] = shingle;  // which a minimum ignores
                }
                if constexpr (kMayBeWide && kind == Lanes::kNarrow) {
                    fresh_[thread] = needed && add_to_set(memory->set, shingle);
                }
            }
            if (kind == Lanes::kNarrow && thread < kChains) {
                std::uint64_t chain = chain_[thread];
                for (int i = (thread ^ before) & 1; i < count; i += 2) {
                    chain = chain_step(chain, memory->tokens[kTokensBefore + i], thread >= kLowEven);
                }
                chain_[thread] = chain;
            }
            kept_[thread] = thread < kTokensBefore ? memory->tokens[count + thread] : 0;
        });
        warp_.sync(Barrier::kShingles);
        if constexpr (kMayBeWide && kind == Lanes::kNarrow) {
            distinct_ += warp_.exclusive_sum(fresh_);
        }
        warp_.each([this, memory, shingles, needed](int thread) {
            if (thread < kTokensBefore) {
                memory->tokens[thread] = kept_[thread];
            }
            for (int i = 0; needed && i < shingles; i += 4) {
                const ByteBlock four = *reinterpret_cast<const ByteBlock*>(memory->shingles + i);
                for (int lane = 0; lane < kLanesPerThread; ++lane) {
                    std::uint32_t least = least_[thread].lanes[lane];
                    for (const std::uint32_t shingle : four.words) {
                        const std::uint32_t hash =
                            lane32(shingle, flip_[thread].lanes[lane], multiply_[thread].lanes[lane]);
                        least = hash < least ? hash : least;
                    }
                    least_[thread].lanes[lane] = least;
                }
            }
        });
    }

    // True for the first thread that brings this shingle.
    OSIM_DEVICE static bool add_to_set(std::uint32_t* set, std::uint32_t shingle) {
        if (shingle == 0) {
            return Warp::claim(set + kSetSlots, 1) == 0;
        }
        for (std::uint32_t slot = shingle % kSetSlots;; slot = (slot + 1) % kSetSlots) {
            const std::uint32_t found = Warp::claim(set + slot, shingle);
            if (found == 0 || found == shingle) {
                return found == 0;
            }
        }
    }

    OSIM_DEVICE Width width_of(std::uint32_t tokens) const {
        if (tokens < kShingleTokens) {
            return kNone;
        }
        if (!kMayBeWide || distinct_ < job_.wide_from) {
            return kNarrow;
        }
        return needs_narrow(distinct_) ? kBoth : kWide;
    }

    // The exact hash of the tokens or, without any, of the bytes.
    OSIM_DEVICE void write_hash(std::int64_t row, std::uint32_t tokens) {
        const std::uint8_t* const text = text_;
        const std::int64_t length = length_;
        warp_.each([this, text, length, tokens](int thread) {
            for (std::int64_t at = 0; tokens == 0 && thread < kChains && at < length; at += 16) {
                const std::int64_t from = at + 8 * (thread & 1);
                const std::uint64_t eight = from < length ? eight_bytes_at(text + from, length - from) : 0;
                chain_[thread] = chain_step(chain_[thread], eight, thread >= kLowEven);
            }
        });
        const std::uint64_t high_even = warp_.value_of(chain_, kHighEven);
        const std::uint64_t high_odd = warp_.value_of(chain_, kHighOdd);
        const std::uint64_t low_even = warp_.value_of(chain_, kLowEven);
        const std::uint64_t low_odd = warp_.value_of(chain_, kLowOdd);
        ExactHash* const hashes = job_.hashes;
        warp_.each([=](int thread) {
            if (thread == 0) {
                hashes[row] = tokens > 0 ? exact_hash_of(high_even, high_odd, low_even, low_odd, tokens, 0)
                                         : exact_hash_of(high_even, high_odd, low_even, low_odd, length, 1);
            }
        });
    }

    OSIM_DEVICE void write_width(std::int64_t row, Width width) {
        std::uint8_t* const widths = job_.widths;
        warp_.each([=](int thread) {
            if (thread == 0) {
                widths[row] = width;
            }
        });
    }

    // All lanes to shared memory; zeros for a text without shingles.
    OSIM_DEVICE void gather_lanes(bool present) {
        Memory* const memory = memory_;
        warp_.each([this, memory, present](int thread) {
            for (int i = 0; i < kLanesPerThread; ++i) {
                memory->lanes[thread * kLanesPerThread + i] = present ? least_[thread].lanes[i] : 0;
            }
        });
        warp_.sync(Barrier::kLanes);
    }

    OSIM_DEVICE void write_keys(std::uint32_t* keys, std::int64_t stride, bool present) {
        Memory* const memory = memory_;
        warp_.each([=](int thread) {
            if (thread < kBands) {
                keys[thread * stride] = present ? band_key(memory->lanes + thread * kRows) : 0;
            }
        });
    }

    // Digits and, where wanted, the signature.
    OSIM_DEVICE void write_row(std::int64_t row) {
        Memory* const memory = memory_;
        Digits* const digits = job_.digits;
        std::uint16_t* const signatures = job_.signatures;
        warp_.each([=](int thread) {
            if (thread < kLanes / 16) {
                digits[row].words[thread] = digit_word(memory->lanes + thread * 16);
            }
            for (int lane = thread; signatures != nullptr && lane < kLanes; lane += kWarp) {
                signatures[row * kLanes + lane] = static_cast<std::uint16_t>(memory->lanes[lane]);
            }
        });
    }

    Warp& warp_;
    Memory* const memory_;
    const LaneTable* const table_;
    const SketchJob& job_;
    const std::uint8_t* text_ = nullptr;
    std::int64_t length_ = 0;
    std::uint32_t distinct_ = 0;

    typename Warp::template Local<ByteClasses> classes_;
    typename Warp::template Local<std::uint32_t> before_;  // of the byte before a thread's, as Reading::last_byte
    typename Warp::template Local<std::uint32_t> begins_;
    typename Warp::template Local<std::uint32_t> ends_;
    typename Warp::template Local<std::uint32_t> counts_;  // of begins and, in the upper half, ends; then those before
    typename Warp::template Local<std::uint32_t> fresh_;   // 1 for a shingle that the set did not hold
    typename Warp::template Local<std::uint64_t> kept_;    // the last tokens of a round, in threads 0 to 3
    typename Warp::template Local<std::uint64_t> chain_;   // of the exact hash, in threads 0 to 3
    typename Warp::template Local<OfThread> flip_;
    typename Warp::template Local<OfThread> multiply_;
    typename Warp::template Local<OfThread> least_;
};

}  // namespace osim
