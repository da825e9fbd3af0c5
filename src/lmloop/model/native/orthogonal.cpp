// Matrices of a momentum on their way to orthogonal ones, each in the caches of one thread.
//
// A step makes b · S + c · S² of S = X · Xᵀ, and adds what that makes of X to a · X. S and its
// square are symmetric: half of their blocks are multiplied, the others mirrored. Everything lies
// in blocks of 32 x 32, rounded to bfloat16 where it is stored. Axes: G matrices, R rows and C
// columns.

#include "tiles.h"

#ifdef __AVX512BF16__

namespace {

// A matrix in blocks, each of which is a left factor as it lies.
struct Blocks {
  bf16* first;
  int64_t along;  // blocks of a row

  bf16* at(int64_t i, int64_t j) const { return first + (i * along + j) * NUMBERS; }
};

// A block [32, 32] of a plain matrix, and back.
void copy_block(const bf16* from, int64_t from_row, bf16* to, int64_t to_row) {
  for (int64_t i = 0; i < BLOCK; ++i) {
    std::memcpy(to + i * to_row, from + i * from_row, BLOCK * sizeof(bf16));
  }
}

// What a thread needs for one matrix after the other.
class Orthogonal {
 public:
  Orthogonal(int64_t rows, int64_t columns)
      : rows_(rows / BLOCK),
        columns_(columns / BLOCK),
        x_(rows * columns),
        square_(rows * rows),
        both_(rows * rows),
        held_(std::max(rows, columns) * BLOCK),
        total_(NUMBERS) {}

  void operator()(bf16* matrix, const float* factors, int64_t steps) {
    const int64_t row = columns_ * BLOCK;
    const Blocks x{x_, columns_}, square{square_, rows_}, both{both_, rows_};
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = 0; j < columns_; ++j) {
        copy_block(matrix + i * BLOCK * row + j * BLOCK, row, x.at(i, j), BLOCK);
      }
    }
    for (; steps > 0; --steps, factors += 3) {
      multiply_self(x, 0, 1, square);
      multiply_self(square, factors[1], factors[2], both);
      add_product(both, factors[0], x);
    }
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = 0; j < columns_; ++j) {
        copy_block(x.at(i, j), BLOCK, matrix + i * BLOCK * row + j * BLOCK, row);
      }
    }
  }

 private:
  // to = factor · x · xᵀ, and `share` of x itself where x is symmetric.
  void multiply_self(const Blocks& x, float share, float factor, const Blocks& to) {
    for (int64_t j = 0; j < rows_; ++j) {
      bf16* held = held_;
      for (int64_t k = 0; k < x.along; ++k) {
        for (int64_t side = 0; side < BLOCK; side += TILE, held += TILE_NUMBERS) {
          pack_turned(x.at(j, k) + side * BLOCK, BLOCK, held);
        }
      }
      for (int64_t i = 0; i <= j; ++i) {
        multiply(total_, BLOCK, packed(x.at(i, 0)), packed(held_), x.along, false);
        finish(share == 0 ? nullptr : x.at(i, j), share, factor, to.at(i, j));
        if (i < j) mirror(to.at(j, i));
      }
    }
  }

  // x = share · x + left · x, a column of blocks after the other.
  void add_product(const Blocks& left, float share, const Blocks& x) {
    for (int64_t j = 0; j < columns_; ++j) {
      bf16* held = held_;
      for (int64_t k = 0; k < rows_; ++k) {
        for (int64_t side = 0; side < BLOCK; side += TILE, held += TILE_NUMBERS) {
          pack_rows(x.at(k, j) + side, BLOCK, held);
        }
      }
      for (int64_t i = 0; i < rows_; ++i) {
        multiply(total_, BLOCK, packed(left.at(i, 0)), packed(held_), rows_, false);
        finish(x.at(i, j), share, 1, x.at(i, j));
      }
    }
  }

  // to = share · x + factor · total, which is left in total.
  void finish(const bf16* x, float share, float factor, bf16* to) {
    for (int64_t at = 0; at < NUMBERS; at += LANES) {
      lanes sum = load(total_ + at) * factor;
      if (x != nullptr) sum += load(x + at) * share;
      store(total_ + at, sum);
      store(to + at, sum);
    }
  }

  // to = total with rows for columns.
  void mirror(bf16* to) {
    for (int64_t i = 0; i < BLOCK; i += TILE) {
      for (int64_t j = 0; j < BLOCK; j += TILE) {
        __m512i row[TILE];
        for (int64_t r = 0; r < TILE; ++r) row[r] = (__m512i)load(total_ + (i + r) * BLOCK + j);
        transpose(row);
        for (int64_t r = 0; r < TILE; ++r) store(to + (j + r) * BLOCK + i, (lanes)row[r]);
      }
    }
  }

  int64_t rows_, columns_;
  Piece<bf16> x_, square_, both_, held_;
  Piece<float> total_;
};

}  // namespace

extern "C" {

// `steps` steps of matrices [G, R, C] in their place; R and C are multiples of 32.
void orthogonalise(bf16* matrices, int64_t count, int64_t rows, int64_t columns,
                   const float* factors, int64_t steps, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const Tiles tiles;
    Orthogonal work(rows, columns);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < count; ++i) work(matrices + i * rows * columns, factors, steps);
  }
}

}  // extern "C"

#endif
