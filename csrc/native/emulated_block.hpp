// One GPU thread block on the CPU: a phase runs for one thread after the other, and the next phase starts when all are
// done, which is what a barrier grants. The order of threads is the policy's: code that needs any other is wrong.
#pragma once

#include "block.hpp"

namespace osim {

template <int Threads>
class EmulatedBlock {
public:
    static constexpr int kThreads = Threads;

    explicit EmulatedBlock(int index) : index_(index) {}
    int index() const { return index_; }

    template <class F>
    void each(F phase) {
        for (int thread = 0; thread < Threads; ++thread) {
            phase(thread);
        }
    }

private:
    int index_;
};

}  // namespace osim
