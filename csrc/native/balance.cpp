// Longest-processing-time dealing under a cardinality limit, then swaps; see balance.hpp for the contract.
#include "balance.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <queue>
#include <stdexcept>
#include <string>
#include <utility>

namespace osim {
namespace {

// A swap must gain this share of the mean load; below it, nobody would notice and rounding could cycle.
constexpr double kWorthwhile = 1e-4;

// Share of the tokens plus share of the attention work that each row brings.
std::vector<double> row_weights(const std::int64_t* loads, std::int64_t count) {
    double totals[2] = {0.0, 0.0};
    for (std::int64_t i = 0; i < 2 * count; ++i) {
        if (loads[i] < 0) {
            throw std::invalid_argument("row " + std::to_string(i / 2) + " has a negative load");
        }
        totals[i % 2] += static_cast<double>(loads[i]);
    }
    std::vector<double> weight(count, 0.0);
    for (std::int64_t i = 0; i < 2 * count; ++i) {
        if (totals[i % 2] > 0.0) {
            weight[i / 2] += static_cast<double>(loads[i]) / totals[i % 2];
        }
    }
    return weight;
}

struct Group {
    double load = 0.0;
    std::vector<std::int64_t> rows;  // heaviest first
};

// Largest row first to the least loaded group that still has one of its `places`.
std::vector<Group> deal(const std::vector<double>& weight, std::int64_t groups, std::size_t places) {
    std::vector<std::int64_t> order(weight.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return weight[a] > weight[b]; });

    // (load, group): the smallest pair is the least loaded group, the lower one of equals.
    using Entry = std::pair<double, std::int64_t>;
    std::priority_queue<Entry, std::vector<Entry>, std::greater<>> least_loaded;
    for (std::int64_t group = 0; group < groups; ++group) {
        least_loaded.emplace(0.0, group);
    }
    std::vector<Group> dealt(groups);
    for (const std::int64_t row : order) {
        const std::int64_t index = least_loaded.top().second;
        least_loaded.pop();
        Group& group = dealt[index];
        group.rows.push_back(row);
        group.load += weight[row];
        if (group.rows.size() < places) {
            least_loaded.emplace(group.load, index);
        }
    }
    return dealt;
}

// Exchanges the pair of rows that brings two groups closest to their mean; false if no pair is worth it.
bool swap_towards_mean(Group& heavy, Group& light, const std::vector<double>& weight, double worthwhile) {
    const auto heavier = [&](auto a, auto b) { return weight[a] != weight[b] ? weight[a] > weight[b] : a < b; };
    const double half_gap = (heavy.load - light.load) / 2;
    double best_error = half_gap - worthwhile;  // a difference of 0 or of the whole gap would gain nothing
    std::size_t give = 0;
    std::size_t receive = 0;
    bool found = false;
    const auto consider = [&](std::size_t g, std::size_t r) {
        const double error = std::abs(weight[heavy.rows[g]] - weight[light.rows[r]] - half_gap);
        if (error < best_error) {
            best_error = error;
            give = g;
            receive = r;
            found = true;
        }
    };
    std::size_t r = 0;  // first row of `light` at or below the weight wanted back; moves one way, as both are sorted
    for (std::size_t g = 0; g < heavy.rows.size(); ++g) {
        const double wanted = weight[heavy.rows[g]] - half_gap;
        while (r < light.rows.size() && weight[light.rows[r]] > wanted) {
            ++r;
        }
        if (r < light.rows.size()) {
            consider(g, r);
        }
        if (r > 0) {
            consider(g, r - 1);
        }
    }
    if (!found) {
        return false;
    }
    const double difference = weight[heavy.rows[give]] - weight[light.rows[receive]];
    std::swap(heavy.rows[give], light.rows[receive]);
    heavy.load -= difference;
    light.load += difference;
    std::sort(heavy.rows.begin(), heavy.rows.end(), heavier);
    std::sort(light.rows.begin(), light.rows.end(), heavier);
    return true;
}

// Relieves the heaviest group by swaps with the lightest that can help, until none can. Ends: every swap lowers the
// sum of squared loads by at least a fixed amount.
void refine(std::vector<Group>& dealt, const std::vector<double>& weight) {
    const auto by_load = [&](std::size_t a, std::size_t b) { return dealt[a].load < dealt[b].load; };
    std::vector<std::size_t> order(dealt.size());
    std::iota(order.begin(), order.end(), 0);
    const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
    const double worthwhile = kWorthwhile * total / static_cast<double>(dealt.size());
    bool improved = total > 0.0;
    while (improved) {
        std::stable_sort(order.begin(), order.end(), by_load);
        Group& heaviest = dealt[order.back()];
        improved = std::any_of(order.begin(), order.end() - 1, [&](std::size_t lighter) {
            return swap_towards_mean(heaviest, dealt[lighter], weight, worthwhile);
        });
    }
}

}  // namespace

std::vector<std::int32_t> balance(const std::int64_t* loads, std::int64_t count, std::int64_t groups) {
    if (groups < 1 || groups > std::numeric_limits<std::int32_t>::max() || count % groups != 0) {
        throw std::invalid_argument(std::to_string(count) + " rows cannot be dealt evenly to " +
                                    std::to_string(groups) + " groups: choose a batch that the groups divide");
    }
    const std::vector<double> weight = row_weights(loads, count);
    std::vector<Group> dealt = deal(weight, groups, static_cast<std::size_t>(count / groups));
    refine(dealt, weight);
    std::vector<std::int32_t> group_of_row(count);
    for (std::int64_t group = 0; group < groups; ++group) {
        for (const std::int64_t row : dealt[group].rows) {
            group_of_row[row] = static_cast<std::int32_t>(group);
        }
    }
    return group_of_row;
}

}  // namespace osim
