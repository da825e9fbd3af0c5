// The gradient of a matrix of weights: a product that sums over all tokens of a batch.
//
// What leaves the second cache costs more than to multiply it. So the narrower factor is packed
// once; of the wider one each thread takes stripes, whose totals stay in the cache until all tokens
// are in them, always in the same order. Axes: N tokens, R rows and C columns of the weights.

#include "tiles.h"

#ifdef __AVX512BF16__

namespace {

constexpr int64_t TOKENS = 256;      // at once: two packed blocks fit into the first cache
constexpr int64_t TOTALS = 1 << 18;  // of a stripe: they take half of the second cache
// A factor [N, width] of the product, packed in blocks of 32 columns.
struct Side {
  const bf16* first;
  int64_t row, width;
  bool is_left;

  // Columns [from, to) of tokens [begin, end); blocks of columns lie `apart` in `packed_blocks`.
  void pack(int64_t begin, int64_t end, int64_t from, int64_t to, bf16* packed_blocks,
            int64_t apart) const {
    for (int64_t n = begin; n < end; n += BLOCK, packed_blocks += NUMBERS) {
      for (int64_t i = from; i < to; i += BLOCK) {
        bf16* block = packed_blocks + (i - from) / BLOCK * apart;
        const bf16* x = first + n * row + i;
        if (end - n < BLOCK) {
          pack_last(x, end - n, block);
        } else {
          pack_block(x, row, block);
        }
      }
    }
  }

 private:
  void pack_block(const bf16* x, int64_t stride, bf16* block) const {
    for (int64_t side = 0; side < BLOCK; side += TILE) {
      if (is_left) {
        pack_columns(x + side, stride, block + side * BLOCK);
      } else {
        pack_rows(x + side, stride, block + side * BLOCK);
      }
    }
  }

  void pack_last(const bf16* x, int64_t tokens, bf16* block) const {
    bf16 held[NUMBERS] = {};
    for (int64_t n = 0; n < tokens; ++n) {
      std::memcpy(held + n * BLOCK, x + n * row, BLOCK * sizeof(bf16));
    }
    pack_block(held, BLOCK, block);
  }
};

// The columns [from, to) of the wide factor, and what they come to with all of the narrow one.
class Stripe {
 public:
  Stripe(const Side& wide, const Side& narrow, const bf16* packed_narrow, int64_t most)
      : wide_(wide),
        narrow_(narrow),
        others_(packed_narrow),
        most_(most),
        held_(TOKENS * most),
        totals_(most * narrow.width) {}

  void operator()(int64_t from, int64_t to, int64_t tokens, bf16* result) {
    for (int64_t n = 0; n < tokens; n += TOKENS) {
      wide_.pack(n, std::min(tokens, n + TOKENS), from, to, held_,
                 whole(std::min(TOKENS, tokens - n)) * BLOCK);
      add(n, to - from, tokens);
    }
    hand_out(from, to, result);
  }

 private:
  // Adds the tokens from n on, as many as are held.
  void add(int64_t n, int64_t width, int64_t tokens) {
    const int64_t steps = whole(std::min(TOKENS, tokens - n)) / BLOCK;
    for (int64_t j = 0; j < narrow_.width; j += BLOCK) {
      const Factor across = packed(others_ + (j * whole(tokens) + n * BLOCK));
      for (int64_t i = 0; i < width; i += BLOCK) {
        const Factor along = packed(held_ + i * steps * BLOCK);
        multiply(total(i, j), BLOCK, wide_.is_left ? along : across, wide_.is_left ? across : along,
                 steps, n > 0);
      }
    }
  }

  void hand_out(int64_t from, int64_t to, bf16* result) {
    const int64_t columns = wide_.is_left ? narrow_.width : wide_.width;
    for (int64_t j = 0; j < narrow_.width; j += BLOCK) {
      for (int64_t i = from; i < to; i += BLOCK) {
        bf16* corner = result + (wide_.is_left ? i * columns + j : j * columns + i);
        const float* from_here = total(i - from, j);
        for (int64_t at = 0; at < NUMBERS; at += LANES) {
          store(corner + at / BLOCK * columns + at % BLOCK, load(from_here + at));
        }
      }
    }
  }

  // The block of the i-th column of the stripe and the j-th of the narrow factor.
  float* total(int64_t i, int64_t j) { return totals_ + (j * most_ + i * BLOCK); }

  const Side &wide_, &narrow_;
  const bf16* others_;
  int64_t most_;
  Piece<bf16> held_;
  Piece<float> totals_;
};

}  // namespace

extern "C" {

// result[R, C] = left[N, R] turned · right[N, C]; R and C are multiples of 32.
void weight_gradient(const bf16* left, int64_t left_row, const bf16* right, int64_t right_row,
                     bf16* result, int64_t tokens, int64_t rows, int64_t columns, int threads) {
  const Side sides[] = {{left, left_row, rows, true}, {right, right_row, columns, false}};
  const bool is_tall = rows >= columns;
  const Side &wide = sides[!is_tall], &narrow = sides[is_tall];
  const int64_t blocks = wide.width / BLOCK, steps = whole(tokens) / BLOCK;
  const int64_t most = std::max<int64_t>(1, TOTALS / narrow.width / BLOCK);
  const int64_t stripes = std::min(blocks, (blocks / most / threads + 1) * threads);
  const Piece<bf16> kept(whole(tokens) * narrow.width);
#pragma omp parallel num_threads(threads)
  {
    const Tiles tiles;
#pragma omp for
    for (int64_t k = 0; k < steps; ++k) {
      narrow.pack(k * BLOCK, std::min(tokens, (k + 1) * BLOCK), 0, narrow.width, kept + k * NUMBERS,
                  steps * NUMBERS);
    }
    Stripe stripe(wide, narrow, kept, (blocks + stripes - 1) / stripes * BLOCK);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < stripes; ++i) {
      stripe(blocks * i / stripes * BLOCK, blocks * (i + 1) / stripes * BLOCK, tokens, result);
    }
  }
}

}  // extern "C"

#endif

// Makes ready for products of tiles: 0 where this processor has none, 2 with AMX, else 1.
extern "C" int64_t make_tiles_ready([[maybe_unused]] int64_t may_use_amx) {
#ifdef __AVX512BF16__
  use_amx = may_use_amx && ask_for_amx();
  return use_amx ? 2 : 1;
#else
  return 0;
#endif
}
