// Deals the rows of one global batch to data-parallel ranks so that no rank waits for another.
#pragma once

#include <cstdint>
#include <vector>

namespace osim {

// Returns the group of each of `count` rows; every group gets exactly count / groups of them.
//
// loads is [count, 2], row-major: tokens (linear work) and the sum of squared document lengths (attention work).
// Both columns are divided by their own total and added. Rows are dealt largest first to the least loaded group that
// still has a place (Graham's longest-processing-time rule, with a cardinality limit); then the heaviest group
// exchanges single rows with lighter ones while that helps, since the limit forces the last rows on whoever has a
// place left. Ties go to the lower row and the lower group, so the answer is a pure function of the input.
//
// Throws std::invalid_argument if groups does not divide count or a load is negative.
std::vector<std::int32_t> balance(const std::int64_t* loads, std::int64_t count, std::int64_t groups);

}  // namespace osim
