// Attention of rows and its gradient, one head after the other; scores never reach memory.
//
// A head's numbers fit into the second cache: 32 queries at a time meet the keys that the mask
// shows them. Backward makes the scores again, from the largest score and the sum of each query
// (Dao et al. 2022, FlashAttention). Key heads are shared out among threads: a result depends on
// nothing but the numbers. Axes: B rows, H query heads, K key heads, T queries, S keys, d width of
// a head.

#include "heads.h"

#ifdef __AVX512BF16__

namespace {

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

// What attention reads and gives; of each query the largest score and the inverse of the sum.
struct Tensors {
  Heads q, k, v, out;
  float *most, *factor;
};

// The gradients that backward is given, and that it gives.
struct Gradients {
  Heads out, q, k, v;
};

// What a thread needs for a head, whichever way it goes.
struct Head {
  const Sizes& sizes;
  const Mask& mask;
  float scale;
  int64_t keys, width;  // whole blocks
  Piece<bf16> held, turned_keys, weights;
  Piece<float> products;

  Head(const Sizes& s, const Mask& m, float factor)
      : sizes(s),
        mask(m),
        scale(factor),
        keys(whole(s.keys)),
        width(whole(s.width)),
        held(keys * width),
        turned_keys(keys * width),
        weights(BLOCK * keys),
        products(BLOCK * keys) {}

  // Calls body(head, query) for each block of queries of the heads that share keys.
  template <typename Body>
  void each_block(int64_t group, Body body) const {
    const int64_t heads = sizes.heads / sizes.key_heads;
    for (int64_t h = group * heads; h < (group + 1) * heads; ++h) {
      for (int64_t i = 0; i < sizes.queries; i += BLOCK) body(h, i);
    }
  }

  // to[32, width] = x[32, keys] · right, of the keys that are seen.
  void gather_seen(float* to, const bf16* x, const bf16* right, const Mask::Seen& seen) const {
    for (int64_t j = 0; j < width; j += BLOCK) {
      multiply(to + j, width, lying(x + seen.first, keys),
               packed(right + (j * keys + seen.first * BLOCK)), (seen.last - seen.first) / BLOCK,
               false);
    }
  }
};

// The way forward.
struct Gathering : Head {
  Piece<bf16> woven_values;
  Piece<float> sums;

  Gathering(const Sizes& s, const Mask& m, float factor)
      : Head(s, m, factor), woven_values(keys * width), sums(BLOCK * width) {}

  void operator()(int64_t b, int64_t group, const Tensors& of) {
    turn_all(whole_rows(of.k.at(b, group), of.k.place, sizes.keys, sizes.width, held), keys, width,
             turned_keys);
    weave_all(whole_rows(of.v.at(b, group), of.v.place, sizes.keys, sizes.width, held), keys, width,
              woven_values);
    each_block(group, [&](int64_t h, int64_t i) { gather(b, h, i, of); });
  }

  // The queries from `i` on, a block of them.
  void gather(int64_t b, int64_t h, int64_t i, const Tensors& of) {
    const int64_t at = (b * sizes.heads + h) * sizes.queries + i;
    const int64_t rows = std::min(BLOCK, sizes.queries - i);
    const bf16 *from = of.q.at(b, h) + i * of.q.place, *added = mask.of(b, h);
    const auto seen = mask.seen(b, h, i);
    multiply_all(products, keys, whole_rows(from, of.q.place, rows, sizes.width, held), turned_keys,
                 width / BLOCK, seen.first, seen.last);
    for (int64_t r = 0; r < rows; ++r) {
      weigh(r, added == nullptr ? nullptr : added + (i + r) * sizes.keys, seen, of.most + at + r,
            of.factor + at + r);
    }
    gather_seen(sums, weights, woven_values, seen);
    scatter(sums, width, rows, sizes.width, of.out.at(b, h) + i * of.out.place, of.out.place,
            of.factor + at);
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

// The way back.
struct Gradient : Head {
  Piece<bf16> turned_values, woven_keys;
  Piece<bf16> held_query, woven_query, held_grad, woven_grad, slopes, turned;
  Piece<float> upstream, moved, grad_keys, grad_values;

  Gradient(const Sizes& s, const Mask& m, float factor)
      : Head(s, m, factor),
        turned_values(keys * width),
        woven_keys(keys * width),
        held_query(BLOCK * width),
        woven_query(BLOCK * width),
        held_grad(BLOCK * width),
        woven_grad(BLOCK * width),
        slopes(BLOCK * keys),
        turned(BLOCK * BLOCK),
        upstream(BLOCK * keys),
        moved(BLOCK * width),
        grad_keys(keys * width),
        grad_values(keys * width) {}

  void operator()(int64_t b, int64_t group, const Tensors& of, const Gradients& to) {
    turn_all(whole_rows(of.v.at(b, group), of.v.place, sizes.keys, sizes.width, held), keys, width,
             turned_values);
    const Rows key = whole_rows(of.k.at(b, group), of.k.place, sizes.keys, sizes.width, held);
    turn_all(key, keys, width, turned_keys);
    weave_all(key, keys, width, woven_keys);
    std::memset(grad_keys, 0, keys * width * sizeof(float));
    std::memset(grad_values, 0, keys * width * sizeof(float));
    each_block(group, [&](int64_t h, int64_t i) { go_back(b, h, i, of, to); });
    scatter(grad_keys, width, sizes.keys, sizes.width, to.k.at(b, group), to.k.place);
    scatter(grad_values, width, sizes.keys, sizes.width, to.v.at(b, group), to.v.place);
  }

  // The queries from `i` on, a block of them: their gradient, and their part of the keys' and
  // values'.
  void go_back(int64_t b, int64_t h, int64_t i, const Tensors& of, const Gradients& to) {
    const int64_t rows = std::min(BLOCK, sizes.queries - i);
    const bf16 *from = of.q.at(b, h) + i * of.q.place, *grad = to.out.at(b, h) + i * to.out.place;
    const Rows query = whole_rows(from, of.q.place, rows, sizes.width, held_query);
    const Rows given = whole_rows(grad, to.out.place, rows, sizes.width, held_grad);
    weave_all(query, BLOCK, width, woven_query);
    weave_all(given, BLOCK, width, woven_grad);
    const auto seen = mask.seen(b, h, i);
    multiply_all(products, keys, query, turned_keys, width / BLOCK, seen.first, seen.last);
    multiply_all(upstream, keys, given, turned_values, width / BLOCK, seen.first, seen.last);
    slope_all(b, h, i, of, to, seen);
    gather_seen(moved, slopes, woven_keys, seen);
    scatter(moved, width, rows, sizes.width, to.q.at(b, h) + i * to.q.place, to.q.place);
    add_up(weights, woven_grad, grad_values, seen);
    add_up(slopes, woven_query, grad_keys, seen);
  }

  // Weights and slopes of a block of queries; none of those that are not there.
  void slope_all(int64_t b, int64_t h, int64_t i, const Tensors& of, const Gradients& to,
                 const Mask::Seen& seen) {
    const int64_t at = (b * sizes.heads + h) * sizes.queries + i;
    const int64_t rows = std::min(BLOCK, sizes.queries - i);
    const bf16 *grad = to.out.at(b, h) + i * to.out.place, *added = mask.of(b, h);
    const bf16* made = of.out.at(b, h) + i * of.out.place;
    for (int64_t r = 0; r < rows; ++r) {
      slope(r, added == nullptr ? nullptr : added + (i + r) * sizes.keys, seen, of.most[at + r],
            of.factor[at + r], product(grad + r * to.out.place, made + r * of.out.place));
    }
    for (int64_t r = rows; r < BLOCK; ++r) {
      std::memset(weights + r * keys, 0, keys * sizeof(bf16));
      std::memset(slopes + r * keys, 0, keys * sizeof(bf16));
    }
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
  const Tensors of = {{q, strides}, {k, strides + 3}, {v, strides + 6}, {out, strides + 9}, most,
                      factor};
  each_key_head<Gathering>(sizes, mask, scale, threads,
                           [&](auto& work, int64_t b, int64_t group) { work(b, group, of); });
}

void attention_backward(const bf16* q, const bf16* k, const bf16* v, const bf16* added,
                        const bf16* out, const bf16* grad, float* most, float* factor, bf16* grad_q,
                        bf16* grad_k, bf16* grad_v, const int64_t* shape, const int64_t* strides,
                        float scale, int threads) {
  Sizes sizes;
  std::memcpy(&sizes, shape, sizeof sizes);
  const Mask mask(added, sizes);
  const Tensors of = {{q, strides}, {k, strides + 3}, {v, strides + 6}, {out, strides + 9}, most,
                      factor};
  const Gradients to = {
      {grad, strides + 12}, {grad_q, strides + 15}, {grad_k, strides + 18}, {grad_v, strides + 21}};
  each_key_head<Gradient>(sizes, mask, scale, threads,
                          [&](auto& work, int64_t b, int64_t group) { work(b, group, of, to); });
}

}  // extern "C"

#endif
