// Block-wide building steps, written once for two machines: a GPU thread block and its emulation on the CPU.
//
// A Block policy offers
//     static constexpr int kThreads;
//     int index() const;                          // which block of the grid
//     template <class F> void each(F phase);      // phase(thread) for all threads, then a barrier
// and code outside of `each` runs alike in every thread: it may read memory that an earlier phase wrote and no later
// one changes. Within a phase no thread may read what another writes: that is what the barriers are for, and what the
// emulation's shuffled thread order brings to light (tests/native/block_barriers.cpp). Lambdas capture by value,
// since an emulation may keep a phase beyond the statement that names it.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define OSIM_DEVICE __device__
#else
#define OSIM_DEVICE
#endif

namespace osim {

constexpr int kDigitBits = 4;
constexpr int kDigits = 1 << kDigitBits;

// Shared memory of one block.
template <int Threads>
struct BlockScratch {
    std::int32_t partial[2][Threads];          // running sums of `exclusive_scan`, double-buffered
    std::int32_t counters[kDigits * Threads];  // of `sort_pass`, digit-major
    std::int32_t own[Threads];                 // one value a thread, for the caller
};

OSIM_DEVICE inline std::int32_t smaller(std::int32_t a, std::int32_t b) { return a < b ? a : b; }
OSIM_DEVICE inline std::int32_t larger(std::int32_t a, std::int32_t b) { return a > b ? a : b; }
OSIM_DEVICE inline std::int32_t divide_up(std::int32_t a, std::int32_t b) { return a / b + (a % b != 0); }

// put(i, get(0) + ... + get(i - 1)) for every i in [0, count]; put(count, ...) hands over the total. Each i < count is
// read and then put by one thread, so put may overwrite what get reads. A thread takes a run of neighbours, and the
// sums of the runs are scanned in log2(kThreads) steps (Hillis and Steele, "Data parallel algorithms", 1986).
template <class Block, class Get, class Put>
OSIM_DEVICE void exclusive_scan(Block& block, BlockScratch<Block::kThreads>* scratch, std::int32_t count, Get get,
                                Put put) {
    constexpr int kThreads = Block::kThreads;
    const std::int32_t run = divide_up(count, kThreads);
    block.each([=](int thread) {
        std::int32_t sum = 0;
        const std::int32_t stop = smaller((thread + 1) * run, count);
        for (std::int32_t i = thread * run; i < stop; ++i) {
            sum += get(i);
        }
        scratch->partial[0][thread] = sum;
    });
    int from = 0;
    for (int reach = 1; reach < kThreads; reach *= 2, from = 1 - from) {
        block.each([=](int thread) {
            const std::int32_t* sums = scratch->partial[from];
            scratch->partial[1 - from][thread] = sums[thread] + (thread >= reach ? sums[thread - reach] : 0);
        });
    }
    block.each([=](int thread) {
        std::int32_t sum = thread > 0 ? scratch->partial[from][thread - 1] : 0;
        const std::int32_t stop = smaller((thread + 1) * run, count);
        for (std::int32_t i = thread * run; i < stop; ++i) {
            const std::int32_t value = get(i);
            put(i, sum);
            sum += value;
        }
        if (thread == kThreads - 1) {
            put(count, sum);
        }
    });
}

// One pass of a stable counting sort, descending in the digit of `keys` at bit `shift`: order_out holds the indices of
// order_in rearranged. Threads own runs of neighbours, and counts are laid out digit by digit, then thread by thread,
// so that their scan gives every index its place whatever the timing: no atomics, the same bits every time.
template <class Block>
OSIM_DEVICE void sort_pass(Block& block, BlockScratch<Block::kThreads>* scratch, std::int32_t count,
                           const std::int32_t* keys, int shift, const std::int32_t* order_in,
                           std::int32_t* order_out) {
    constexpr int kThreads = Block::kThreads;
    const std::int32_t run = divide_up(count, kThreads);
    const auto counter_of = [=](std::int32_t index, int thread) {
        const std::int32_t digit = kDigits - 1 - ((keys[index] >> shift) & (kDigits - 1));
        return scratch->counters + digit * kThreads + thread;
    };
    block.each([=](int thread) {
        for (int digit = 0; digit < kDigits; ++digit) {
            scratch->counters[digit * kThreads + thread] = 0;
        }
        const std::int32_t stop = smaller((thread + 1) * run, count);
        for (std::int32_t i = thread * run; i < stop; ++i) {
            ++*counter_of(order_in[i], thread);
        }
    });
    exclusive_scan(
        block, scratch, kDigits * kThreads, [=](std::int32_t i) { return scratch->counters[i]; },
        [=](std::int32_t i, std::int32_t sum) {
            if (i < kDigits * kThreads) {
                scratch->counters[i] = sum;
            }
        });
    block.each([=](int thread) {
        const std::int32_t stop = smaller((thread + 1) * run, count);
        for (std::int32_t i = thread * run; i < stop; ++i) {
            order_out[(*counter_of(order_in[i], thread))++] = order_in[i];
        }
    });
}

}  // namespace osim
