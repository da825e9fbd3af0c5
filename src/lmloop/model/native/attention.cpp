// Attention of rows and its gradient, one head after the other; scores never reach memory.
//
// A head's numbers fit into the second cache: 32 queries at a time meet the keys that the mask
// shows them. Backward makes the scores again, from the largest score and the sum of each query
// (Dao et al. 2022, FlashAttention). Key heads are shared out among threads: a result depends on
// nothing but the numbers. Axes: B rows, H query heads, K key heads, T queries, S keys, d width of
// a head.

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

// Sixteen scores of `count` keys: products times scale, and what the mask adds.
inline lanes finish(const float* products, const bf16* added, float scale, int64_t count) {
  const lanes scores = load(products, count) * scale;
  return added == nullptr ? scores : scores + load(added, count);
}

// left[32, width] · right: columns [first, last) of the result [32, row].
void multiply_all(float* to, int64_t row, const Rows& left, const bf16* right, int64_t steps,
                  int64_t first, int64_t last) {
  const Factor rows = lying(left.first, left.row);
  for (int64_t j = first; j < last; j += BLOCK) {
    multiply(to + j, row, rows, packed(right + j * steps * BLOCK), steps, false);
  }
}

// What a thread needs for the attention of a head.
struct Gathering {
  const Sizes& sizes;
  const Mask& mask;
  float scale;
  int64_t keys, width;  // whole blocks
  Piece<bf16> held, turned_keys, woven_values, weights;
  Piece<float> products, sums;

  Gathering(const Sizes& s, const Mask& m, float factor)
      : sizes(s),
        mask(m),
        scale(factor),
        keys(whole(s.keys)),
        width(whole(s.width)),
        held(keys * width),
        turned_keys(keys * width),
        woven_values(keys * width),
        weights(BLOCK * keys),
        products(BLOCK * keys),
        sums(BLOCK * width) {}

  void operator()(int64_t b, int64_t group, const Heads& q, const Heads& k, const Heads& v,
                  const Heads& out, float* most, float* factor) {
    turn_all(whole_rows(k.at(b, group), k.place, sizes.keys, sizes.width, held), keys, width,
             turned_keys);
    weave_all(whole_rows(v.at(b, group), v.place, sizes.keys, sizes.width, held), keys, width,
              woven_values);
    const int64_t heads = sizes.heads / sizes.key_heads;
    for (int64_t h = group * heads; h < (group + 1) * heads; ++h) {
      const int64_t at = (b * sizes.heads + h) * sizes.queries;
      for (int64_t i = 0; i < sizes.queries; i += BLOCK) {
        const int64_t rows = std::min(BLOCK, sizes.queries - i);
        const Rows query = whole_rows(q.at(b, h) + i * q.place, q.place, rows, sizes.width, held);
        const auto seen = mask.seen(b, h, i);
        multiply_all(products, keys, query, turned_keys, width / BLOCK, seen.first, seen.last);
        const bf16* added = mask.of(b, h);
        for (int64_t r = 0; r < rows; ++r) {
          weigh(r, added == nullptr ? nullptr : added + (i + r) * sizes.keys, seen,
                most + at + i + r, factor + at + i + r);
        }
        for (int64_t j = 0; j < width; j += BLOCK) {
          multiply(sums + j, width, lying(weights + seen.first, keys),
                   packed(woven_values + (j * keys + seen.first * BLOCK)),
                   (seen.last - seen.first) / BLOCK, false);
        }
        scatter(sums, width, rows, sizes.width, out.at(b, h) + i * out.place, out.place,
                factor + at + i);
      }
    }
  }

  // e^(score - the largest) of a query, and what makes their sum one.
  void weigh(int64_t r, const bf16* added, const Mask::Seen& seen, float* most, float* factor) {
    const int64_t first = seen.first, count = std::min(seen.last, sizes.keys) - first;
    float* row = products + r * keys + first;
    bf16* to = weights + r * keys + first;
    if (added != nullptr) added += first;
    lanes largest_lanes = fill(-INFINITE), total = {};
    each(count, [&](int64_t i, int64_t some) {
      lanes scores = finish(row + i, added == nullptr ? nullptr : added + i, scale, some);
      for (int64_t j = some; j < LANES; ++j) scores[j] = -INFINITE;
      store(row + i, scores);
      largest_lanes = larger(scores, largest_lanes);
    });
    *most = largest(largest_lanes);
    std::memset(to + count, 0, (seen.last - first - count) * sizeof(bf16));
    each(count, [&](int64_t i, int64_t some) {
      const lanes raised = exponential(load(row + i) - *most);
      store(to + i, raised, some);
      total += raised;
    });
    *factor = 1 / sum(total);
  }
};

// What a thread needs for the gradients of a head.
struct Gradient {
  const Sizes& sizes;
  const Mask& mask;
  float scale;
  int64_t keys, width;  // whole blocks
  Piece<bf16> held, turned_keys, turned_values, woven_keys;
  Piece<bf16> held_query, woven_query, held_grad, woven_grad, weights, slopes, turned;
  Piece<float> products, upstream, moved, grad_keys, grad_values;

  Gradient(const Sizes& s, const Mask& m, float factor)
      : sizes(s),
        mask(m),
        scale(factor),
        keys(whole(s.keys)),
        width(whole(s.width)),
        held(keys * width),
        turned_keys(keys * width),
        turned_values(keys * width),
        woven_keys(keys * width),
        held_query(BLOCK * width),
        woven_query(BLOCK * width),
        held_grad(BLOCK * width),
        woven_grad(BLOCK * width),
        weights(BLOCK * keys),
        slopes(BLOCK * keys),
        turned(BLOCK * BLOCK),
        products(BLOCK * keys),
        upstream(BLOCK * keys),
        moved(BLOCK * width),
        grad_keys(keys * width),
        grad_values(keys * width) {}

  void operator()(int64_t b, int64_t group, const Heads& q, const Heads& k, const Heads& v,
                  const Heads& out, const Heads& grad, const float* most, const float* factor,
                  const Heads& grad_q, const Heads& grad_k, const Heads& grad_v) {
    turn_all(whole_rows(v.at(b, group), v.place, sizes.keys, sizes.width, held), keys, width,
             turned_values);
    const Rows key = whole_rows(k.at(b, group), k.place, sizes.keys, sizes.width, held);
    turn_all(key, keys, width, turned_keys);
    weave_all(key, keys, width, woven_keys);
    std::memset(grad_keys, 0, keys * width * sizeof(float));
    std::memset(grad_values, 0, keys * width * sizeof(float));
    const int64_t heads = sizes.heads / sizes.key_heads;
    for (int64_t h = group * heads; h < (group + 1) * heads; ++h) {
      const int64_t at = (b * sizes.heads + h) * sizes.queries;
      for (int64_t i = 0; i < sizes.queries; i += BLOCK) {
        const int64_t rows = std::min(BLOCK, sizes.queries - i);
        const Rows query =
            whole_rows(q.at(b, h) + i * q.place, q.place, rows, sizes.width, held_query);
        const bf16 *from = grad.at(b, h) + i * grad.place, *made = out.at(b, h) + i * out.place;
        const Rows given = whole_rows(from, grad.place, rows, sizes.width, held_grad);
        weave_all(query, BLOCK, width, woven_query);
        weave_all(given, BLOCK, width, woven_grad);
        const auto seen = mask.seen(b, h, i);
        multiply_all(products, keys, query, turned_keys, width / BLOCK, seen.first, seen.last);
        multiply_all(upstream, keys, given, turned_values, width / BLOCK, seen.first, seen.last);
        const bf16* added = mask.of(b, h);
        for (int64_t r = 0; r < rows; ++r) {
          slope(r, added == nullptr ? nullptr : added + (i + r) * sizes.keys, seen,
                most[at + i + r], factor[at + i + r],
                product(from + r * grad.place, made + r * out.place));
        }
        for (int64_t r = rows; r < BLOCK; ++r) {
          std::memset(weights + r * keys, 0, keys * sizeof(bf16));
          std::memset(slopes + r * keys, 0, keys * sizeof(bf16));
        }
        for (int64_t j = 0; j < width; j += BLOCK) {
          multiply(moved + j, width, lying(slopes + seen.first, keys),
                   packed(woven_keys + (j * keys + seen.first * BLOCK)),
                   (seen.last - seen.first) / BLOCK, false);
        }
        scatter(moved, width, rows, sizes.width, grad_q.at(b, h) + i * grad_q.place, grad_q.place);
        add_up(weights, woven_grad, grad_values, seen);
        add_up(slopes, woven_query, grad_keys, seen);
      }
    }
    scatter(grad_keys, width, sizes.keys, sizes.width, grad_k.at(b, group), grad_k.place);
    scatter(grad_values, width, sizes.keys, sizes.width, grad_v.at(b, group), grad_v.place);
  }

  float product(const bf16* x, const bf16* y) const {
    lanes total = {};
    each(sizes.width,
         [&](int64_t i, int64_t some) { total += load(x + i, some) * load(y + i, some); });
    return sum(total);
  }

  // The weights of a query, and the gradient of its products with keys.
  void slope(int64_t r, const bf16* added, const Mask::Seen& seen, float most, float factor,
             float mean) {
    const int64_t first = seen.first, count = std::min(seen.last, sizes.keys) - first;
    const float *row = products + r * keys + first, *up = upstream + r * keys + first;
    bf16 *weight = weights + r * keys + first, *slope = slopes + r * keys + first;
    if (added != nullptr) added += first;
    std::memset(weight + count, 0, (seen.last - first - count) * sizeof(bf16));
    std::memset(slope + count, 0, (seen.last - first - count) * sizeof(bf16));
    each(count, [&](int64_t i, int64_t some) {
      const lanes scores = finish(row + i, added == nullptr ? nullptr : added + i, scale, some);
      const lanes made = exponential(scores - most) * factor;
      store(weight + i, made, some);
      store(slope + i, made * (load(up + i, some) - mean) * scale, some);
    });
  }

  // to[keys, width] += x[32, keys] turned · right[32, width].
  void add_up(const bf16* x, const bf16* right, float* to, const Mask::Seen& seen) {
    for (int64_t i = seen.first; i < seen.last; i += BLOCK) {
      for (int64_t side = 0; side < BLOCK; side += TILE) {
        pack_columns(x + i + side, keys, turned + side * BLOCK);
      }
      for (int64_t j = 0; j < width; j += BLOCK) {
        multiply(to + i * width + j, width, packed(turned), packed(right + j * BLOCK), 1, true);
      }
    }
  }
};

// Calls body(row, key head, what a thread needs) for each of them, in any order.
template <typename Needs, typename Body>
void each_key_head(const Sizes& sizes, const Mask& mask, float scale, int threads, Body body) {
#pragma omp parallel num_threads(threads)
  {
    const Tiles tiles;
    Needs needs(sizes, mask, scale);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < sizes.rows * sizes.key_heads; ++i) {
      body(needs, i / sizes.key_heads, i % sizes.key_heads);
    }
  }
}

}  // namespace

extern "C" {

void attention_forward(const bf16* q, const bf16* k, const bf16* v, const bf16* added, bf16* out,
                       float* most, float* factor, const int64_t* shape, const int64_t* strides,
                       float scale, int threads) {
  Sizes sizes;
  std::memcpy(&sizes, shape, sizeof sizes);
  const Mask mask(added, sizes);
  const Heads queries(q, strides), key(k, strides + 3), value(v, strides + 6), to(out, strides + 9);
  each_key_head<Gathering>(sizes, mask, scale, threads, [&](auto& work, int64_t b, int64_t group) {
    work(b, group, queries, key, value, to, most, factor);
  });
}

void attention_backward(const bf16* q, const bf16* k, const bf16* v, const bf16* added,
                        const bf16* out, const bf16* grad, const float* most, const float* factor,
                        bf16* grad_q, bf16* grad_k, bf16* grad_v, const int64_t* shape,
                        const int64_t* strides, float scale, int threads) {
  Sizes sizes;
  std::memcpy(&sizes, shape, sizeof sizes);
  const Mask mask(added, sizes);
  const Heads queries(q, strides), key(k, strides + 3), value(v, strides + 6);
  const Heads made(out, strides + 9), given(grad, strides + 12), to_q(grad_q, strides + 15),
      to_k(grad_k, strides + 18), to_v(grad_v, strides + 21);
  each_key_head<Gradient>(sizes, mask, scale, threads, [&](auto& work, int64_t b, int64_t group) {
    work(b, group, queries, key, value, made, given, most, factor, to_q, to_k, to_v);
  });
}

}  // extern "C"

#endif
