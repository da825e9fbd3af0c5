"""Passes of training over bfloat16 on a CPU, compiled once on the machine that runs them.

Takes and gives tensors alone. PyTorch passes over memory once for each operator, and a block has
dozens of them; here norm, rotation, activation, attention and loss are one pass each way. `fits`
says whether tensors can come here, `can_attend` and `can_sum_tokens` what the processor's tiles are
for; where they say no, `functions.py`, `scores.py` and `training/loss.py` have the same formulas in
PyTorch. A compiler is a gain, not a need. Axes: N tokens, H heads, W numbers of a row, I
feed-forward width, V vocabulary, B rows, K key heads, T queries, S keys, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmloop.model.compiled import AMX, are_native, call, tiles

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_BLOCK = 32
"""Numbers along a block of tiles."""
_SQUARES = 1 << 14
"""Squares that are one sum, as in passes.cpp."""
_MOST_NUMBERS = 1 << 20
"""Of a matrix that a thread makes orthogonal by itself: 2 MiB."""


def fits(*tensors: Float[Tensor, "..."]) -> bool:
    """Whether all are plain bfloat16 tensors of a CPU, and the passes could be compiled here."""
    plain = all(
        type(each) in (Tensor, torch.nn.Parameter)
        and each.dtype == torch.bfloat16
        and each.device.type == "cpu"
        for each in tensors
    )
    return plain and not torch.compiler.is_compiling() and are_native()


def has_tiles() -> bool:
    """Whether the processor multiplies tiles of bfloat16, so that `attend` is here."""
    return tiles() > 0


def norm(
    x: Float[Tensor, "N *W"],
    weight: Float[Tensor, "*W"],
    *,
    epsilon: float,
    angles: Sequence[Float[Tensor, "N 1 half"]] = (),
) -> tuple[Float[Tensor, "N *W"], Float[Tensor, "N *W"], Float[Tensor, "N *one"]]:
    """x / rms(x) · weight, then turned by `angles` (cosine and sine, [N, 1, W / 2]) if given.

    Gives that, x / rms(x), and 1 / rms(x) with a last axis of length one.
    """
    x, heads = _by_token(x, weight), weight.numel() // weight.shape[-1]
    normed, result = (torch.empty(x.shape, dtype=x.dtype) for _ in range(2))
    scale = x.new_empty(*x.shape[:-1], 1)
    call(
        "norm_forward",
        *(x, _stride(x, weight), weight, normed, scale, result),
        *(x.numel() // weight.numel(), heads, weight.shape[-1], epsilon),
        *_turns(angles),
    )
    return result, normed, scale


def norm_backward(
    grad: Float[Tensor, "N *W"],
    normed: Float[Tensor, "N *W"],
    weight: Float[Tensor, "*W"],
    scale: Float[Tensor, "N *one"],
    *,
    angles: Sequence[Float[Tensor, "N 1 half"]] = (),
) -> tuple[Float[Tensor, "N *W"], Float[Tensor, "*W"]]:
    """Gradients of what `norm` was given, x and weight, of that of what it gave."""
    grad, grad_x = grad.contiguous(), torch.empty_like(normed)
    sums = torch.zeros(torch.get_num_threads(), *weight.shape)
    heads = weight.numel() // weight.shape[-1]
    call(
        "norm_backward",
        *(grad, normed, weight, scale, grad_x, sums),
        *(grad.numel() // weight.numel(), heads, weight.shape[-1]),
        *_turns(angles),
    )
    return grad_x, sums.sum(0).to(weight.dtype)


def rotate(
    x: Float[Tensor, "N H W"],
    angles: Sequence[Float[Tensor, "N 1 half"]],
    *,
    back: bool = False,
) -> Float[Tensor, "N H W"]:
    """The pairs (x[i], x[i + W / 2]) turned by their angles, or back again."""
    x = _by_token(x, x[0])
    result = torch.empty(x.shape, dtype=x.dtype)
    sign = -1.0 if back else 1.0
    call("rotate", x, _stride(x, x[0]), result, *x.shape, *_turns(angles), sign)
    return result


def swiglu(gate_up: Float[Tensor, "N gate_up"]) -> Float[Tensor, "N I"]:
    """silu(gate) · up of [gate | up]."""
    gate_up = gate_up.contiguous()
    width = gate_up.shape[-1] // 2
    result = gate_up.new_empty(*gate_up.shape[:-1], width)
    call("swiglu_forward", gate_up, result, result.numel() // max(1, width), width)
    return result


def swiglu_backward(
    grad: Float[Tensor, "N I"], gate_up: Float[Tensor, "N gate_up"]
) -> Float[Tensor, "N gate_up"]:
    """The gradient of [gate | up] of that of silu(gate) · up."""
    grad, gate_up = grad.contiguous(), gate_up.contiguous()
    result, width = torch.empty_like(gate_up), grad.shape[-1]
    call("swiglu_backward", grad, gate_up, result, grad.numel() // max(1, width), width)
    return result


def can_attend(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B K S d"],
    v: Float[Tensor, "B K S d"],
    mask: Float[Tensor, "b h T S"] | None,
) -> bool:
    """Whether `attend` takes these: the processor has tiles, and a head's numbers lie together."""
    tensors = (q, k, v) if mask is None else (q, k, v, mask)
    is_one_width = q.shape[3] == k.shape[3] == v.shape[3] and k.numel() > 0
    lie = all(each.stride(-1) == 1 for each in (q, k, v))
    return is_one_width and lie and fits(*tensors) and has_tiles()


def attend(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B K S d"],
    v: Float[Tensor, "B K S d"],
    *,
    mask: Float[Tensor, "b h T S"] | None,
    scale: float,
) -> tuple[Float[Tensor, "B H T d"], Float[Tensor, "2 B H T"]]:
    """softmax(q·kᵀ · scale + mask) · v; b is 1 or B, h is 1 or H.

    Gives that, each token's heads together, and what backward makes the weights of again: the
    largest score of each query and the inverse of their sum (fp32).
    """
    out, kept = _heads_like(q), torch.empty(2, *q.shape[:3])
    mask, shape = _spread(mask, q, k)
    tensors = (q, k, v, out)
    call("attention_forward", q, k, v, mask, out, *kept, shape, _strides(*tensors), scale)
    return out, kept


def attend_backward(
    grad: Float[Tensor, "B H T d"],
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B K S d"],
    v: Float[Tensor, "B K S d"],
    out: Float[Tensor, "B H T d"],
    kept: Float[Tensor, "2 B H T"],
    *,
    mask: Float[Tensor, "b h T S"] | None,
    scale: float,
) -> tuple[Float[Tensor, "B H T d"], Float[Tensor, "B K S d"], Float[Tensor, "B K S d"]]:
    """Gradients of q, k and v, of that of what `attend` gave."""
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    grads = _heads_like(q), _heads_like(k), _heads_like(v)
    mask, shape = _spread(mask, q, k)
    strides = _strides(q, k, v, out, grad, *grads)
    call(
        "attention_backward", q, k, v, mask, out, grad, *kept, *grads, shape, strides, float(scale)
    )
    return grads


def can_sum_tokens(right: Float[Tensor, "N C"], *, rows: int) -> bool:
    """Whether `sum_tokens` takes this and a factor [N, rows] like it: whole tiles, and AMX.

    By AVX-512 alone PyTorch's product is as fast.
    """
    whole = right.dim() == 2 and len(right) > 0 and not (right.shape[1] | rows) % _BLOCK
    return whole and right.stride(1) == 1 and fits(right) and tiles() == AMX


def sum_tokens(left: Float[Tensor, "N R"], right: Float[Tensor, "N C"]) -> Float[Tensor, "R C"]:
    """leftᵀ · right, the gradient of a matrix of weights; summed in fp32."""
    result = left.new_empty(left.shape[1], right.shape[1])
    sizes = (len(left), *result.shape)
    call("weight_gradient", left, left.stride(0), right, right.stride(0), result, *sizes)
    return result


def cross_entropy_(
    logits: Float[Tensor, "N V"], wanted: Int[Tensor, "N"], *, smoothing: float
) -> Float[Tensor, ""]:
    """Summed loss (fp32) of contiguous logits; its gradient comes in their place.

    Raises `IndexError` for an id that has no logit: the passes write where they are told.
    """
    if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < logits.shape[1]:
        raise IndexError(f"ids must lie below {logits.shape[1]}, the number of logits")
    losses = torch.empty(len(logits))
    call("cross_entropy", logits, wanted.contiguous(), losses, *logits.shape, smoothing)
    return losses.sum()


def euclidean_norm(x: Float[Tensor, "*any"]) -> Float[Tensor, ""]:
    """The root of the sum of all squares of a contiguous tensor, fp32."""
    sums = torch.zeros(-(-x.numel() // _SQUARES))
    call("square_sums", x, sums, x.numel())
    return sums.sum().sqrt()


def follow_(
    momentum: Float[Tensor, "*any"], grad: Float[Tensor, "*any"], rate: float
) -> Float[Tensor, "*any"]:
    """Let a momentum, fp32, follow a gradient; one look further ahead comes in its place."""
    call("follow", momentum, grad, grad, grad.numel(), rate)
    return grad


def can_orthogonalise(matrices: Float[Tensor, "G R C"]) -> bool:
    """Whether `orthogonalise_` takes these: whole tiles, and a matrix for each thread at least.

    A wider matrix leaves the caches, where PyTorch's products are as fast.
    """
    count, rows, columns = matrices.shape
    whole = not (rows | columns) % _BLOCK and rows * columns <= _MOST_NUMBERS
    is_dealt = count >= torch.get_num_threads()
    return whole and is_dealt and matrices.is_contiguous() and fits(matrices) and has_tiles()


def orthogonalise_(
    matrices: Float[Tensor, "G R C"], factors: Sequence[Sequence[float]]
) -> Float[Tensor, "G R C"]:
    """x ← a · x + (b · s + c · s²) · x with s = x · xᵀ for each (a, b, c), in the place of x."""
    steps = torch.tensor(factors, dtype=torch.float32)
    call("orthogonalise", matrices, *matrices.shape, steps, len(steps))
    return matrices


def move_(master: Float[Tensor, "*any"], update: Float[Tensor, "*any"], size: float) -> None:
    """master - size · update, in the place of a contiguous fp32 master."""
    call("move", master, update, update.numel(), size)


def _by_token(x: Tensor, row: Tensor) -> Tensor:
    """As it is where each token's numbers, as many as `row` has, lie together; else a copy."""
    lies = x.dim() > 1 and x[0].is_contiguous() and x.numel() == len(x) * row.numel()
    return x if lies else x.contiguous()


def _stride(x: Tensor, row: Tensor) -> int:
    """Numbers from one token to the next."""
    return row.numel() if x.is_contiguous() else x.stride(0)


def _heads_like(x: Tensor) -> Tensor:
    """An empty [B, heads, T, d] in which each token's heads lie together, as projections do."""
    batch, heads, length, width = x.shape
    return x.new_empty(batch, length, heads, width).transpose(1, 2)


def _spread(mask: Tensor | None, q: Tensor, k: Tensor) -> tuple[Tensor | None, Tensor]:
    """A mask of all queries and keys, and the sizes of everything as attention.cpp lists them."""
    added = (1, 1) if mask is None else mask.shape[:2]
    if mask is not None:
        mask = mask.expand(*added, q.shape[2], k.shape[2]).contiguous()
    sizes = [*q.shape[:2], k.shape[1], q.shape[2], k.shape[2], q.shape[3], *added]
    return mask, torch.tensor(sizes)


def _strides(*tensors: Tensor) -> Tensor:
    return torch.tensor([stride for each in tensors for stride in each.stride()[:3]])


def _turns(angles: Sequence[Tensor]) -> Sequence[Tensor | None]:
    return [each.contiguous() for each in angles] or (None, None)
