// paged_attention for avx2: see paged_attention_kernel.inl.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/attention/paged_attention_task.h"
#include "cpu/dtype.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace fastpower::avx2 {
namespace {
#include "cpu/attention/attention_simd_avx2.inl"
}
#include "cpu/attention/attention_steps.inl"
#include "cpu/attention/paged_attention_kernel.inl"
}  // namespace fastpower::avx2

#pragma GCC pop_options
#endif
