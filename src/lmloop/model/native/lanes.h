// Sixteen bfloat16 numbers at once, in fp32, and how work is shared out among threads.
//
// What lies in memory is bfloat16; what happens between is fp32, rounded once, to nearest, ties to
// even.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

using bf16 = uint16_t;

namespace {

// Sixteen numbers at once; a compiler makes of it what the processor has.
constexpr int64_t LANES = 16;
typedef float lanes __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef int32_t integers __attribute__((vector_size(64)));
typedef bf16 halves __attribute__((vector_size(32)));

constexpr float INFINITE = std::numeric_limits<float>::infinity();

inline lanes fill(float x) { return lanes{} + x; }

// The first `count` of them from memory; the others are `rest`.
inline lanes load(const bf16* from, int64_t count = LANES, float rest = 0) {
  halves raw = {};
  std::memcpy(&raw, from, count * sizeof(bf16));
#ifdef __AVX512F__
  lanes result = (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)raw), 16);
#else
  lanes result = (lanes)(__builtin_convertvector(raw, words) << 16);
#endif
  for (int64_t i = count; i < LANES; ++i) result[i] = rest;
  return result;
}

inline lanes load(const float* from, int64_t count = LANES) {
  lanes result = {};
  std::memcpy(&result, from, count * sizeof(float));
  return result;
}

inline void store(float* to, lanes x, int64_t count = LANES) {
  std::memcpy(to, &x, count * sizeof(float));
}

inline halves narrow(lanes x) {
#ifdef __AVX512BF16__
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)x);
  halves result;
  std::memcpy(&result, &rounded, sizeof result);
  return result;
#else
  const words bits = (words)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const words number = (words)(x == x);  // rounding would carry some NaNs over to zero
  return __builtin_convertvector((rounded & number) | (0x7fc0 & ~number), halves);
#endif
}

inline void store(bf16* to, lanes x, int64_t count = LANES) {
  const halves rounded = narrow(x);
  std::memcpy(to, &rounded, count * sizeof(bf16));
}

inline float sum(lanes x) {
  for (int64_t i = LANES / 2; i > 0; i /= 2) {
    for (int64_t j = 0; j < i; ++j) x[j] += x[j + i];
  }
  return x[0];
}

inline lanes larger(lanes x, lanes y) { return x > y ? x : y; }

inline float largest(lanes x) {
  for (int64_t i = 1; i < LANES; ++i) x[0] = x[i] > x[0] ? x[i] : x[0];
  return x[0];
}

// e^x to two units in the last place: 2^n · e^r with |r| ≤ ln(2) / 2. Nothing below e^-87.
inline lanes exponential(lanes given) {
  const lanes low = fill(-110), high = fill(88);
  const lanes x = given < low ? low : given > high ? high : given;
  const float magic = 12582912;  // 1.5 · 2^23: adding it leaves no digits behind the point
  const lanes n = (x * 1.44269504f + magic) - magic;
  const lanes r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  lanes p = r * (1.0f / 720) + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
#ifdef __AVX512F__
  return (lanes)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const integers power = (__builtin_convertvector(n, integers) + 127) << 23;
  return given < -87.0f ? lanes{} : p * (lanes)power;
#endif
}

// 1 / x to a unit in the last place: an estimate, and a step of Newton's.
inline lanes invert(lanes x) {
#ifdef __AVX512F__
  const lanes near = (lanes)_mm512_rcp14_ps((__m512)x);
  return near + near * (1.0f - x * near);
#else
  return 1.0f / x;
#endif
}

inline lanes sigmoid(lanes x) { return invert(1.0f + exponential(-x)); }

// Calls body(at, count) for each sixteen of `width`, and for what is left.
template <typename Body>
inline void each(int64_t width, Body body) {
  int64_t at = 0;
  for (; at + LANES <= width; at += LANES) body(at, LANES);
  if (at < width) body(at, width - at);
}

// Calls body(first, last, thread) for one stretch of `count` in each thread.
template <typename Body>
void share_out(int64_t count, int threads, Body body) {
#pragma omp parallel num_threads(threads)
  {
    const int64_t all = omp_get_num_threads(), mine = omp_get_thread_num();
    body(count * mine / all, count * (mine + 1) / all, int(mine));
  }
}

}  // namespace
