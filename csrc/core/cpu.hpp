// Which instruction sets this build contains, and which of them the processor and the operating system allow.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "simd.hpp"

#if defined(POISONKIT_HAS_AVX2) && !defined(POISONKIT_INTRINSICS)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace poisonkit {

enum class Isa { scalar, avx2, avx512_vnni, amx };

inline std::string name(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512_vnni:
      return "avx512_vnni";
    case Isa::amx:
      return "amx";
  }
  return "";
}

// Best last, as in usable_isas().
inline std::vector<Isa> compiled_isas() {
  std::vector<Isa> isas{Isa::scalar};
#if defined(POISONKIT_HAS_AVX2)
  isas.push_back(Isa::avx2);
#endif
#if defined(POISONKIT_HAS_AVX512_VNNI)
  isas.push_back(Isa::avx512_vnni);
#endif
#if defined(POISONKIT_HAS_AMX)
  isas.push_back(Isa::amx);
#endif
  return isas;
}

#if defined(POISONKIT_HAS_AVX2) && !defined(POISONKIT_INTRINSICS)

// What CPUID offers and XGETBV says the operating system saves: registers it does not save must not be touched.
struct Processor {
  bool avx2 = false, avx512_vnni = false, amx = false;

  Processor() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool osxsave = c >> 27 & 1, avx = c >> 28 & 1, fma = c >> 12 & 1;
    if (!osxsave || !avx || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    unsigned xcr0 = 0, high = 0;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    constexpr unsigned kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;
    avx2 = (xcr0 & kYmm) == kYmm && (b >> 5 & 1) && fma;  // kernels use both
    const bool avx512_f_bw = (b >> 16 & 1) && (b >> 30 & 1);
    avx512_vnni = avx2 && (xcr0 & kZmm) == kZmm && avx512_f_bw && (c >> 11 & 1);
    const bool amx_tile_int8 = (d >> 24 & 1) && (d >> 25 & 1);
    amx = (xcr0 & kTiles) == kTiles && amx_tile_int8 && permit_tiles();
  }

  // Linux grants the 8 KB of tile state on request, once per process; threads and forked children inherit it.
  static bool permit_tiles() {
#if defined(__linux__)
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
  }
};

inline bool usable(Isa isa) {
  static const Processor processor;
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return processor.avx2;
    case Isa::avx512_vnni:
      return processor.avx512_vnni;
    case Isa::amx:
      return processor.amx;
  }
  return false;
}

#else

inline bool usable(Isa) { return true; }  // plain C++, and what is emulated

#endif

inline std::vector<Isa> usable_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : compiled_isas()) {
    if (usable(isa)) isas.push_back(isa);
  }
  return isas;
}

inline Isa usable_isa(const std::string& wanted) {
  for (const Isa isa : usable_isas()) {
    if (name(isa) == wanted) return isa;
  }
  throw std::invalid_argument("isa must be one this processor has, got " + wanted);
}

}  // namespace poisonkit
