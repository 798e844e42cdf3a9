// Reductions over one thread block. Orders are fixed (a butterfly inside a warp, then the warps one after the
// other), so a result has the same bits on every run, in every batch and on every device.
#pragma once

#include "launch.h"

namespace fastpower {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kFullWarp = 0xFFFFFFFFu;

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct Min {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Or {
  __device__ int operator()(int a, int b) const { return a | b; }
};

// All threads of the block call it and all get the result.
template <typename T, typename Op>
__device__ T block_reduce(T x, Op op) {
  __shared__ T of_warp[kWarps];
  for (int offset = 16; offset > 0; offset /= 2) x = op(x, __shfl_xor_sync(kFullWarp, x, offset));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  x = of_warp[0];
  for (int warp = 1; warp < kWarps; ++warp) x = op(x, of_warp[warp]);
  __syncthreads();  // of_warp is written again by the next call
  return x;
}

// Sum of x over the threads up to and including this one; *total receives the sum over all.
__device__ inline double block_scan(double x, double* total) {
  __shared__ double of_warp[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int offset = 1; offset < 32; offset *= 2) {
    const double below = __shfl_up_sync(kFullWarp, x, offset);
    if (lane >= offset) x += below;
  }
  if (lane == 31) of_warp[warp] = x;
  __syncthreads();
  double before = 0.0, sum = 0.0;
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) before = sum;
    sum += of_warp[w];
  }
  __syncthreads();
  *total = sum;
  return before + x;
}

// Inverse CDF: the first i in [0, count) whose running sum of mass(0), mass(1), … exceeds u times the total.
// An i without mass is never returned; rounding at the end falls back to the last i with mass. At least one
// mass must be positive. Sums are in double so that a mass of 1e-6 of the total keeps its probability to many
// digits.
template <typename Mass>
__device__ int64_t inverse_cdf(int64_t count, double u, const Mass& mass) {
  __shared__ int64_t picked;
  const int thread = threadIdx.x;
  const int64_t width = (count + kThreads - 1) / kThreads;
  const int64_t first = thread * width < count ? thread * width : count;
  const int64_t end = first + width < count ? first + width : count;
  double own = 0.0, total;
  for (int64_t i = first; i < end; ++i) own += mass(i);
  const double upto = block_scan(own, &total);
  const double target = u * total;
  const int exceeds = block_reduce(own > 0.0 && upto > target ? thread : kThreads, Min());
  const int last = block_reduce(own > 0.0 ? thread : -1, Max());
  if (thread == (exceeds < kThreads ? exceeds : last)) {
    double running = upto - own;
    int64_t pick = 0;
    for (int64_t i = first; i < end; ++i) {
      const float w = mass(i);
      if (!(w > 0.0f)) continue;
      pick = i;
      running += w;
      if (running > target) break;
    }
    picked = pick;
  }
  __syncthreads();
  const int64_t result = picked;
  __syncthreads();
  return result;
}

}  // namespace fastpower
