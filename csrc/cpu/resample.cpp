#include "cpu/resample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastpower {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

std::string place(const char* name, int64_t set, int64_t i) {
  return std::string("resample: ") + name + "[" + std::to_string(set) + ", " + std::to_string(i) + "]";
}

// Running sums of the masses, and the last index that has any.
struct Running {
  std::vector<double> sum;
  int64_t last = 0;

  explicit Running(const std::vector<double>& mass) : sum(mass.size()) {
    double total = 0;
    for (size_t i = 0; i < mass.size(); ++i) {
      if (mass[i] > 0) last = static_cast<int64_t>(i);
      sum[i] = total += mass[i];
    }
  }
  // First index whose running sum exceeds `share` of the total.
  int64_t first_above(double share) const {
    const auto found = std::upper_bound(sum.begin(), sum.end(), share * sum.back());
    return std::min<int64_t>(found - sum.begin(), last);
  }
};

void ancestors(const std::vector<double>& weight, double total, const double* u, Scheme scheme,
               int64_t* index) {
  const int64_t count = static_cast<int64_t>(weight.size());
  if (scheme == Scheme::residual) {
    std::vector<double> fraction(weight.size());
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double expected = static_cast<double>(count) * (weight[i] / total), copies = std::floor(expected);
      fraction[i] = expected - copies;
      for (int64_t c = 0; c < static_cast<int64_t>(copies) && kept < count; ++c) index[kept++] = i;
    }
    if (kept == count) return;
    const Running running(fraction);
    for (int64_t j = 0; kept + j < count; ++j) index[kept + j] = running.first_above(u[j]);
    return;
  }
  const Running running(weight);
  for (int64_t k = 0; k < count; ++k) {
    const double n = static_cast<double>(count), position = static_cast<double>(k);
    const double t = scheme == Scheme::multinomial  ? u[k]
                     : scheme == Scheme::stratified ? (position + u[k]) / n
                                                    : (position + u[0]) / n;
    index[k] = running.first_above(t);
  }
}

}  // namespace

void resample(const double* log_weights, const double* uniforms, int64_t sets, int64_t count, Scheme scheme,
              int64_t* index, double* ess, double* log_mean) {
  const int64_t draws = scheme == Scheme::systematic ? 1 : count;
  for (int64_t set = 0; set < sets; ++set) {
    for (int64_t i = 0; i < count; ++i)
      if (!(log_weights[set * count + i] < kInf))
        throw std::invalid_argument(place("log_weights", set, i) + " must be finite or -inf, got " +
                                    std::to_string(log_weights[set * count + i]));
    for (int64_t i = 0; i < draws; ++i)
      if (!(uniforms[set * draws + i] >= 0 && uniforms[set * draws + i] < 1))
        throw std::invalid_argument(place("uniforms", set, i) + " must be in [0, 1), got " +
                                    std::to_string(uniforms[set * draws + i]));
  }
  std::vector<double> weight(count);
  for (int64_t set = 0; set < sets; ++set) {
    const double* row = log_weights + set * count;
    int64_t* chosen = index + set * count;
    const double top = *std::max_element(row, row + count);
    if (top == -kInf) {
      std::fill_n(chosen, count, -1);
      ess[set] = 0;
      log_mean[set] = -kInf;
      continue;
    }
    double total = 0, squares = 0;
    for (int64_t i = 0; i < count; ++i) {
      weight[i] = std::exp(row[i] - top);
      total += weight[i];
      squares += weight[i] * weight[i];
    }
    ess[set] = total * total / squares;
    log_mean[set] = top + std::log(total / static_cast<double>(count));
    ancestors(weight, total, uniforms + set * draws, scheme, chosen);
  }
}

}  // namespace fastpower
