// Products of bfloat16 blocks, 32 x 32 results in fp32: AMX where it may be used, else AVX-512.
//
// A left factor is rows of 32 numbers, 16 rows a tile. A right factor is woven: row p of a tile
// holds the numbers 2p and 2p + 1 of each of 16 columns, so that it is 16 rows of 64 bytes too.
// Both are two tiles side by side here; steps go along what is summed over, 32 numbers each.

#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <new>

#include "lanes.h"

#ifdef __AVX512BF16__

// Whether products take AMX: settled once, before the first of them.
inline bool use_amx = false;

namespace {

constexpr int64_t TILE = 16, BLOCK = 32, NUMBERS = BLOCK * BLOCK;
constexpr int64_t TILE_NUMBERS = TILE * BLOCK, TILE_BYTES = 2 * TILE_NUMBERS;

inline int64_t whole(int64_t count) { return (count + BLOCK - 1) / BLOCK * BLOCK; }

// Where one of the two factors lies: distances in bytes.
struct Factor {
  const void* first;
  int64_t row;    // from one row of a tile to the next
  int64_t other;  // from one tile to the one beside it
  int64_t step;   // from one step to the next

  const char* at(int64_t tile, int64_t k) const {
    return static_cast<const char*>(first) + tile * other + k * step;
  }
};

// A packed factor: the two tiles of a step lie behind each other.
inline Factor packed(const void* first) { return {first, 64, TILE_BYTES, 2 * TILE_BYTES}; }

// A left factor that lies in memory as rows of `row` numbers.
inline Factor lying(const bf16* first, int64_t row) { return {first, 2 * row, 2 * row * TILE, 64}; }

// Whether this process may use AMX; asked once, the answer holds for all of its threads.
inline bool ask_for_amx() {
#ifdef __AMX_BF16__
  constexpr int REQUEST = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
  return false;
#endif
}

#ifdef __AMX_BF16__
struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t columns[16] = {};
  uint8_t rows[16] = {};
};
#endif

// What a thread needs before its first product.
struct Tiles {
  Tiles() {
#ifdef __AMX_BF16__
    if (!use_amx) return;
    TileShapes shapes;
    for (int i = 0; i < 8; ++i) shapes.columns[i] = 64, shapes.rows[i] = 16;
    _tile_loadconfig(&shapes);
#endif
  }
  ~Tiles() {
#ifdef __AMX_BF16__
    if (use_amx) _tile_release();
#endif
  }
};

// One tile of results by AVX-512: `steps` of 32.
inline void multiply_tile(float* to, int64_t width, const Factor& left, int64_t up,
                          const Factor& right, int64_t along, int64_t steps, bool add) {
  __m512 total[TILE];
#pragma GCC unroll 16
  for (int64_t i = 0; i < TILE; ++i) total[i] = add ? _mm512_loadu_ps(to + i * width) : __m512{};
  for (int64_t k = 0; k < steps; ++k) {
    const char *a = left.at(up, k), *b = right.at(along, k);
    for (int64_t p = 0; p < TILE; ++p) {
      const __m512bh woven = (__m512bh)_mm512_loadu_si512(b + p * right.row);
#pragma GCC unroll 16
      for (int64_t i = 0; i < TILE; ++i) {
        int32_t pair;
        std::memcpy(&pair, a + i * left.row + p * 4, sizeof pair);
        total[i] = _mm512_dpbf16_ps(total[i], (__m512bh)_mm512_set1_epi32(pair), woven);
      }
    }
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < TILE; ++i) _mm512_storeu_ps(to + i * width, total[i]);
}

// to[32, 32] = left · right, or added to what is there; rows of `to` are `width` numbers apart.
inline void multiply(float* to, int64_t width, const Factor& left, const Factor& right,
                     int64_t steps, bool add) {
#ifdef __AMX_BF16__
  if (use_amx) {
    const int64_t row = width * sizeof(float);
    float* const below = to + TILE * width;
    if (add) {
      _tile_loadd(0, to, row);
      _tile_loadd(1, to + TILE, row);
      _tile_loadd(2, below, row);
      _tile_loadd(3, below + TILE, row);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t k = 0; k < steps; ++k) {
      _tile_loadd(4, left.at(0, k), left.row);
      _tile_loadd(6, right.at(0, k), right.row);
      _tile_loadd(7, right.at(1, k), right.row);
      _tile_loadd(5, left.at(1, k), left.row);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, to, row);
    _tile_stored(1, to + TILE, row);
    _tile_stored(2, below, row);
    _tile_stored(3, below + TILE, row);
    return;
  }
#endif
  for (int64_t up = 0; up < 2; ++up) {
    for (int64_t along = 0; along < 2; ++along) {
      multiply_tile(to + up * TILE * width + along * TILE, width, left, up, right, along, steps,
                    add);
    }
  }
}

// Numbers of two rows in turn: 16 columns of a right factor.
inline __m512i weave(const bf16* first, const bf16* second) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)first));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)second));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// Sixteen rows of sixteen words become columns.
inline void transpose(__m512i* row) {
  __m512i half[TILE];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    half[2 * i] = _mm512_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
    half[2 * i + 1] = _mm512_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    row[i] = _mm512_unpacklo_epi64(half[i], half[i + 2]);
    row[i + 1] = _mm512_unpackhi_epi64(half[i], half[i + 2]);
    row[i + 2] = _mm512_unpacklo_epi64(half[i + 1], half[i + 3]);
    row[i + 3] = _mm512_unpackhi_epi64(half[i + 1], half[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    half[i] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0x88);
    half[i + 4] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0xdd);
    half[i + 8] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0x88);
    half[i + 12] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    row[i] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0x88);
    row[i + 8] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0xdd);
    row[i + 4] = _mm512_shuffle_i32x4(half[i + 4], half[i + 12], 0x88);
    row[i + 12] = _mm512_shuffle_i32x4(half[i + 4], half[i + 12], 0xdd);
  }
}

// A tile whose rows are the columns of x: 32 rows of x, 16 columns; as a left factor.
inline void pack_columns(const bf16* x, int64_t row, bf16* to) {
  __m512i pairs[TILE];
#pragma GCC unroll 16
  for (int64_t p = 0; p < TILE; ++p) pairs[p] = weave(x + 2 * p * row, x + (2 * p + 1) * row);
  transpose(pairs);
#pragma GCC unroll 16
  for (int64_t p = 0; p < TILE; ++p) _mm512_store_si512(to + p * BLOCK, pairs[p]);
}

// A tile of a right factor: 32 rows of x are summed over, 16 columns.
inline void pack_rows(const bf16* x, int64_t row, bf16* to) {
#pragma GCC unroll 16
  for (int64_t p = 0; p < TILE; ++p) {
    _mm512_store_si512(to + p * BLOCK, weave(x + 2 * p * row, x + (2 * p + 1) * row));
  }
}

// A tile of a right factor: 16 rows of x are its columns, 32 numbers of each are summed over.
inline void pack_turned(const bf16* x, int64_t row, bf16* to) {
  __m512i pairs[TILE];
#pragma GCC unroll 16
  for (int64_t i = 0; i < TILE; ++i) pairs[i] = _mm512_loadu_si512(x + i * row);
  transpose(pairs);
#pragma GCC unroll 16
  for (int64_t i = 0; i < TILE; ++i) _mm512_store_si512(to + i * BLOCK, pairs[i]);
}

// Memory that begins at a cache line.
template <typename Number>
class Piece {
 public:
  explicit Piece(int64_t count)
      : held_(
            static_cast<Number*>(std::aligned_alloc(64, (count * sizeof(Number) / 64 + 1) * 64))) {
    if (held_ == nullptr) throw std::bad_alloc();
  }
  Piece(const Piece&) = delete;
  ~Piece() { std::free(held_); }
  operator Number*() const { return held_; }

 private:
  Number* held_;
};

}  // namespace

#endif
