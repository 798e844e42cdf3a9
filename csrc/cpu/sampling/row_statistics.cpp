#include "cpu/sampling/row_statistics.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>

namespace fastpower {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

}  // namespace

int Logits::block_size(int64_t block) const {
  return static_cast<int>(std::min<int64_t>(kBlock, vocab - block * kBlock));
}

const void* Logits::entries(int64_t row, int64_t token) const {
  return static_cast<const char*>(data) + (row * stride + token) * size_of(dtype);
}

float Logits::at(int64_t row, int64_t token) const {
  const int64_t i = row * stride + token;
  switch (dtype) {
    case Dtype::float32:
      return static_cast<const float*>(data)[i];
    case Dtype::bfloat16:
      return to_float(static_cast<const bfloat16*>(data)[i]);
    case Dtype::float16:
      return to_float(static_cast<const float16*>(data)[i]);
  }
  return 0;
}

void block_partial(const Logits& logits, int64_t row, int64_t block, const float* exponents, int64_t count,
                   double* partial, int64_t drawn, Quarter* quarters) {
  const BlockStatistics b =
      block_kernels(logits.dtype)
          .statistics(logits.entries(row, block * kBlock), logits.block_size(block), exponents,
                      static_cast<int>(count), partial + kSums, static_cast<int>(drawn), quarters);
  partial[0] = b.m;
  partial[1] = b.s;
  partial[2] = b.t;
  partial[3] = b.top;
}

RowStatistics merge_row(const double* partials, int64_t blocks, int64_t stride, const float* exponents,
                        int64_t count, float* logz) {
  double m = -kInf;
  bool nan = false;
  for (int64_t b = 0; b < blocks; ++b) {
    m = std::max(m, partials[b * stride]);
    nan |= std::isnan(partials[b * stride + 1]);
  }
  if (nan || m == -kInf) {
    for (int64_t e = 0; e < count; ++e) logz[e] = std::numeric_limits<float>::quiet_NaN();
    return {nan ? Status::nan : Status::masked, kNaN, kNaN, kNaN, kNaN};
  }
  double s = 0, t = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const double* part = partials + b * stride;
    if (part[0] == -kInf) continue;  // contributes exactly 0
    const double d = part[0] - m, scale = d == 0 ? 1 : std::exp(d);
    s += scale * part[1];
    t += scale * (part[2] + d * part[1]);
  }
  const double log_s = std::log(s);
  for (int64_t e = 0; e < count; ++e) {
    const double power = exponents[e];
    const int64_t reference = reference_of(exponents[e]);
    double top = -kInf;
    for (int64_t b = 0; b < blocks; ++b) top = std::max(top, partials[b * stride + reference]);
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const double* part = partials + b * stride;
      if (part[0] == -kInf) continue;
      const double d = part[reference] - top;
      sum += d == 0 ? part[kSums + e] : std::exp(power * d) * part[kSums + e];
    }
    const double value = std::log(sum) + power * (top - m - log_s);
    // Rounding must not give a p^e that sums to more (e > 1) or less (e < 1) than p.
    logz[e] = static_cast<float>(power == 1 ? 0 : power > 1 ? std::min(value, 0.0) : std::max(value, 0.0));
  }
  return {Status::ok, m, log_s, m + log_s, std::max(log_s - t / s, 0.0)};
}

void check_positive(const char* op, const char* name, const float* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    if (!(values[i] > 0 && std::isfinite(values[i]))) {
      char value[32];
      std::snprintf(value, sizeof(value), "%g", values[i]);
      throw std::invalid_argument(std::string(op) + ": " + name + "[" + std::to_string(i) +
                                  "] must be finite and > 0, got " + value);
    }
}

void check_range(const char* op, const char* name, const int64_t* values, int64_t n, int64_t low,
                 int64_t end) {
  for (int64_t i = 0; i < n; ++i)
    if (values[i] < low || values[i] >= end)
      throw std::invalid_argument(std::string(op) + ": " + name + "[" + std::to_string(i) + "] must be in [" +
                                  std::to_string(low) + ", " + std::to_string(end) + "), got " +
                                  std::to_string(values[i]));
}

}  // namespace fastpower
