"""Why answers from rounded weights part from llama.cpp's: it rounds what it multiplies them with.

Rounding magnifies: of two numbers that differ in the last bit one may become the next whole number,
and behind a few layers every number is another. So to round as llama.cpp does is not enough: our
activations are held against llama.cpp's at each of the 121 places where it rounds, and go on from
what it made of them. All else is ours, from the first token to the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmloop.inference.load import LoadedModel
from lmloop.weights.gguf import open_gguf

from ..reference.activations import ROUNDINGS, Rounded
from .beside_llama_cpp import BUILD_SECONDS, Peer, greedy, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(BUILD_SECONDS + 300)]

TOKENS = 80
PROMPTS = [
    "The capital of France is",
    "def add(a, b):\n",
    "Once upon a time, in a village",
    "The three laws of motion say that",
    "To bake bread, first",
    "My favourite book is about",
]
PLACES = 121
"""Before the queries, the output of attention, the gate and down in 30 layers; before the head."""
OTHER = {"F16": 0.01, "BF16": 0.002, "Q8_0": 1e-4, "Q4_0": 1e-4, "Q4_K": 1e-4}
"""The types, and which share of the numbers may be rounded to another: the finer, the more."""
FARTHEST = {"F16": 0.02, "BF16": 0.2, "Q8_0": 0.5, "Q4_0": 0.6, "Q4_K": 0.6}
"""By how much logits differ, root mean square, where we do not round with the weights."""


@dataclass(frozen=True)
class Written:
    """Our file of SmolLM2 in one type, and what llama.cpp makes of it."""

    path: Path
    model: LoadedModel
    """The file as we open it, in fp32."""
    types: Mapping[str, str]
    """Of the weights of each tensor: some are kept finer than the rest of the file."""
    prompts: list[list[int]]
    answers: list[list[int]]
    """Tokens that llama.cpp chooses, greedily."""
    trace: Path

    def theirs(self, number: int) -> Mapping[str, Tensor]:
        """Logits [T, V], and activations [T, D] by the name of the weights that they meet."""
        with np.load(self.trace / f"{number}.npz") as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}

    def read(self, number: int) -> Tensor:
        """The tokens [1, T] that both read: the prompt, and llama.cpp's answer but its last."""
        return torch.tensor([self.prompts[number] + self.answers[number][:-1]])


@pytest.fixture(scope="module", params=list(OTHER))
def written(
    request: pytest.FixtureRequest,
    peer: Peer,
    smollm2: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Written]:
    folder = tmp_path_factory.mktemp(request.param)
    path, model = write(smollm2, folder, weight_type=request.param)
    prompts = [model.require_tokenizer().encode_document(text) for text in PROMPTS]
    answered = peer.ask(path, prompts=prompts, tokens=TOKENS, trace=folder)
    types = {name: entry.type.name for name, entry in open_gguf(path).tensors.items()}
    answers = [answer["tokens"] for answer in answered["answers"]]
    with torch.inference_mode():
        yield Written(path, model, types, prompts, answers, folder)
    for file in folder.iterdir():  # hundreds of megabytes a type
        file.unlink()


@dataclass
class Followed:
    """What was seen at the places where llama.cpp rounds."""

    distance: float = 0.0
    """The largest between an activation and llama.cpp's, relative to the largest of its token."""
    numbers: int = 0
    other: int = 0
    """Of the numbers, those that we round to another."""
    places: set[str] = field(default_factory=set)

    def compare(self, name: str, x: Tensor, y: Tensor, ours: Rounded, theirs: Rounded) -> None:
        distance = (x - y).abs().amax(-1) / y.abs().amax(-1)
        self.distance = max(self.distance, float(distance.max()))
        self.numbers += y.numel()
        self.other += int((ours.numbers != theirs.numbers).sum())
        self.places.add(name)


@contextmanager
def rounded(
    written: Written,
    follow: Mapping[str, Tensor] | None = None,
    *,
    kind: str | None = None,
    noise: float = 0.0,
) -> Iterator[Followed]:
    """While it lasts, activations are rounded before each product with weights.

    As for weights of their types, or of one `kind`. With `follow`, llama.cpp's are rounded and put
    in their place; with `noise`, the embeddings are changed by so much first.
    """
    followed = Followed()
    transformer = written.model.transformer

    def make_hook(name: str) -> Callable[[Tensor], Tensor]:
        round_them = ROUNDINGS[kind or written.types[name]]

        def hook(x: Tensor) -> Tensor:
            if follow is None:
                return round_them(x).values()
            y = follow[name]
            theirs = round_them(y)
            followed.compare(name, x, y, round_them(x), theirs)
            return theirs.values()

        return hook

    def disturb(_: nn.Module, __: object, x: Tensor) -> Tensor:
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        return x * (1 + noise * drawn)

    with ExitStack() as stack:
        for name, part in products(transformer.blocks):
            hook = make_hook(name)
            stack.enter_context(part.register_forward_pre_hook(lambda _, x, hook=hook: hook(x[0])))
        last = make_hook("token_embd.weight")
        assert transformer.norm is not None  # its output is what the head, which is tied, takes in
        stack.enter_context(transformer.norm.register_forward_hook(lambda _, __, x: last(x)))
        stack.enter_context(transformer.embedding.register_forward_hook(disturb))
        yield followed


def products(blocks: nn.ModuleList) -> Iterator[tuple[str, nn.Module]]:
    """Our products with weights, by ggml's name of the first of theirs with the same input."""
    for layer, block in enumerate(blocks):
        yield f"blk.{layer}.attn_q.weight", block.mixer.part.qkv
        yield f"blk.{layer}.attn_output.weight", block.mixer.part.output
        yield f"blk.{layer}.ffn_gate.weight", block.feed_forward.part.up
        yield f"blk.{layer}.ffn_down.weight", block.feed_forward.part.down


def root_mean_square(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_llama_cpps_logits_and_text_come_out_where_activations_are_rounded_as_it_does(
    written: Written, number: int
) -> None:
    theirs = written.theirs(number)
    with rounded(written, theirs) as followed:
        logits = written.model(written.read(number))[0]
    assert followed.places == set(theirs) - {"logits"}
    assert len(followed.places) == PLACES
    assert followed.distance <= 3e-5
    assert followed.other <= OTHER[written.path.stem] * followed.numbers
    torch.testing.assert_close(logits, theirs["logits"], atol=2e-4, rtol=0)
    assert root_mean_square(logits - theirs["logits"]) <= 1e-5
    answer = logits[len(written.prompts[number]) - 1 :].argmax(-1).tolist()
    assert answer == written.answers[number]


def test_rounding_makes_of_a_millionth_as_much_as_parts_us_from_llama_cpp(
    written: Written,
) -> None:
    def compute(kind: str | None, noise: float) -> Tensor:
        with rounded(written, kind=kind, noise=noise):
            return written.model(written.read(0))[0]

    plain, alone = compute("F32", 0), compute(None, 0)
    parted = root_mean_square(plain - written.theirs(0)["logits"])
    assert root_mean_square(compute("F32", 1e-6) - plain) <= 1e-3 * max(1.0, parted)
    assert root_mean_square(compute(None, 1e-6) - alone) >= parted / 3
    assert root_mean_square(alone - written.theirs(0)["logits"]) >= parted / 3
    assert 300 * 1e-5 <= parted <= FARTHEST[written.path.stem]


def test_llama_cpp_answers_token_for_token_where_the_same_weights_are_not_rounded_with(
    written: Written, peer: Peer, tmp_path: Path
) -> None:
    path, copy = write(written.path, tmp_path, weight_type="F32")
    ours, copied = written.model.transformer.state_dict(), copy.transformer.state_dict()
    assert all(torch.equal(weights, copied[name]) for name, weights in ours.items())
    answered = peer.ask(path, prompts=written.prompts, tokens=TOKENS)
    stops = written.model.require_tokenizer().stop_ids
    answers = greedy(written.model, written.prompts, tokens=TOKENS)
    for answer, theirs in zip(answers, answered["answers"], strict=True):
        length = len(answer.tokens)
        assert theirs["tokens"][:length] == list(answer.tokens)
        assert length == TOKENS or theirs["tokens"][length] in stops
    path.unlink()
