// Runs the device text of csrc/common/batch_metadata.hpp on blocks whose threads stand in random order.
//     block_barriers shuffle   every order of threads and blocks must give the bits of the plain order
//     block_barriers omit      leaves out one barrier at a time; some order must then give other bits, or crash
// Built and run by test_batch_metadata.py, with the sanitizers.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "batch_buffer.hpp"
#include "emulated_block.hpp"

namespace {

constexpr int kThreads = 16;  // as with 256, the scans take an even number of steps

// Threads run a phase in random order. A phase whose barrier is omitted waits until the next one is known; then each
// thread runs the two without waiting for the others.
class ShuffledBlock {
public:
    static constexpr int kThreads = ::kThreads;

    ShuffledBlock(int index, unsigned seed, int omitted) : index_(index), omitted_(omitted), random_(seed) {}
    ~ShuffledBlock() {
        if (pending_) {
            run([](int) {});
        }
    }
    int index() const { return index_; }
    int phases() const { return phases_; }

    template <class F>
    void each(F phase) {
        if (phases_++ == omitted_) {
            pending_ = phase;
        } else {
            run(phase);
        }
    }

private:
    template <class F>
    void run(F phase) {
        int order[kThreads];
        std::iota(order, order + kThreads, 0);
        std::shuffle(order, order + kThreads, random_);
        for (const int thread : order) {
            if (pending_) {
                pending_(thread);
            }
            phase(thread);
        }
        pending_ = nullptr;
    }

    int index_;
    int omitted_;
    int phases_ = 0;
    std::mt19937 random_;
    std::function<void(int)> pending_;
};

struct Case {
    std::vector<std::int32_t> cu_seqlens;
    std::vector<std::int32_t> parents;
    std::vector<float> weights;
    int window;

    osim::BatchMetadata batch() const {
        return osim::checked_batch(cu_seqlens.data(), static_cast<std::int64_t>(cu_seqlens.size()), parents.data(),
                                   weights.data(), static_cast<std::int64_t>(weights.size()), 10, 9, window,
                                   {260, 700, 280, 2'500});
    }

    // All outputs after running the blocks of the grid in the order that make(index) hands them out.
    template <class Make>
    std::vector<std::int32_t> run(Make make, unsigned seed) const {
        osim::BatchMetadata batch = this->batch();
        std::vector<std::int32_t> buffer(osim::set_buffer(batch, nullptr), -1);
        osim::set_buffer(batch, buffer.data());
        std::vector<int> blocks(osim::batch_blocks(batch.packing.rows));
        std::iota(blocks.begin(), blocks.end(), 0);
        std::shuffle(blocks.begin(), blocks.end(), std::mt19937(seed));
        for (const int index : blocks) {
            auto block = make(index);
            using Scratch = osim::BlockScratch<decltype(block)::kThreads>;
            const std::vector<Scratch> shared(1, [] {
                Scratch poisoned;
                std::fill_n(reinterpret_cast<std::int32_t*>(&poisoned), sizeof(Scratch) / 4, -1);
                return poisoned;
            }());
            osim::batch_metadata(block, const_cast<Scratch*>(shared.data()), batch);
        }
        return buffer;
    }

    std::vector<std::int32_t> plain() const {
        return run([](int index) { return osim::EmulatedBlock<kThreads>(index); }, 0);
    }

    std::vector<std::int32_t> shuffled(unsigned seed, int block, int omitted) const {
        return run(
            [=](int index) { return ShuffledBlock(index, seed + index, index == block ? omitted : -1); }, seed);
    }
};

// Over two chunks of rows: a tree of prefixes, plain documents under a window, a giant whose tiles' work takes every
// digit of both sorting passes, and a tree broken at its root.
std::vector<Case> cases() {
    Case tree{{0}, {-1, 0, 1, 0, -1, -1, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, -1, -1, -1}, {}, 0};
    const int lengths[] = {90, 33, 17, 150, 1, 300, 40, 41, 1, 0, 77, 16, 32, 48, 5, 100, 200, 640, 129, 70};
    for (const int length : lengths) {
        tree.cu_seqlens.push_back(tree.cu_seqlens.back() + length);
    }
    std::mt19937 random(7);
    for (int row = 0; row < 2'100; ++row) {
        tree.weights.push_back(random() % 3 == 0 ? 1.0f : 0.0f);
    }
    Case documents = tree;
    std::fill(documents.parents.begin(), documents.parents.end(), -1);
    documents.window = 100;
    Case broken = tree;
    broken.parents[0] = 3;
    const Case giant{{0, 2'000, 2'060, 2'060}, {-1, -1, -1}, tree.weights, 0};
    return {tree, documents, giant, broken};
}

int shuffle() {
    int agreed = 0;
    for (const Case& one : cases()) {
        const auto expected = one.plain();
        for (unsigned seed = 0; seed < 100; ++seed) {
            if (one.shuffled(seed, -1, -1) != expected) {
                std::printf("order %u gives other bits\n", seed);
                return 1;
            }
            ++agreed;
        }
    }
    std::printf("%d orders agree\n", agreed);
    return 0;
}

// Whether some order shows that block `block` misses its barrier after phase `omitted`. Each try runs in a process of
// its own, since what it reads may be anything.
bool missed(const std::vector<Case>& tried, const std::vector<std::vector<std::int32_t>>& expected, int block,
            int omitted) {
    for (unsigned seed = 0; seed < 20; ++seed) {
        for (std::size_t c = 0; c < tried.size(); ++c) {
            const pid_t child = fork();
            if (child == 0) {
                alarm(10);
                std::fclose(stderr);
                _exit(tried[c].shuffled(seed, block, omitted) == expected[c] ? 0 : 1);
            }
            int status = 0;
            waitpid(child, &status, 0);
            if (status != 0) {
                return true;
            }
        }
    }
    return false;
}

int omit() {
    const std::vector<Case> tried = cases();
    std::vector<std::vector<std::int32_t>> expected;
    for (const Case& one : tried) {
        expected.push_back(one.plain());
    }
    int barriers = 0;
    int caught = 0;
    for (int index = 0; index < osim::batch_blocks(static_cast<std::int32_t>(tried[0].weights.size())); ++index) {
        int phases = 0;
        {
            osim::BatchMetadata batch = tried[0].batch();
            std::vector<std::int32_t> buffer(osim::set_buffer(batch, nullptr), -1);
            osim::set_buffer(batch, buffer.data());
            osim::BlockScratch<kThreads> shared;
            ShuffledBlock block(index, 0, -1);
            osim::batch_metadata(block, &shared, batch);
            phases = block.phases();
        }
        for (int omitted = 0; omitted + 1 < phases; ++omitted) {  // behind the last phase the kernel ends
            ++barriers;
            if (missed(tried, expected, index, omitted)) {
                ++caught;
            } else {
                std::printf("block %d does without its barrier %d\n", index, omitted);
            }
        }
    }
    std::printf("%d of %d barriers missed\n", caught, barriers);
    return caught == barriers ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
    const std::string mode = count == 2 ? arguments[1] : "";
    if (mode == "shuffle") {
        return shuffle();
    }
    if (mode == "omit") {
        return omit();
    }
    std::fprintf(stderr, "usage: block_barriers shuffle|omit\n");
    return 2;
}
