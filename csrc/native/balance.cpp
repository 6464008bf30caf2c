// Longest-processing-time dealing under a cardinality limit; see balance.hpp for the contract.
#include "balance.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <queue>
#include <stdexcept>
#include <string>
#include <utility>

namespace osim {

std::vector<std::int32_t> balance(const std::int64_t* loads, std::int64_t count, std::int64_t groups) {
    if (groups < 1 || groups > std::numeric_limits<std::int32_t>::max() || count % groups != 0) {
        throw std::invalid_argument(std::to_string(count) + " rows cannot be dealt evenly to " +
                                    std::to_string(groups) + " groups: choose a batch that the groups divide");
    }
    double totals[2] = {0.0, 0.0};
    for (std::int64_t i = 0; i < 2 * count; ++i) {
        if (loads[i] < 0) {
            throw std::invalid_argument("row " + std::to_string(i / 2) + " has a negative load");
        }
        totals[i % 2] += static_cast<double>(loads[i]);
    }
    std::vector<double> weight(count);
    for (std::int64_t i = 0; i < count; ++i) {
        for (int column = 0; column < 2; ++column) {
            if (totals[column] > 0.0) {
                weight[i] += static_cast<double>(loads[2 * i + column]) / totals[column];
            }
        }
    }
    std::vector<std::int64_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return weight[a] > weight[b]; });

    // (load so far, group): the smallest pair is the least loaded group, the lower one of equals.
    std::priority_queue<std::pair<double, std::int32_t>, std::vector<std::pair<double, std::int32_t>>, std::greater<>>
        least_loaded;
    for (std::int32_t group = 0; group < groups; ++group) {
        least_loaded.emplace(0.0, group);
    }
    const std::int64_t places = count / groups;
    std::vector<std::int64_t> members(groups, 0);
    std::vector<std::int32_t> group_of_row(count);
    for (const std::int64_t row : order) {
        const auto [load, group] = least_loaded.top();
        least_loaded.pop();
        group_of_row[row] = group;
        if (++members[group] < places) {
            least_loaded.emplace(load + weight[row], group);
        }
    }
    return group_of_row;
}

}  // namespace osim
