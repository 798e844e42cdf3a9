#include <cstring>

#include "cpu/linear/quantised_kernels.h"

namespace fastpower {
namespace {

constexpr int64_t kFetched = 4096;
#define FASTPOWER_TARGET

template <Format F>
void multiply(const UnpackedBlock& block, const char* rows, int64_t stride, int64_t count, float* acc) {
  constexpr int kSteps = group_of(F) / 2;
  for (int64_t r = 0; r < count; ++r, rows += stride, acc += kColumns) {
    const RowBlock& x = *reinterpret_cast<const RowBlock*>(rows);
    for (int g = 0; g < 16 / kSteps; ++g) {
      int32_t sum[kColumns];
      const int32_t begin = offset_of(F) * x.minus[kSteps == 16 ? 0 : 1 + g];
      for (int c = 0; c < kColumns; ++c) sum[c] = begin;
      for (int s = g * kSteps; s < (g + 1) * kSteps; ++s)
        for (int c = 0; c < kColumns; ++c) {
          const int16_t* w = block.words + s * 64 + 2 * c;
          sum[c] += x.x[2 * s] * w[0] + x.x[2 * s + 1] * w[1];
        }
      for (int c = 0; c < kColumns; ++c) acc[c] += static_cast<float>(sum[c]) * x.scale * block.a[g][c];
    }
    if constexpr (has_min(F))
      for (int c = 0; c < kColumns; ++c) acc[c] -= block.b[c] * x.sum;
  }
}

#include "cpu/linear/quantised_unpack.inl"

}  // namespace

void quantised_portable(Format format, int64_t in, const char* panel, const char* next, bool,
                        const char* rows, int64_t stride, int64_t count, float* acc){
#define FASTPOWER_CALL(F) pass_words<F>(in, panel, next, rows, stride, count, acc)
    FASTPOWER_EACH_FORMAT(FASTPOWER_CALL)
#undef FASTPOWER_CALL
}

QuantisedKernel quantised_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::avx512_bf16) return quantised_vnni;
  if (isa == Isa::avx512) return quantised_avx512;
  if (isa == Isa::avx2) return quantised_avx2;
#endif
  (void)isa;
  return quantised_portable;
}

}  // namespace fastpower
