// Sketches and clusters the texts on stdin, each behind its length (uint32), and writes the columns to stdout: hashes,
// widths, keys, digits, survivors, indices. Compiled for another processor and compared by test_dedup_aarch64.py.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "cluster.hpp"
#include "sketch.hpp"

namespace {

using namespace osim::dedup;

class StoredTexts : public Texts {
  public:
    void add(std::vector<std::uint8_t> text) { texts_.push_back(std::move(text)); }
    std::int64_t count() const { return static_cast<std::int64_t>(texts_.size()); }
    Text text(std::int64_t row) const { return texts_[row]; }
    Text read(std::int64_t row, std::vector<std::uint8_t>&) const override { return texts_[row]; }

  private:
    std::vector<std::vector<std::uint8_t>> texts_;
};

template <typename T>
void write(const std::vector<T>& column) {
    std::fwrite(column.data(), sizeof(T), column.size(), stdout);
}

}  // namespace

int main() {
    constexpr double kThreshold = 0.8;
    constexpr int kThreads = 2;
    StoredTexts texts;
    for (std::uint32_t length; std::fread(&length, sizeof length, 1, stdin) == 1;) {
        std::vector<std::uint8_t> text(length);
        if (std::fread(text.data(), 1, length, stdin) != length) {
            return 1;
        }
        texts.add(std::move(text));
    }
    const std::int64_t count = texts.count();
    std::vector<osim::ExactHash> hashes(count);
    std::vector<Width> widths(count);
    std::vector<std::uint32_t> keys(count * osim::kBands);
    std::vector<osim::Digits> digits(count);
    std::vector<WideKeys> wide;
    sketch([&](std::int64_t row) { return texts.text(row); }, count, kThreshold, kThreads, best_simd(),
           {hashes.data(), widths.data(), keys.data(), digits.data(), nullptr, &wide});
    ClusterInput input;
    input.count = count;
    input.hashes = hashes.data();
    input.widths = widths.data();
    input.digits = digits.data();
    input.band = [&](int band, std::vector<std::uint32_t>&) { return keys.data() + band * count; };
    input.wide = wide;
    input.texts = &texts;
    input.threshold = kThreshold;
    std::vector<std::int64_t> survivors(count);
    std::vector<float> indices(count);
    cluster(input, kThreads, best_simd(), survivors.data(), indices.data());
    write(hashes);
    write(widths);
    write(keys);
    write(digits);
    write(survivors);
    write(indices);
    return 0;
}
