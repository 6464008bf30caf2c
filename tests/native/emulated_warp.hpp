// A GPU warp on the CPU, for csrc/common/warp_sketch.hpp. Phases wait in a queue until a barrier; then each thread, in
// random order, runs them all, as far ahead of the others as the barrier lets it. So code that needs another order, or
// a barrier that is omitted, shows. Operations across the warp wait for all threads, as the GPU's do.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "warp_sketch.hpp"

namespace osim {

class EmulatedWarp {
  public:
    template <class T>
    using Local = std::array<T, kWarp>;

    // Seed 0: threads in their own order. `omitted`: a Barrier that is left out, or -1.
    explicit EmulatedWarp(unsigned seed = 0, int omitted = -1)
        : shuffled_(seed != 0), omitted_(omitted), random_(seed) {
        std::iota(order_.begin(), order_.end(), 0);
    }

    template <class F>
    void each(F phase) {
        if (shuffled_) {
            pending_.push_back(phase);
        } else {
            for (int thread = 0; thread < kWarp; ++thread) {
                phase(thread);
            }
        }
    }

    void sync(Barrier which) {
        if (static_cast<int>(which) != omitted_) {
            run();
        }
    }

    // Call it at the end: phases may wait still.
    void run() {
        if (pending_.empty()) {
            return;
        }
        std::shuffle(order_.begin(), order_.end(), random_);
        for (const int thread : order_) {
            for (const auto& phase : pending_) {
                phase(thread);
            }
        }
        pending_.clear();
    }

    template <class T>
    T shift_up(Local<T>& values, T first) {
        run();
        const T last = values.back();
        std::copy_backward(values.begin(), values.end() - 1, values.end());
        values[0] = first;
        return last;
    }

    std::uint32_t exclusive_sum(Local<std::uint32_t>& values) {
        run();
        std::uint32_t sum = 0;
        for (std::uint32_t& value : values) {
            const std::uint32_t own = value;
            value = sum;
            sum += own;
        }
        return sum;
    }

    template <class T>
    T value_of(const Local<T>& values, int thread) {
        run();
        return values[thread];
    }

    static std::uint32_t claim(std::uint32_t* slot, std::uint32_t value) {
        const std::uint32_t before = *slot;
        *slot = before == 0 ? value : before;
        return before;
    }

  private:
    bool shuffled_;
    int omitted_;
    std::mt19937 random_;
    std::array<int, kWarp> order_;
    std::vector<std::function<void(int)>> pending_;
};

}  // namespace osim
