// A parallel loop over blocks of rows, taken in turn by the threads. An exception in a thread is thrown to the caller.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace osim::dedup {

// Each thread calls make_worker() once, then its worker(begin, end) for blocks of [0, count). With one thread
// everything runs in the caller's.
template <typename MakeWorker>
void for_each_block(std::int64_t count, std::int64_t block, int threads, MakeWorker make_worker) {
    std::atomic<std::int64_t> next{0};
    std::exception_ptr failure;
    std::mutex lock;
    const auto run = [&] {
        try {
            auto worker = make_worker();
            for (;;) {
                const std::int64_t begin = next.fetch_add(block);
                if (begin >= count) {
                    return;
                }
                worker(begin, std::min(begin + block, count));
            }
        } catch (...) {  // of any kind: it is rethrown below, in the caller's thread
            next = count;
            const std::scoped_lock hold(lock);
            failure = failure ? failure : std::current_exception();
        }
    };
    std::vector<std::thread> others;
    for (int thread = 1; thread < threads; ++thread) {
        others.emplace_back(run);
    }
    run();
    for (auto& other : others) {
        other.join();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
}

}  // namespace osim::dedup
