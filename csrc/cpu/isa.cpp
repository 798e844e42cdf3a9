#include "cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fastpower {
namespace {

// Tile registers exist only after the kernel was asked for them, once per process.
bool may_use_tiles() {
#if defined(__x86_64__) && defined(__linux__) && defined(SYS_arch_prctl)
  static const bool allowed = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kAmxBf16) || !(d & kAmxTile)) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return allowed;
#else
  return false;
#endif
}

Isa machine_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 =  // every such processor has VNNI, too, which quantised products rely on
      avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  if (bf16 && may_use_tiles()) return Isa::amx;
  if (bf16) return Isa::avx512_bf16;
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

// Intel issues one vdpbf16ps per two cycles (half of what two float32 FMA units do on converted weights), AMD
// one per cycle (twice its FMAs). The choice must not depend on a measurement: it decides the bits of a
// result.
Isa preferred_isa() {
  const Isa isa = machine_isa();
#if defined(__x86_64__)
  if (isa == Isa::avx512_bf16 && __builtin_cpu_is("intel")) return Isa::avx512;
#endif
  return isa;
}

std::atomic<int> g_isa{-1};

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::amx:
      return "amx";
  }
  return "unknown";
}

Isa isa_from_name(const char* name) {
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16, Isa::amx})
    if (std::strcmp(name, isa_name(isa)) == 0) return isa;
  throw std::invalid_argument("isa must be portable, avx2, avx512, avx512_bf16 or amx, got '" +
                              std::string(name) + "'");
}

void set_isa(Isa isa) {
  if (isa > machine_isa())
    throw std::invalid_argument("isa '" + std::string(isa_name(isa)) +
                                "' is not available here; this machine has '" + isa_name(machine_isa()) +
                                "'");
  g_isa.store(static_cast<int>(isa));
}

Isa active_isa() {
  int isa = g_isa.load(std::memory_order_relaxed);
  if (isa < 0) {
    Isa choice = preferred_isa();
    if (const char* name = std::getenv("FASTPOWER_ISA"))
      choice = std::min(machine_isa(), isa_from_name(name));
    g_isa.store(isa = static_cast<int>(choice));
  }
  return static_cast<Isa>(isa);
}

}  // namespace fastpower
