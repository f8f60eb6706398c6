// The one door to intrinsics. Kernels raise their instruction set by a function attribute, never by a compiler flag
// for the whole file: an inline function of a header would else be compiled for it and could be linked into baseline
// code. Tests define POISONKIT_INTRINSICS as a header that emulates the intrinsics on any machine.
#pragma once

// Loops over register arrays must be unrolled early, or the arrays stay in memory.
#if defined(__clang__)
#define POISONKIT_UNROLL _Pragma("unroll")
#else
#define POISONKIT_UNROLL _Pragma("GCC unroll 8")
#endif

// The innermost step of a loop, which must become part of it: a call there costs half the speed, and GCC makes one
// where a file has much code.
#if defined(__GNUC__)
#define POISONKIT_INLINE __attribute__((always_inline)) inline
#else
#define POISONKIT_INLINE inline
#endif

#if defined(POISONKIT_INTRINSICS)
#include POISONKIT_INTRINSICS
#define POISONKIT_TARGET(isa)
#define POISONKIT_IN_REGISTER(vector)
#define POISONKIT_HAS_AVX2
#define POISONKIT_HAS_AVX512_VNNI
#define POISONKIT_HAS_AMX
#elif defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define POISONKIT_TARGET(isa) __attribute__((target(isa)))
// Holds a vector in its register. GCC otherwise spills accumulators whose intrinsics take two vector types, and may
// repeat a load in each of its uses.
#define POISONKIT_IN_REGISTER(vector) __asm__ volatile("" : "+v"(vector))
#define POISONKIT_HAS_AVX2
#if __has_include(<avx512vnniintrin.h>)
#define POISONKIT_HAS_AVX512_VNNI
#endif
#if __has_include(<amxint8intrin.h>) && defined(__linux__)
#define POISONKIT_HAS_AMX
#endif
#endif
