// paged_attention for amx: that of avx512 with tiles for bfloat16. See paged_attention_kernel.inl.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/amx_tiles.h"
#include "cpu/attention/paged_attention_task.h"
#include "cpu/dtype.h"

// GCC 12 warns about the deliberately undefined operands inside its own intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")

namespace fastpower::amx {
namespace {
#include "cpu/attention/attention_simd_avx512.inl"
}
#include "cpu/attention/attention_steps.inl"
#include "cpu/attention/attention_tiles_amx.inl"
#include "cpu/attention/paged_attention_kernel.inl"
}  // namespace fastpower::amx

#pragma GCC pop_options
#endif
