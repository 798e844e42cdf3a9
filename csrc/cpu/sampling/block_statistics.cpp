#include "cpu/sampling/block_statistics.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/isa.h"

#if defined(__x86_64__)
// GCC 12 takes the "undefined" operands inside its own AVX-512 intrinsics for uninitialised variables.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

namespace fastpower {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
// The reference before any logit. Not -inf: masked entries minus it are -inf, which counts as 0, not NaN.
constexpr float kLeast = std::numeric_limits<float>::lowest();

// exp(y): y = n ln 2 + r with n a multiple of 1 / kSteps, exp(y) = 2^n P(r). Adding and
// subtracting kRound / kSteps rounds to such a multiple, and n kSteps then stands in the low bits of the sum.
// n ln 2 needs one fused multiply-subtract only: |n| <= 124 and float32's ln 2 is off by 2e-9. With kSteps =
// 1, |r| <= ln 2 / 2 and P is a minimax polynomial of degree 6. AVX-512 looks 32 powers 2^{k/32} up in two
// registers, |r| <= ln 2 / 64, and P(r) = 1 + kQ[0] r + kQ[1] r^2; it is 1 at 0 and off by r^3 / 6 - (kQ[0] -
// 1) r, at most 5.3e-8.
constexpr float kLog2e = 1.44269504088896341f, kLn2 = 0.693147180559945309f, kRound = 12582912.0f;
constexpr float kP[] = {1.0f,
                        1.0f,
                        0.499999934436f,
                        0.166665205713f,
                        0.0416683887769f,
                        0.00836872414745f,
                        0.00138145817717f};  // relative error 3e-9
constexpr float kQ[] = {1.0000146614f, 0.5f};
constexpr float kLowest = -86.0f;  // below: 0. Keeps 2^n P(r) a normal number on every ISA.

// Inlined come what may, except under the sanitizers, whose checks in every copy would take minutes to
// compile.
#if defined(__SANITIZE_ADDRESS__)
#define FASTPOWER_ALWAYS_INLINE inline
#else
#define FASTPOWER_ALWAYS_INLINE inline __attribute__((always_inline))
#endif

namespace portable {
#define FASTPOWER_TARGET
#include "cpu/simd_portable.inl"
//
#include "cpu/sampling/block_statistics.inl"
#undef FASTPOWER_TARGET
}  // namespace portable

#if defined(__x86_64__)
namespace avx2 {
#define FASTPOWER_TARGET FASTPOWER_AVX2
#include "cpu/simd_avx2.inl"
//
#include "cpu/sampling/block_statistics.inl"
#undef FASTPOWER_TARGET
}  // namespace avx2

namespace avx512 {
#define FASTPOWER_TARGET FASTPOWER_AVX512
#include "cpu/simd_avx512.inl"
//
#include "cpu/sampling/block_statistics.inl"
#undef FASTPOWER_TARGET
#undef FASTPOWER_EXP_TABLE
}  // namespace avx512
#endif

}  // namespace

#if defined(__x86_64__)
FlushSubnormals::FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | _MM_FLUSH_ZERO_ON); }
FlushSubnormals::~FlushSubnormals() { _mm_setcsr(saved_); }
#else
FlushSubnormals::FlushSubnormals() : saved_(0) {}
FlushSubnormals::~FlushSubnormals() {}
#endif

const BlockKernels& block_kernels(Dtype dtype) {
#if defined(__x86_64__)
  if (active_isa() >= Isa::avx512) return avx512::kernels(dtype);
  if (active_isa() >= Isa::avx2) return avx2::kernels(dtype);
#endif
  return portable::kernels(dtype);
}

}  // namespace fastpower
