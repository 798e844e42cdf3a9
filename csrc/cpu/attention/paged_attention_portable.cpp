// paged_attention for portable: see paged_attention_kernel.inl.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/attention/paged_attention_task.h"
#include "cpu/dtype.h"

namespace fastpower::portable {
namespace {
#include "cpu/attention/attention_simd_portable.inl"
}
#include "cpu/attention/attention_steps.inl"
#include "cpu/attention/paged_attention_kernel.inl"
}  // namespace fastpower::portable
