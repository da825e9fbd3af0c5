"""Passes of training over bfloat16 on a CPU, compiled once on the machine that runs them.

Takes and gives tensors alone. PyTorch passes over memory once for each operator, and a block has
dozens of them; here norm, rotation, activation, attention and loss are one pass each way. `fits`
says whether tensors can come here, `can_attend` and `can_sum_tokens` what the processor's tiles are
for; where they say no, `functions.py`, `scores.py` and `training/loss.py` have the same formulas in
PyTorch. A compiler is a gain, not a need. Axes: N tokens, H heads, W numbers of a row, I
feed-forward width, V vocabulary, B rows, K key heads, T queries, S keys, d width of a head.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmloop.config import cache_directory, compiler_setting, instruction_setting

if TYPE_CHECKING:
    from jaxtyping import Float, Int

logger = logging.getLogger(__name__)

NATIVE = Path(__file__).parent / "native"
_FLAGS = (
    *("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-shared", "-fPIC"),
)
_WIDE = "-mprefer-vector-width=512"
"""Of two instruction sets that an x86 processor has, the one that takes more numbers at once."""
_BLOCK, _AMX = 32, 2
"""Numbers along a block of tiles, and what `make_tiles_ready` calls AMX."""
_MOST_NUMBERS = 1 << 20
"""Of a matrix that a thread makes orthogonal by itself: 2 MiB."""
_MOST_SECONDS = 120
"""A compiler that is still busy by then is given up; one second is usual."""


def fits(*tensors: Float[Tensor, "..."]) -> bool:
    """Whether all are plain bfloat16 tensors of a CPU, and the passes could be compiled here."""
    plain = all(
        type(each) in (Tensor, torch.nn.Parameter)
        and each.dtype == torch.bfloat16
        and each.device.type == "cpu"
        for each in tensors
    )
    return plain and not torch.compiler.is_compiling() and _library() is not None


def are_native() -> bool:
    """Whether the passes are compiled for this machine; makes them ready where they can be."""
    return _library() is not None


def describe() -> str:
    """What computes here, as it makes a difference in the last bits."""
    return f"native{('', ', AVX-512', ', AMX')[_tiles()]}" if are_native() else "torch"


def has_tiles() -> bool:
    """Whether the processor multiplies tiles of bfloat16, so that `attend` is here."""
    return _tiles() > 0


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
    _call(
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
    _call(
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
    _call("rotate", x, _stride(x, x[0]), result, *x.shape, *_turns(angles), sign)
    return result


def swiglu(gate_up: Float[Tensor, "N gate_up"]) -> Float[Tensor, "N I"]:
    """silu(gate) · up of [gate | up]."""
    gate_up = gate_up.contiguous()
    width = gate_up.shape[-1] // 2
    result = gate_up.new_empty(*gate_up.shape[:-1], width)
    _call("swiglu_forward", gate_up, result, result.numel() // max(1, width), width)
    return result


def swiglu_backward(
    grad: Float[Tensor, "N I"], gate_up: Float[Tensor, "N gate_up"]
) -> Float[Tensor, "N gate_up"]:
    """The gradient of [gate | up] of that of silu(gate) · up."""
    grad, gate_up = grad.contiguous(), gate_up.contiguous()
    result, width = torch.empty_like(gate_up), grad.shape[-1]
    _call("swiglu_backward", grad, gate_up, result, grad.numel() // max(1, width), width)
    return result


def can_attend(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B K S d"],
    v: Float[Tensor, "B K S d"],
    mask: Float[Tensor, "b h T S"] | None,
) -> bool:
    """Whether `attend` takes these: the processor has tiles, and a head's numbers lie together."""
    tensors = (q, k, v) if mask is None else (q, k, v, mask)
    return fits(*tensors) and has_tiles() and all(each.stride(-1) == 1 for each in (q, k, v))


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
    _call("attention_forward", q, k, v, mask, out, *kept, shape, _strides(*tensors), scale)
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
    _call(
        "attention_backward", q, k, v, mask, out, grad, *kept, *grads, shape, strides, float(scale)
    )
    return grads


def can_sum_tokens(right: Float[Tensor, "N C"], *, rows: int) -> bool:
    """Whether `sum_tokens` takes this and a factor [N, rows] like it: whole tiles, and AMX.

    By AVX-512 alone PyTorch's product is as fast.
    """
    whole = right.dim() == 2 and len(right) > 0 and not (right.shape[1] | rows) % _BLOCK
    return whole and right.stride(1) == 1 and fits(right) and _tiles() == _AMX


def sum_tokens(left: Float[Tensor, "N R"], right: Float[Tensor, "N C"]) -> Float[Tensor, "R C"]:
    """leftᵀ · right, the gradient of a matrix of weights; summed in fp32."""
    result = left.new_empty(left.shape[1], right.shape[1])
    sizes = (len(left), *result.shape)
    _call("weight_gradient", left, left.stride(0), right, right.stride(0), result, *sizes)
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
    _call("cross_entropy", logits, wanted.contiguous(), losses, *logits.shape, smoothing)
    return losses.sum()


def follow_(
    momentum: Float[Tensor, "*any"], grad: Float[Tensor, "*any"], rate: float
) -> Float[Tensor, "*any"]:
    """Let a momentum, fp32, follow a gradient; one look further ahead comes in its place."""
    _call("follow", momentum, grad, grad, grad.numel(), rate)
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
    _call("orthogonalise", matrices, *matrices.shape, steps, len(steps))
    return matrices


def move_(master: Float[Tensor, "*any"], update: Float[Tensor, "*any"], size: float) -> None:
    """master - size · update, in the place of a contiguous fp32 master."""
    _call("move", master, update, update.numel(), size)


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


def _call(name: str, *given: Tensor | float | None) -> None:
    """A function of the library: tensors by address, sizes as int64, the number of threads last."""
    library = _library()
    assert library is not None, "fits() was not asked"
    getattr(library, name)(*map(_pass, given), ctypes.c_int(torch.get_num_threads()))


def _pass(given: Tensor | float | None) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float:
    if given is None or isinstance(given, Tensor):
        return ctypes.c_void_p(None if given is None else given.data_ptr())
    return ctypes.c_int64(given) if isinstance(given, int) else ctypes.c_float(given)


@cache
def _tiles() -> int:
    """What products of tiles take: 0 nothing that is here, 1 AVX-512 with bfloat16, 2 AMX."""
    library, most = _library(), instruction_setting()
    if library is None or not (most is None or "AMX" in most or "BF16" in most):
        return 0
    return int(library.make_tiles_ready(ctypes.c_int64(most is None or "AMX" in most)))


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled passes; None where they are switched off or there is no compiler that can."""
    setting, team = compiler_setting(), _thread_team()
    if setting is None:
        return None
    compiler = shutil.which(setting)
    if compiler is None or team is None:
        logger.warning(
            "training in bfloat16 takes PyTorch's passes, a third slower: %s is not here",
            "GCC's OpenMP" if team is None else f"the C++ compiler {setting}",
        )
        return None
    flags = (*_FLAGS, _WIDE) if platform.machine() == "x86_64" else _FLAGS
    status = Path(compiler).resolve().stat()
    known = (compiler, status.st_size, status.st_mtime_ns, flags, str(team), _processor())
    sources = sorted(NATIVE.glob("*.cpp"))
    code = b"".join(each.read_bytes() for each in sorted(NATIVE.iterdir()) if each.is_file())
    digest = hashlib.sha256(code + repr(known).encode()).hexdigest()[:16]
    try:
        built = _private_folder() / f"kernels-{digest}.so"
        if not built.is_file():
            _compile([compiler, *flags, *map(str, sources), str(team)], built)
        return ctypes.CDLL(str(built))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning("training passes could not be compiled, PyTorch's are taken: %s", error)
        return None


def _compile(command: list[str], built: Path) -> None:
    """Compile beside, and rename: two processes at once end with one whole file."""
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        made = Path(folder, built.name)
        subprocess.run(
            [*command, "-o", str(made)], check=True, capture_output=True, timeout=_MOST_SECONDS
        )
        made.replace(built)


def _private_folder() -> Path:
    """Where compiled passes stay; code is run from there, so it must be this user's alone.

    Raises `PermissionError` where it is not.
    """
    folder = cache_directory()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written to by others")
    return folder


def _thread_team() -> Path | None:
    """The library whose threads PyTorch's operators use: another team would wait beside it."""
    maps = Path("/proc/self/maps")
    found = re.search(r"\S*/libgomp\S*$", maps.read_text(), re.MULTILINE) if maps.exists() else None
    return Path(found[0]) if found else None


def _processor() -> str:
    """What the machine can, so that a home on a shared disk serves unlike ones."""
    path = Path("/proc/cpuinfo")
    found = re.search(
        r"^(?:flags|Features)\s*:.*$", path.read_text() if path.exists() else "", re.M
    )
    return found[0] if found else platform.processor()
