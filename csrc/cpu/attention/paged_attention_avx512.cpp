// paged_attention for avx512: see paged_attention_kernel.inl.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/attention/paged_attention_task.h"
#include "cpu/dtype.h"

// GCC 12 warns about the deliberately undefined operands inside its own intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

namespace fastpower::avx512 {
namespace {
#include "cpu/attention/attention_simd_avx512.inl"
}
#include "cpu/attention/attention_steps.inl"
#include "cpu/attention/paged_attention_kernel.inl"
}  // namespace fastpower::avx512

#pragma GCC pop_options
#endif
