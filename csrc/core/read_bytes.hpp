// Reads memory as fast as one core can and does nothing else: the limit that a kernel which reads once is held against.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu.hpp"
#include "simd.hpp"

namespace poisonkit {

inline uint64_t xor_words(const uint8_t* data, int64_t size) {
  uint64_t words = 0;
  int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, data + i, 8);
    words ^= word;
  }
  uint64_t last = 0;
  std::memcpy(&last, data + i, size - i);
  return words ^ last;
}

#if defined(POISONKIT_HAS_AVX2)

POISONKIT_TARGET("avx2")
inline uint64_t xor_words_avx2(const uint8_t* data, int64_t size) {
  __m256i words[8] = {};
  int64_t i = 0;
  for (; i + 256 <= size; i += 256) {
    POISONKIT_UNROLL
    for (int j = 0; j < 8; ++j) {
      words[j] = _mm256_xor_si256(words[j], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + i + 32 * j)));
    }
  }
  return xor_words(reinterpret_cast<const uint8_t*>(words), sizeof(words)) ^ xor_words(data + i, size - i);
}

#endif

// The xor of the little-endian 64-bit words of data, the last one padded with zeros.
inline uint64_t read_bytes(const uint8_t* data, int64_t size) {
#if defined(POISONKIT_HAS_AVX2)
  if (usable(Isa::avx2)) return xor_words_avx2(data, size);
#endif
  return xor_words(data, size);
}

}  // namespace poisonkit
