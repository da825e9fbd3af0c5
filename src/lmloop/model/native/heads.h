// Where the numbers of heads lie, and which keys a mask shows.
//
// Axes: B rows, H query heads, K key heads, T queries, S keys, d width of a head.

#pragma once

#include <vector>

#include "tiles.h"

#ifdef __AVX512BF16__

namespace {

struct Sizes {
  int64_t rows, heads, key_heads, queries, keys, width, mask_rows, mask_heads;
};

// A tensor [B, heads, places, d]: any strides, in numbers, the last of which is one.
struct Heads {
  bf16* first;
  int64_t row, head, place;

  Heads(const bf16* x, const int64_t* strides)
      : first(const_cast<bf16*>(x)), row(strides[0]), head(strides[1]), place(strides[2]) {}
  bf16* at(int64_t b, int64_t h) const { return first + b * row + h * head; }
};

// Rows of a head as they lie in memory.
struct Rows {
  const bf16* first;
  int64_t row;
};

// Rows of a head, whole blocks of them and of their width: where they lie, else in `held` with
// zeros behind them.
Rows whole_rows(const bf16* x, int64_t place, int64_t rows, int64_t width, bf16* held) {
  if (whole(rows) == rows && whole(width) == width) return {x, place};
  const int64_t row = whole(width);
  std::memset(held, 0, whole(rows) * row * sizeof(bf16));
  for (int64_t i = 0; i < rows; ++i)
    std::memcpy(held + i * row, x + i * place, width * sizeof(bf16));
  return {held, row};
}

// The other way, of fp32 numbers, each times the `factor` of its row if there are factors.
void scatter(const float* x, int64_t row, int64_t rows, int64_t width, bf16* to, int64_t place,
             const float* factor = nullptr) {
  for (int64_t i = 0; i < rows; ++i) {
    const float by = factor == nullptr ? 1 : factor[i];
    each(width, [&](int64_t j, int64_t count) {
      store(to + i * place + j, load(x + i * row + j, count) * by, count);
    });
  }
}

// A right factor with `rows` of x as columns, block after block of them.
void turn_all(const Rows& x, int64_t rows, int64_t width, bf16* to) {
  for (int64_t i = 0; i < rows; i += BLOCK) {
    for (int64_t k = 0; k < width; k += BLOCK) {
      for (int64_t side = 0; side < BLOCK; side += TILE, to += TILE_NUMBERS) {
        pack_turned(x.first + (i + side) * x.row + k, x.row, to);
      }
    }
  }
}

// A right factor that sums over `rows` of x, block after block of columns.
void weave_all(const Rows& x, int64_t rows, int64_t width, bf16* to) {
  for (int64_t j = 0; j < width; j += BLOCK) {
    for (int64_t k = 0; k < rows; k += BLOCK) {
      for (int64_t side = 0; side < BLOCK; side += TILE, to += TILE_NUMBERS) {
        pack_rows(x.first + k * x.row + j + side, x.row, to);
      }
    }
  }
}

// What is added to scores, and between which keys, whole blocks, 32 queries see something.
class Mask {
 public:
  Mask(const bf16* added, const Sizes& sizes) : added_(added), sizes_(sizes) {
    if (added == nullptr) return;
    const int64_t blocks = whole(sizes.queries) / BLOCK;
    for (int64_t of = 0; of < sizes.mask_rows * sizes.mask_heads; ++of) {
      for (int64_t i = 0; i < blocks; ++i) seen_.push_back(look(of, i * BLOCK));
    }
  }

  struct Seen {
    int64_t first, last;
  };

  // [T, S] of a head, or nothing.
  const bf16* of(int64_t row, int64_t head) const {
    if (added_ == nullptr) return nullptr;
    return added_ + which(row, head) * sizes_.queries * sizes_.keys;
  }

  Seen seen(int64_t row, int64_t head, int64_t query) const {
    if (added_ == nullptr) return {0, whole(sizes_.keys)};
    return seen_[which(row, head) * (whole(sizes_.queries) / BLOCK) + query / BLOCK];
  }

 private:
  int64_t which(int64_t row, int64_t head) const {
    return row % sizes_.mask_rows * sizes_.mask_heads + head % sizes_.mask_heads;
  }

  // A query that sees no key gathers them all: then all are seen.
  Seen look(int64_t of, int64_t query) const {
    const int64_t keys = sizes_.keys, end = std::min(query + BLOCK, sizes_.queries);
    Seen seen = {keys, 0};
    for (; query < end; ++query) {
      const bf16* row = added_ + (of * sizes_.queries + query) * keys;
      int64_t first = 0, last = keys;
      while (first < last && hides(row[first])) ++first;
      while (first < last && hides(row[last - 1])) --last;
      if (first == last) return {0, whole(keys)};
      seen = {std::min(seen.first, first), std::max(seen.last, last)};
    }
    return {seen.first / BLOCK * BLOCK, whole(seen.last)};
  }

  static bool hides(bf16 added) { return added >= 0xfe00; }  // below -4e37

  const bf16* added_;
  const Sizes& sizes_;
  std::vector<Seen> seen_;
};

}  // namespace

#endif
