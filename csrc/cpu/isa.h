// Instruction sets that kernels have variants for, picked once at run time: the best one for this processor,
// or what FASTPOWER_ISA=portable|avx2|avx512|avx512_bf16|amx names, as far as the machine has it.
#pragma once

namespace fastpower {

// amx is avx512_bf16 with matrix tiles of bfloat16; kernels without a variant of their own take the next
// lower one.
enum class Isa { portable = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, amx = 4 };

Isa active_isa();
const char* isa_name(Isa isa);
// Changes the choice for this process (tests); throws std::invalid_argument if the machine lacks the ISA.
void set_isa(Isa isa);
Isa isa_from_name(const char* name);  // throws std::invalid_argument

}  // namespace fastpower

#define FASTPOWER_AVX2 __attribute__((target("avx2,fma,f16c")))
#define FASTPOWER_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define FASTPOWER_AVX512_BF16 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")))
#define FASTPOWER_AVX512_VNNI \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#define FASTPOWER_AMX \
  __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")))
