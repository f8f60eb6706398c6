// Plain C++ for exactly the intrinsics the kernels use, after Intel's description of each instruction, so that every
// path can be tested, and run under sanitizers, on any machine. Sums that would wrap stop the program.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated {

inline void expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "emulated intrinsics: %s\n", what);
  std::abort();
}

template <class Integer>
Integer add(Integer a, Integer b) {
  Integer sum = 0;
  expect(!__builtin_add_overflow(a, b, &sum), "a sum overflowed");
  return sum;
}

template <class Lane, class Vector>
Lane lane(const Vector& vector, int i) {
  Lane value;
  std::memcpy(&value, vector.bytes + i * sizeof(Lane), sizeof(Lane));
  return value;
}

template <class Lane, class Vector>
void set_lane(Vector& vector, int i, Lane value) {
  std::memcpy(vector.bytes + i * sizeof(Lane), &value, sizeof(Lane));
}

template <class Vector>
Vector load(const void* from) {
  Vector vector;
  std::memcpy(vector.bytes, from, sizeof(vector));
  return vector;
}

template <class Vector>
Vector load_aligned(const void* from) {
  expect(reinterpret_cast<uintptr_t>(from) % sizeof(Vector) == 0, "an aligned access was not aligned");
  return load<Vector>(from);
}

template <class Vector>
void store_aligned(void* to, const Vector& vector) {
  expect(reinterpret_cast<uintptr_t>(to) % sizeof(Vector) == 0, "an aligned access was not aligned");
  std::memcpy(to, vector.bytes, sizeof(vector));
}

}  // namespace emulated

#define _MM_HINT_T0 0
inline void _mm_prefetch(const char*, int) {}

struct __m128i {
  uint8_t bytes[16];
};

struct alignas(32) __m256i {
  uint8_t bytes[32];
};

struct alignas(64) __m512i {
  uint8_t bytes[64];
};

using __mmask64 = uint64_t;

// AVX2

inline __m256i _mm256_loadu_si256(const __m256i* from) { return emulated::load<__m256i>(from); }
inline __m256i _mm256_load_si256(const __m256i* from) { return emulated::load_aligned<__m256i>(from); }
inline void _mm256_store_si256(__m256i* to, __m256i a) { emulated::store_aligned(to, a); }
inline __m256i _mm256_setzero_si256() { return {}; }

inline __m256i _mm256_xor_si256(__m256i a, __m256i b) {
  for (int i = 0; i < 32; ++i) a.bytes[i] ^= b.bytes[i];
  return a;
}

inline __m256i _mm256_and_si256(__m256i a, __m256i b) {
  for (int i = 0; i < 32; ++i) a.bytes[i] &= b.bytes[i];
  return a;
}

inline __m256i _mm256_set1_epi16(int16_t value) {
  __m256i result;
  for (int i = 0; i < 16; ++i) emulated::set_lane(result, i, value);
  return result;
}

inline __m256i _mm256_srli_epi16(__m256i a, int count) {
  for (int i = 0; i < 16; ++i) {
    emulated::set_lane(a, i, static_cast<uint16_t>(emulated::lane<uint16_t>(a, i) >> count));
  }
  return a;
}

inline __m256i _mm256_cvtepi32_epi64(__m128i a) {
  __m256i result;
  for (int i = 0; i < 4; ++i) emulated::set_lane<int64_t>(result, i, emulated::lane<int32_t>(a, i));
  return result;
}

inline __m128i _mm256_castsi256_si128(__m256i a) { return emulated::load<__m128i>(a.bytes); }
inline __m128i _mm256_extracti128_si256(__m256i a, int half) { return emulated::load<__m128i>(a.bytes + 16 * half); }

inline __m256i _mm256_madd_epi16(__m256i a, __m256i b) {
  __m256i result;
  for (int i = 0; i < 8; ++i) {
    int32_t products[2];
    for (int j = 0; j < 2; ++j) {
      products[j] = emulated::lane<int16_t>(a, 2 * i + j) * emulated::lane<int16_t>(b, 2 * i + j);
    }
    emulated::set_lane(result, i, emulated::add(products[0], products[1]));
  }
  return result;
}

template <class Lane>
__m256i add_lanes(__m256i a, __m256i b) {
  for (int i = 0; i < static_cast<int>(32 / sizeof(Lane)); ++i) {
    emulated::set_lane(a, i, emulated::add(emulated::lane<Lane>(a, i), emulated::lane<Lane>(b, i)));
  }
  return a;
}

inline __m256i _mm256_add_epi32(__m256i a, __m256i b) { return add_lanes<int32_t>(a, b); }
inline __m256i _mm256_add_epi64(__m256i a, __m256i b) { return add_lanes<int64_t>(a, b); }

// AVX2 for facility location. GCC's own float arithmetic is IEEE's, so plain operators will do.

struct alignas(32) __m256 {
  uint8_t bytes[32];
};

namespace emulated {

template <class Lane, class Vector, class Function>
Vector each(Vector a, Vector b, Function function) {
  for (int i = 0; i < static_cast<int>(sizeof(Vector) / sizeof(Lane)); ++i) {
    set_lane<Lane>(a, i, function(lane<Lane>(a, i), lane<Lane>(b, i)));
  }
  return a;
}

}  // namespace emulated

inline __m256 _mm256_loadu_ps(const float* from) { return emulated::load<__m256>(from); }
inline __m256 _mm256_setzero_ps() { return {}; }
inline void _mm256_storeu_si256(__m256i* to, __m256i a) { std::memcpy(static_cast<void*>(to), a.bytes, sizeof(a)); }

inline __m256 _mm256_set1_ps(float value) {
  __m256 result;
  for (int i = 0; i < 8; ++i) emulated::set_lane(result, i, value);
  return result;
}

inline __m256i _mm256_set1_epi32(int32_t value) {
  __m256i result;
  for (int i = 0; i < 8; ++i) emulated::set_lane(result, i, value);
  return result;
}

inline __m256 _mm256_add_ps(__m256 a, __m256 b) {
  return emulated::each<float>(a, b, [](float x, float y) { return x + y; });
}
inline __m256 _mm256_sub_ps(__m256 a, __m256 b) {
  return emulated::each<float>(a, b, [](float x, float y) { return x - y; });
}
inline __m256 _mm256_mul_ps(__m256 a, __m256 b) {
  return emulated::each<float>(a, b, [](float x, float y) { return x * y; });
}
inline __m256 _mm256_max_ps(__m256 a, __m256 b) {
  return emulated::each<float>(a, b, [](float x, float y) { return x > y ? x : y; });
}
inline __m256 _mm256_sqrt_ps(__m256 a) {
  return emulated::each<float>(a, a, [](float x, float) { return __builtin_sqrtf(x); });
}
inline __m256 _mm256_floor_ps(__m256 a) {
  return emulated::each<float>(a, a, [](float x, float) { return __builtin_floorf(x); });
}

inline __m256i _mm256_castps_si256(__m256 a) { return emulated::load<__m256i>(a.bytes); }
inline __m256 _mm256_castsi256_ps(__m256i a) { return emulated::load<__m256>(a.bytes); }

inline __m256i _mm256_cvttps_epi32(__m256 a) {
  __m256i result;
  for (int i = 0; i < 8; ++i) {
    const float value = emulated::lane<float>(a, i);
    emulated::expect(value > -2147483648.0f && value < 2147483648.0f, "a float does not fit 32 bits");
    emulated::set_lane(result, i, static_cast<int32_t>(value));
  }
  return result;
}

inline __m256i _mm256_sub_epi32(__m256i a, __m256i b) {
  return emulated::each<int32_t>(a, b, [](int32_t x, int32_t y) {
    int32_t difference = 0;
    emulated::expect(!__builtin_sub_overflow(x, y, &difference), "a difference overflowed");
    return difference;
  });
}
inline __m256i _mm256_min_epi32(__m256i a, __m256i b) {
  return emulated::each<int32_t>(a, b, [](int32_t x, int32_t y) { return x < y ? x : y; });
}
inline __m256i _mm256_max_epi32(__m256i a, __m256i b) {
  return emulated::each<int32_t>(a, b, [](int32_t x, int32_t y) { return x > y ? x : y; });
}
inline __m256i _mm256_cmpgt_epi32(__m256i a, __m256i b) {
  return emulated::each<int32_t>(a, b, [](int32_t x, int32_t y) { return x > y ? -1 : 0; });
}

inline __m256i _mm256_slli_epi32(__m256i a, int count) {
  return emulated::each<uint32_t>(a, a, [&](uint32_t x, uint32_t) { return x << count; });
}

inline int _mm256_movemask_ps(__m256 a) {
  int mask = 0;
  for (int i = 0; i < 8; ++i) mask |= (a.bytes[4 * i + 3] >> 7) << i;
  return mask;
}

inline __m128i _mm_add_epi32(__m128i a, __m128i b) { return emulated::each<int32_t>(a, b, emulated::add<int32_t>); }
inline int _mm_cvtsi128_si32(__m128i a) { return emulated::lane<int32_t>(a, 0); }

inline __m128i _mm_shuffle_epi32(__m128i a, int order) {
  __m128i result;
  for (int i = 0; i < 4; ++i) emulated::set_lane(result, i, emulated::lane<int32_t>(a, order >> 2 * i & 3));
  return result;
}

// AVX2 and FMA for the calibrated mean

struct __m128 {
  uint8_t bytes[16];
};

struct alignas(32) __m256d {
  uint8_t bytes[32];
};

inline __m256 _mm256_load_ps(const float* from) { return emulated::load_aligned<__m256>(from); }
inline void _mm256_store_ps(float* to, __m256 a) { emulated::store_aligned(to, a); }
inline __m256 _mm256_broadcast_ss(const float* from) { return _mm256_set1_ps(*from); }
inline __m256d _mm256_loadu_pd(const double* from) { return emulated::load<__m256d>(from); }
inline void _mm256_storeu_pd(double* to, __m256d a) { std::memcpy(static_cast<void*>(to), a.bytes, sizeof(a)); }
inline __m128 _mm256_castps256_ps128(__m256 a) { return emulated::load<__m128>(a.bytes); }
inline __m128 _mm256_extractf128_ps(__m256 a, int half) { return emulated::load<__m128>(a.bytes + 16 * half); }

inline __m256d _mm256_add_pd(__m256d a, __m256d b) {
  return emulated::each<double>(a, b, [](double x, double y) { return x + y; });
}
inline __m256 _mm256_andnot_ps(__m256 a, __m256 b) {
  return emulated::each<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return ~x & y; });
}

inline __m256d _mm256_cvtps_pd(__m128 a) {
  __m256d result;
  for (int i = 0; i < 4; ++i) emulated::set_lane<double>(result, i, emulated::lane<float>(a, i));
  return result;
}

inline __m256 _mm256_fmadd_ps(__m256 a, __m256 b, __m256 c) {
  const auto lane = [](__m256 vector, int i) { return emulated::lane<float>(vector, i); };
  for (int i = 0; i < 8; ++i) emulated::set_lane(c, i, __builtin_fmaf(lane(a, i), lane(b, i), lane(c, i)));
  return c;
}

// These work in the two halves of the registers apart.
inline __m256 _mm256_shuffle_ps(__m256 a, __m256 b, int order) {
  __m256 result;
  for (int i = 0; i < 8; ++i) {
    const int from = i / 4 * 4 + (order >> 2 * (i % 4) & 3);
    emulated::set_lane(result, i, emulated::lane<float>(i % 4 < 2 ? a : b, from));
  }
  return result;
}
inline __m256 interleave_halves(__m256 a, __m256 b, int first) {
  __m256 result;
  for (int i = 0; i < 8; ++i) {
    emulated::set_lane(result, i, emulated::lane<float>(i % 2 ? b : a, i / 4 * 4 + i % 4 / 2 + first));
  }
  return result;
}
inline __m256 _mm256_unpacklo_ps(__m256 a, __m256 b) { return interleave_halves(a, b, 0); }
inline __m256 _mm256_unpackhi_ps(__m256 a, __m256 b) { return interleave_halves(a, b, 2); }

inline __m256 _mm256_permute2f128_ps(__m256 a, __m256 b, int order) {
  __m256 result;
  for (int half = 0; half < 2; ++half) {
    const int from = order >> 4 * half & 0xF;
    emulated::expect(from < 4, "vperm2f128: halves are 0 to 3");
    std::memcpy(result.bytes + 16 * half, (from < 2 ? a : b).bytes + 16 * (from % 2), 16);
  }
  return result;
}

// AVX-512 VNNI

inline __m512i _mm512_load_si512(const void* from) { return emulated::load_aligned<__m512i>(from); }
inline void _mm512_store_si512(void* to, __m512i a) { emulated::store_aligned(to, a); }

inline __m512i _mm512_maskz_loadu_epi8(__mmask64 mask, const void* from) {
  __m512i result = {};
  for (int i = 0; i < 64; ++i) {  // a masked byte is not read
    if (mask >> i & 1) result.bytes[i] = static_cast<const uint8_t*>(from)[i];
  }
  return result;
}

// vpdpbusd: four products of an unsigned byte of a and a signed byte of b, added to a 32-bit lane without saturation.
inline __m512i _mm512_dpbusd_epi32(__m512i sums, __m512i a, __m512i b) {
  for (int i = 0; i < 16; ++i) {
    int32_t products = 0;
    for (int j = 0; j < 4; ++j) products += a.bytes[4 * i + j] * static_cast<int8_t>(b.bytes[4 * i + j]);
    emulated::set_lane(sums, i, emulated::add(emulated::lane<int32_t>(sums, i), products));
  }
  return sums;
}

// AMX int8

namespace emulated {

struct Tiles {
  bool configured = false;
  int rows[8] = {}, row_bytes[8] = {};
  uint8_t bytes[8][16][64] = {};

  void expect_usable(int tile) const {
    expect(configured && rows[tile] > 0 && row_bytes[tile] > 0, "a tile was used that is not configured");
  }
};

inline Tiles& tiles() {
  static thread_local Tiles state;
  return state;
}

}  // namespace emulated

inline void _tile_loadconfig(const void* from) {
  uint8_t config[64];
  std::memcpy(config, from, sizeof(config));
  emulated::expect(config[0] == 1 && config[1] == 0, "ldtilecfg takes palette 1, row 0");
  for (int i = 2; i < 16; ++i) emulated::expect(config[i] == 0, "ldtilecfg: a reserved byte is set");
  emulated::tiles() = {};
  for (int tile = 0; tile < 8; ++tile) {
    const int row_bytes = config[16 + 2 * tile] + 256 * config[17 + 2 * tile], rows = config[48 + tile];
    emulated::expect(row_bytes <= 64 && rows <= 16, "ldtilecfg: a tile is too large");
    emulated::tiles().row_bytes[tile] = row_bytes;
    emulated::tiles().rows[tile] = rows;
  }
  for (int i = 32; i < 48; ++i) emulated::expect(config[i] == 0, "ldtilecfg: there are eight tiles");
  for (int i = 56; i < 64; ++i) emulated::expect(config[i] == 0, "ldtilecfg: there are eight tiles");
  emulated::tiles().configured = true;
}

inline void _tile_release() { emulated::tiles() = {}; }

inline void _tile_zero(int tile) {
  emulated::tiles().expect_usable(tile);
  std::memset(emulated::tiles().bytes[tile], 0, sizeof(emulated::tiles().bytes[tile]));
}

inline void _tile_loadd(int tile, const void* from, int64_t stride) {
  emulated::Tiles& tiles = emulated::tiles();
  _tile_zero(tile);
  for (int row = 0; row < tiles.rows[tile]; ++row) {
    std::memcpy(tiles.bytes[tile][row], static_cast<const uint8_t*>(from) + row * stride, tiles.row_bytes[tile]);
  }
}

inline void _tile_stored(int tile, void* to, int64_t stride) {
  const emulated::Tiles& tiles = emulated::tiles();
  tiles.expect_usable(tile);
  for (int row = 0; row < tiles.rows[tile]; ++row) {
    std::memcpy(static_cast<uint8_t*>(to) + row * stride, tiles.bytes[tile][row], tiles.row_bytes[tile]);
  }
}

// tdpbuud: 32-bit element (m, n) gains, for every k, four products of unsigned bytes of row m of a and row k of b.
inline void _tile_dpbuud(int sums, int a, int b) {
  emulated::Tiles& tiles = emulated::tiles();
  for (const int tile : {sums, a, b}) tiles.expect_usable(tile);
  emulated::expect(tiles.rows[sums] == tiles.rows[a] && tiles.row_bytes[sums] == tiles.row_bytes[b] &&
                       tiles.row_bytes[a] == 4 * tiles.rows[b],
                   "tdpbuud: the shapes of the tiles do not fit");
  for (int m = 0; m < tiles.rows[sums]; ++m) {
    for (int n = 0; n < tiles.row_bytes[sums] / 4; ++n) {
      uint32_t products = 0;  // of a whole row: at most 64 * 255^2
      for (int k = 0; k < tiles.rows[b]; ++k) {
        for (int j = 0; j < 4; ++j) {
          products += static_cast<uint32_t>(tiles.bytes[a][m][4 * k + j]) * tiles.bytes[b][k][4 * n + j];
        }
      }
      uint32_t sum;
      std::memcpy(&sum, &tiles.bytes[sums][m][4 * n], 4);
      sum = emulated::add(sum, products);
      std::memcpy(&tiles.bytes[sums][m][4 * n], &sum, 4);
    }
  }
}
