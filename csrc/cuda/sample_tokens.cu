// Statistics of logits rows and draws from them: the row is read once, each draw re-reads one block.
//
// The vocabulary is cut in blocks of 4096. Per (row, block), with z the logits of the block:
//
//     m = max z     s = Σ e^{z−m}     t = Σ (z−m) e^{z−m}     s_e = Σ e^{e(z−m)} for alpha and every exponent
//     e
//
// Every exponential is at most 1 and one of them is 1, so nothing overflows and no sum is 0. A masked entry
// (−inf) adds exactly 0 to each sum; a block without a finite entry is (−inf, 0, 0, 0); a block with NaN or
// +inf has m = NaN, and s = 1 if it also has a finite entry. Blocks merge relative to the row maximum M with
// d = m_b − M:
//
//     s = Σ s_b e^d     t = Σ e^d (t_b + d s_b)     s_e = Σ s_{e,b} e^{e d}
//     log p(v) = (z_v − M) − log s     entropy = log s − t/s     logz_e = log s_e − e log s
//
// A draw inverts two CDFs: over blocks with masses s_{alpha,b} e^{alpha d}, then over the tokens of the
// chosen block. With `exclude` the block of the excluded token is summed again without it, its maximum too,
// and M becomes the maximum of what is left, however far below the excluded token that is.
//
// Two launches: `block_stats` (one thread block per row and vocabulary block) and `finish` (one per row and
// one per draw). No atomics on floats and no tuning: a row's bits depend on that row alone.
#include <cfloat>
#include <cmath>

#include "block.cuh"
#include "dtype.cuh"
#include "philox.cuh"

namespace fastpower {
namespace {

constexpr int kBlock = 4096;
constexpr int kPerThread = kBlock / kThreads;
constexpr float kInf = INFINITY;
constexpr float kLog2E = 1.44269504088896340736f, kLn2 = 0.69314718055994530942f;

enum Status : int { kNan = 1, kMasked = 2, kExhausted = 4 };

// (4 + E, B, blocks) floats: m, s, t, s_alpha, then one s_e per exponent.
struct Partials {
  float* data;
  int64_t rows, blocks;
  __device__ float& at(int64_t quantity, int64_t row, int64_t block) const {
    return data[(quantity * rows + row) * blocks + block];
  }
};
enum Quantity : int { kM = 0, kS = 1, kT = 2, kSAlpha = 3, kSExponent = 4 };

template <typename T>
struct Logits {
  const T* data;
  int64_t rows, vocab, row_stride;
  __device__ const T* block(int64_t row, int64_t index) const {
    return data + row * row_stride + index * kBlock;
  }
  __device__ int count(int64_t index) const {
    const int64_t left = vocab - index * kBlock;
    return static_cast<int>(left < kBlock ? left : kBlock);
  }
};

// Outputs of `finish`; given_token selects score_tokens (logp has one entry per row) or is null.
struct Outputs {
  int64_t* token;
  float *logp, *logz, *entropy;
  int* status;
};
struct DrawArgs {
  const int64_t *rows, *keys, *positions, *exclude;  // exclude may be null
};

// Which entry of its block value i of this thread is: packets of 16 bytes, dealt round the threads. The deal
// is the same whether the row is aligned or not, so that alignment cannot change the order of a sum.
template <typename T>
__device__ inline int entry(int i) {
  constexpr int width = Packet<T>::kWidth;
  return (i / width * kThreads + static_cast<int>(threadIdx.x)) * width + i % width;
}

template <typename T>
__device__ void load(const T* block, int count, float (&z)[kPerThread]) {
  constexpr int width = Packet<T>::kWidth;
  if (count == kBlock && reinterpret_cast<uintptr_t>(block) % 16 == 0) {
    Packet<T> packets[kPerThread / width];
#pragma unroll
    for (int c = 0; c < kPerThread / width; ++c)
      packets[c] = reinterpret_cast<const Packet<T>*>(block)[c * kThreads + threadIdx.x];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) z[i] = to_float(packets[i / width].at[i % width]);
  } else {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int v = entry<T>(i);
      z[i] = v < count ? to_float(block[v]) : -kInf;
    }
  }
}

__device__ inline float thread_max(const float (&z)[kPerThread]) {
  float m = z[0];
#pragma unroll
  for (int i = 1; i < kPerThread; ++i) m = fmaxf(m, z[i]);
  return m;
}

// Σ e^{e(z−m)} over the block; m finite.
__device__ inline float sum_exp(const float (&z)[kPerThread], float m, float e) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) sum += exp2_approx(e * ((z[i] - m) * kLog2E));
  return block_reduce(sum, Sum());
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    block_stats(Logits<T> logits, const float* alpha, const float* exponents, int num_exponents,
                Partials partials, int* status) {
  const int64_t row = blockIdx.x / partials.blocks, block = blockIdx.x % partials.blocks;
  const bool writer = threadIdx.x == 0;
  if (writer && block == 0) status[row] = 0;  // `finish` sets bits from several thread blocks

  float z[kPerThread];
  load(logits.block(row, block), logits.count(block), z);
  const float m = block_reduce(thread_max(z), Max());
  int seen = 0;  // 1: NaN or +inf, 2: a finite entry
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) seen |= z[i] < kInf ? (z[i] > -kInf ? 2 : 0) : 1;
  seen = block_reduce(seen, Or());

  if (seen != 2) {
    for (int q = threadIdx.x; q < kSExponent + num_exponents; q += kThreads)
      partials.at(q, row, block) = 0.0f;
    __syncthreads();
    if (writer) partials.at(kM, row, block) = seen & 1 ? NAN : -kInf;
    return;
  }

  float s = 0.0f, t = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const float d = fmaxf((z[i] - m) * kLog2E, -FLT_MAX);  // finite: −inf · 0 would be NaN
    const float w = exp2_approx(d);
    s += w;
    t += d * w;
  }
  s = block_reduce(s, Sum());
  t = block_reduce(t, Sum()) * kLn2;
  if (writer) {
    partials.at(kM, row, block) = m;
    partials.at(kS, row, block) = s;
    partials.at(kT, row, block) = t;
  }
  float s_alpha = 0.0f;
  if (alpha != nullptr) {
    s_alpha = sum_exp(z, m, alpha[row]);
    if (writer) partials.at(kSAlpha, row, block) = s_alpha;
  }
  for (int e = 0; e < num_exponents; ++e) {
    const bool same = alpha != nullptr && exponents[e] == alpha[row];
    const float s_e = same ? s_alpha : sum_exp(z, m, exponents[e]);
    if (writer) partials.at(kSExponent + e, row, block) = s_e;
  }
}

// Maximum and mass of a row; `seen` as in block_stats (1: NaN or +inf, 2: a finite entry).
struct RowMass {
  float m, s;
  int seen;
  // Of a row whose `seen` is not 2.
  __device__ int status() const { return seen & 1 ? kNan : kMasked; }
};

// e^{e (m_b − m)}; 0 for a block without a finite entry.
__device__ inline float scale(float m_b, float m, float e) { return exp2_approx(e * ((m_b - m) * kLog2E)); }

__device__ inline RowMass merge_mass(const Partials& partials, int64_t row) {
  float m = -kInf;
  int seen = 0;
  for (int64_t b = threadIdx.x; b < partials.blocks; b += kThreads) {
    const float m_b = partials.at(kM, row, b);
    if (m_b != m_b) {
      seen |= 1;
    } else if (m_b > -kInf) {
      seen |= 2;
      m = fmaxf(m, m_b);
    }
  }
  m = block_reduce(m, Max());
  seen = block_reduce(seen, Or());
  if (seen != 2) return {m, 0.0f, seen};
  float s = 0.0f;
  for (int64_t b = threadIdx.x; b < partials.blocks; b += kThreads)
    s += partials.at(kS, row, b) * scale(partials.at(kM, row, b), m, 1.0f);
  return {m, block_reduce(s, Sum()), seen};
}

template <typename T>
__device__ void finish_row(const Logits<T>& logits, const float* exponents, int num_exponents,
                           const int64_t* given_token, const Partials& partials, const Outputs& out,
                           int64_t row) {
  const RowMass mass = merge_mass(partials, row);
  const bool writer = threadIdx.x == 0;
  if (mass.seen != 2) {
    for (int e = threadIdx.x; e < num_exponents; e += kThreads) out.logz[row * num_exponents + e] = NAN;
    if (writer) {
      out.entropy[row] = NAN;
      atomicOr(&out.status[row], mass.status());
      if (given_token != nullptr) out.logp[row] = NAN;
    }
    return;
  }
  const float log_s = logf(mass.s);
  float t = 0.0f;
  for (int64_t b = threadIdx.x; b < partials.blocks; b += kThreads) {
    const float m_b = partials.at(kM, row, b);
    const float w = scale(m_b, mass.m, 1.0f);
    if (w > 0.0f) t += w * (partials.at(kT, row, b) + (m_b - mass.m) * partials.at(kS, row, b));
  }
  t = block_reduce(t, Sum());
  if (writer) out.entropy[row] = log_s - t / mass.s;
  for (int e = 0; e < num_exponents; ++e) {
    const float exponent = exponents[e];
    float s_e = 0.0f;
    for (int64_t b = threadIdx.x; b < partials.blocks; b += kThreads)
      s_e += partials.at(kSExponent + e, row, b) * scale(partials.at(kM, row, b), mass.m, exponent);
    s_e = block_reduce(s_e, Sum());
    if (writer) out.logz[row * num_exponents + e] = logf(s_e) - exponent * log_s;
  }
  if (given_token != nullptr && writer) {
    const int64_t token = given_token[row];
    const bool valid = token >= 0 && token < logits.vocab;
    out.logp[row] = valid ? to_float(logits.data[row * logits.row_stride + token]) - mass.m - log_s : NAN;
  }
}

template <typename T>
__device__ void finish_draw(const Logits<T>& logits, const float* alpha, const DrawArgs& draws,
                            const Partials& partials, const Outputs& out, int64_t draw) {
  const bool writer = threadIdx.x == 0;
  const int64_t row = draws.rows[draw];
  const bool in_range = row >= 0 && row < logits.rows;
  const RowMass mass = in_range ? merge_mass(partials, row) : RowMass{-kInf, 0.0f, 0};
  if (mass.seen != 2) {
    if (writer) {
      out.token[draw] = -1;
      out.logp[draw] = NAN;
    }
    return;
  }
  const float a = alpha[row];

  // The block of the excluded token, summed again without it.
  const int64_t exclude = draws.exclude == nullptr ? -1 : draws.exclude[draw];
  const int64_t cut_block = exclude >= 0 && exclude < logits.vocab ? exclude / kBlock : -1;
  float cut_m = -kInf, cut_s = 0.0f;
  if (cut_block >= 0) {
    float z[kPerThread];
    load(logits.block(row, cut_block), logits.count(cut_block), z);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
      if (entry<T>(i) == exclude % kBlock) z[i] = -kInf;
    cut_m = block_reduce(thread_max(z), Max());
    if (cut_m > -kInf) cut_s = sum_exp(z, cut_m, a);
  }
  const auto block_max = [&](int64_t b) { return b == cut_block ? cut_m : partials.at(kM, row, b); };
  float left = -kInf;
  for (int64_t b = threadIdx.x; b < partials.blocks; b += kThreads) left = fmaxf(left, block_max(b));
  left = block_reduce(left, Max());
  if (left == -kInf) {
    if (writer) {
      out.token[draw] = -1;
      out.logp[draw] = NAN;
      atomicOr(&out.status[row], kExhausted);
    }
    return;
  }

  const Words words =
      philox(static_cast<uint64_t>(draws.keys[draw]), static_cast<uint32_t>(draws.positions[draw]), 0);
  const int64_t chosen = inverse_cdf(partials.blocks, uniform32(words.w0), [&](int64_t b) {
    return (b == cut_block ? cut_s : partials.at(kSAlpha, row, b)) * scale(block_max(b), left, a);
  });
  const T* block = logits.block(row, chosen);
  const float m = block_max(chosen);
  const int64_t cut = chosen == cut_block ? exclude % kBlock : -1;
  const int64_t pick = inverse_cdf(logits.count(chosen), uniform32(words.w1), [&](int64_t v) {
    return v == cut ? 0.0f : scale(to_float(block[v]), m, a);
  });
  if (writer) {
    out.token[draw] = chosen * kBlock + pick;
    out.logp[draw] = to_float(block[pick]) - mass.m - logf(mass.s);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish(Logits<T> logits, const float* alpha, const float* exponents, int num_exponents,
           const int64_t* given_token, DrawArgs draws, Partials partials, Outputs out) {
  const int64_t index = blockIdx.x;
  if (index < logits.rows) {
    finish_row(logits, exponents, num_exponents, given_token, partials, out, index);
  } else {
    finish_draw(logits, alpha, draws, partials, out, index - logits.rows);
  }
}

template <typename T>
cudaError_t run(const void* data, int64_t rows, int64_t vocab, int64_t row_stride, const float* alpha,
                const float* exponents, int num_exponents, const int64_t* given_token, DrawArgs draws,
                int64_t num_draws, float* scratch, Outputs out, void* stream) {
  const Logits<T> logits{static_cast<const T*>(data), rows, vocab, row_stride};
  const Partials partials{scratch, rows, (vocab + kBlock - 1) / kBlock};
  if (rows == 0) return cudaSuccess;
  if (rows > kMaxGrid / partials.blocks || num_draws > kMaxGrid - rows) return cudaErrorInvalidValue;
  const cudaError_t error = launch(block_stats<T>, rows * partials.blocks, kThreads, stream, logits, alpha,
                                   exponents, num_exponents, partials, out.status);
  if (error != cudaSuccess) return error;
  return launch(finish<T>, rows + num_draws, kThreads, stream, logits, alpha, exponents, num_exponents,
                given_token, draws, partials, out);
}

template <typename... Args>
cudaError_t run_dtype(int dtype, int device, Args... args) {
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return guard.error();
  return with_dtype(dtype, [&](auto type) { return run<decltype(type)>(args...); });
}

}  // namespace
}  // namespace fastpower

// Floats of scratch that a call needs.
FASTPOWER_API int64_t fastpower_sample_scratch(int64_t rows, int64_t vocab, int64_t num_exponents) {
  using namespace fastpower;
  return (kSExponent + num_exponents) * rows * ((vocab + kBlock - 1) / kBlock);
}

// All pointers are device pointers; shapes as in docs/design.md. Returns a cudaError_t.
FASTPOWER_API int fastpower_sample_tokens(const void* logits, int dtype, int64_t rows, int64_t vocab,
                                          int64_t row_stride, const float* alpha, const float* exponents,
                                          int num_exponents, const int64_t* draw_rows, const int64_t* keys,
                                          const int64_t* positions, const int64_t* exclude, int64_t num_draws,
                                          float* scratch, int64_t* token, float* logp, float* logz,
                                          float* entropy, int* status, int device, void* stream) {
  using namespace fastpower;
  const int64_t* no_token = nullptr;
  return run_dtype(dtype, device, logits, rows, vocab, row_stride, alpha, exponents, num_exponents, no_token,
                   DrawArgs{draw_rows, keys, positions, exclude}, num_draws, scratch,
                   Outputs{token, logp, logz, entropy, status}, stream);
}

FASTPOWER_API int fastpower_score_tokens(const void* logits, int dtype, int64_t rows, int64_t vocab,
                                         int64_t row_stride, const int64_t* tokens, const float* exponents,
                                         int num_exponents, float* scratch, float* logp, float* logz,
                                         float* entropy, int* status, int device, void* stream) {
  using namespace fastpower;
  const float* no_alpha = nullptr;
  return run_dtype(dtype, device, logits, rows, vocab, row_stride, no_alpha, exponents, num_exponents, tokens,
                   DrawArgs{}, int64_t{0}, scratch, Outputs{nullptr, logp, logz, entropy, status}, stream);
}
