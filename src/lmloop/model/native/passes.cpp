// Passes of training over bfloat16 numbers, each of which reads and writes memory once.
//
// Tokens are shared out among threads in equal stretches: a result depends on nothing but the
// numbers, and the gradient of a norm's weight on the number of threads as well. Tensors are
// contiguous unless a stride, in numbers, says otherwise. kernels.py says what each function is
// for; functions.py, scores.py and training/loss.py have the same formulas in PyTorch.

#include <vector>

#include "lanes.h"

namespace {

constexpr int64_t SQUARES = 1 << 14;

// A row of fp32 numbers, whole sixteens.
std::vector<float> make_row(int64_t width) { return std::vector<float>(width + LANES); }

// e^(x - the largest) of a row in its own place; gives their sum.
inline float raise(float* row, int64_t width, float most) {
  lanes total = {};
  for (int64_t i = 0; i < width; i += LANES) {
    const lanes raised = exponential(load(row + i) - most);
    store(row + i, raised);
    total += raised;
  }
  return sum(total);
}

}  // namespace

extern "C" {

void norm_forward(const bf16* x, int64_t stride, const bf16* weight, bf16* normed, bf16* scale,
                  bf16* result, int64_t tokens, int64_t heads, int64_t width, float epsilon,
                  const bf16* cosine, const bf16* sine, int threads) {
  share_out(tokens, threads, [=](int64_t first, int64_t last, int) {
    const int64_t half = width / 2;
    auto held = make_row(width);
    float* row = held.data();
    for (int64_t each_head = first * heads; each_head < last * heads; ++each_head) {
      const int64_t token = each_head / heads, head = each_head % heads;
      const bf16 *from = x + token * stride + head * width, *by = weight + head * width;
      bf16 *kept = normed + each_head * width, *to = result + each_head * width;
      lanes square = {};
      each(width, [&](int64_t i, int64_t count) {
        const lanes given = load(from + i, count);
        square += given * given;
      });
      const lanes exact = fill(1 / std::sqrt(sum(square) / float(width) + epsilon));
      store(scale + each_head, exact, 1);
      const float factor = load(scale + each_head, 1)[0];
      each(width, [&](int64_t i, int64_t count) {
        const lanes even = load(from + i, count) * factor;
        store(kept + i, even, count);
        const lanes weighted = load(kept + i, count) * load(by + i, count);
        if (cosine == nullptr) {
          store(to + i, weighted, count);
        } else {
          store(row + i, weighted);
        }
      });
      if (cosine == nullptr) continue;
      const bf16 *c = cosine + token * half, *s = sine + token * half;
      each(half, [&](int64_t i, int64_t count) {
        const lanes left = load(row + i), right = load(row + half + i);
        const lanes along = load(c + i, count), across = load(s + i, count);
        store(to + i, left * along - right * across, count);
        store(to + half + i, right * along + left * across, count);
      });
    }
  });
}

void norm_backward(const bf16* grad, const bf16* normed, const bf16* weight, const bf16* scale,
                   bf16* grad_x, float* grad_weight, int64_t tokens, int64_t heads, int64_t width,
                   const bf16* cosine, const bf16* sine, int threads) {
  share_out(tokens, threads, [=](int64_t first, int64_t last, int thread) {
    const int64_t half = width / 2;
    auto held = make_row(width), totals = make_row(heads * (width + LANES));
    float* row = held.data();
    for (int64_t each_head = first * heads; each_head < last * heads; ++each_head) {
      const int64_t token = each_head / heads, head = each_head % heads, at = each_head * width;
      const bf16 *from = grad + at, *kept = normed + at, *by = weight + head * width;
      if (cosine != nullptr) {
        const bf16 *c = cosine + token * half, *s = sine + token * half;
        each(half, [&](int64_t i, int64_t count) {
          const lanes left = load(from + i, count), right = load(from + half + i, count);
          const lanes along = load(c + i, count), across = load(s + i, count);
          store(row + i, left * along + right * across);
          store(row + half + i, right * along - left * across, count);
        });
      }
      float* total = totals.data() + head * (width + LANES);
      lanes product = {};
      each(width, [&](int64_t i, int64_t count) {
        const lanes even = load(kept + i, count);
        lanes given = load(from + i, count);
        if (cosine != nullptr) given = load(row + i);
        store(total + i, load(total + i) + given * even);
        given *= load(by + i, count);
        store(row + i, given);
        product += given * even;
      });
      const float mean = sum(product) / float(width), factor = load(scale + each_head, 1)[0];
      each(width, [&](int64_t i, int64_t count) {
        const lanes moved = (load(row + i) - load(kept + i, count) * mean) * factor;
        store(grad_x + at + i, moved, count);
      });
    }
    for (int64_t head = 0; head < heads; ++head) {
      std::memcpy(grad_weight + (thread * heads + head) * width,
                  totals.data() + head * (width + LANES), width * sizeof(float));
    }
  });
}

void rotate(const bf16* x, int64_t stride, bf16* result, int64_t tokens, int64_t heads,
            int64_t width, const bf16* cosine, const bf16* sine, float sign, int threads) {
  share_out(tokens, threads, [=](int64_t first, int64_t last, int) {
    const int64_t half = width / 2;
    for (int64_t each_head = first * heads; each_head < last * heads; ++each_head) {
      const int64_t token = each_head / heads, head = each_head % heads;
      const bf16 *c = cosine + token * half, *s = sine + token * half;
      const bf16* from = x + token * stride + head * width;
      bf16* to = result + each_head * width;
      each(half, [&](int64_t i, int64_t count) {
        const lanes left = load(from + i, count), right = load(from + half + i, count);
        const lanes along = load(c + i, count), across = load(s + i, count) * sign;
        store(to + i, left * along - right * across, count);
        store(to + half + i, right * along + left * across, count);
      });
    }
  });
}

void swiglu_forward(const bf16* gate_up, bf16* result, int64_t tokens, int64_t width, int threads) {
  share_out(tokens, threads, [=](int64_t first, int64_t last, int) {
    for (int64_t token = first; token < last; ++token) {
      const bf16 *gate = gate_up + token * 2 * width, *up = gate + width;
      bf16* to = result + token * width;
      each(width, [&](int64_t i, int64_t count) {
        const lanes g = load(gate + i, count);
        store(to + i, g * sigmoid(g) * load(up + i, count), count);
      });
    }
  });
}

void swiglu_backward(const bf16* grad, const bf16* gate_up, bf16* result, int64_t tokens,
                     int64_t width, int threads) {
  share_out(tokens, threads, [=](int64_t first, int64_t last, int) {
    for (int64_t token = first; token < last; ++token) {
      const bf16 *gate = gate_up + token * 2 * width, *up = gate + width;
      const bf16* from = grad + token * width;
      bf16 *grad_gate = result + token * 2 * width, *grad_up = grad_gate + width;
      each(width, [&](int64_t i, int64_t count) {
        const lanes g = load(gate + i, count), given = load(from + i, count), open = sigmoid(g);
        store(grad_up + i, given * g * open, count);
        const lanes slope = open * (1.0f + g * (1.0f - open));
        store(grad_gate + i, given * load(up + i, count) * slope, count);
      });
    }
  });
}

void cross_entropy(bf16* logits, const int64_t* wanted, float* losses, int64_t tokens,
                   int64_t vocabulary, float smoothing, int threads) {
  share_out(tokens, threads, [=](int64_t first, int64_t last, int) {
    const float most_nats = 85.195648f;  // of the smallest chance that counts, 1e-37
    const float spread = smoothing / float(vocabulary);
    auto held = make_row(vocabulary);
    float* row = held.data();
    for (int64_t token = first; token < last; ++token) {
      bf16* to = logits + token * vocabulary;
      lanes most = fill(-INFINITE), all = {};
      each(vocabulary, [&](int64_t i, int64_t count) {
        const lanes logit = load(to + i, count, -INFINITE);
        store(row + i, logit);
        most = larger(logit, most);
        if (smoothing != 0) all += load(to + i, count);
      });
      const int64_t id = wanted[token];
      const float top = largest(most), ahead = row[id];
      const float total = raise(row, vocabulary, top), factor = 1 / total;
      each(vocabulary, [&](int64_t i, int64_t count) {
        store(to + i, load(row + i) * factor - spread, count);
      });
      store(to + id, fill(row[id] * factor - spread + smoothing - 1), 1);
      const float loss = std::log(total) + (top - ahead);
      losses[token] = loss > most_nats ? most_nats : loss;
      if (smoothing != 0) losses[token] += smoothing * (ahead - sum(all) / float(vocabulary));
    }
  });
}

// A sum for each SQUARES numbers, so that it is the same whoever adds it up.
void square_sums(const bf16* x, float* sums, int64_t count, int threads) {
  share_out((count + SQUARES - 1) / SQUARES, threads, [=](int64_t first, int64_t last, int) {
    for (int64_t at = first; at < last; ++at) {
      const bf16* from = x + at * SQUARES;
      lanes total = {};
      each(std::min(SQUARES, count - at * SQUARES), [&](int64_t i, int64_t some) {
        const lanes given = load(from + i, some);
        total += given * given;
      });
      sums[at] = sum(total);
    }
  });
}

void follow(float* momentum, const bf16* grad, bf16* ahead, int64_t count, float rate,
            int threads) {
  share_out((count + LANES - 1) / LANES, threads, [=](int64_t first, int64_t last, int) {
    each(std::min(last * LANES, count) - first * LANES, [&](int64_t i, int64_t some) {
      const int64_t at = first * LANES + i;
      const lanes given = load(grad + at, some), kept = load(momentum + at, some);
      const lanes moved = kept + rate * (given - kept);
      store(momentum + at, moved, some);
      store(ahead + at, moved + rate * (given - moved), some);
    });
  });
}

void move(float* master, const bf16* update, int64_t count, float size, int threads) {
  share_out((count + LANES - 1) / LANES, threads, [=](int64_t first, int64_t last, int) {
    each(std::min(last * LANES, count) - first * LANES, [&](int64_t i, int64_t some) {
      const int64_t at = first * LANES + i;
      store(master + at, load(master + at, some) - size * load(update + at, some), some);
    });
  });
}

}  // extern "C"
