// Groups of rows pooled to one row each; kernels/reference/pool_rows.py is the specification.
#pragma once

#include <cstdint>

#include "cpu/sampling/row_statistics.h"

namespace fastpower {

// Group g is rows starts[g] .. starts[g + 1) of logits. pooled (groups, vocab) receives
// sum_k log softmax(z_k), log_mass (groups,) the log of the sum of its exponentials; NaN both, and a status,
// where a row of the group has no distribution. Throws std::invalid_argument if starts does not rise from 0
// to the number of rows (nothing is written then).
void pool_rows(const Logits& logits, const int64_t* starts, int64_t groups, float* pooled, float* log_mass,
               int32_t* status);

}  // namespace fastpower
