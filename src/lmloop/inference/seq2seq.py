"""Answers of encoder-decoders: the likeliest token each time, or the best of several beams.

Takes: sources, what begins an answer and what ends it. Gives: ids. All sources run together, a
token of each of their beams a step; a beam is a slot of the cache. Axes: S tokens or frames of a
source, F mel bins, n running beams, V vocabulary, E width of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lmloop.model.cache import Chunk, SlotCache
from lmloop.model.transformer import Transformer

if TYPE_CHECKING:
    from jaxtyping import Float


@torch.inference_mode()
def generate(
    model: Transformer,
    sources: Sequence[Tensor],
    *,
    start_id: int,
    stop_id: int,
    max_tokens: int,
    beams: int = 1,
    length_penalty: float = 1.0,
    prompts: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """The answer to each source, ids [S], a spectrogram [F, S] or a picture [C, H, W].

    `prompts`, one a source, are what answers go on from, after `start_id`; neither these nor the
    stop are given back.
    With several beams the score of an answer is its log-probability / its length to the power of
    `length_penalty`, the stop counted; the search ends as that of transformers does. Raises
    `ValueError` for a model without an encoder, numbers below one, as many prompts as there are no
    sources, and a prompt that leaves no room for an answer.
    """
    if beams < 1 or max_tokens < 1:
        raise ValueError(f"{beams} beams and {max_tokens} tokens: both are at least one")
    if not sources:
        return []
    if not all(each.shape[-1] for each in sources):
        raise ValueError("a source is empty: each has at least one token")
    begun = [[start_id, *prompt] for prompt in prompts or [()] * len(sources)]
    if len(begun) != len(sources):
        raise ValueError(f"{len(begun)} prompts for {len(sources)} sources: one each is needed")
    longest = max(map(len, begun)) - 1
    if model.config.positions == "learned":
        max_tokens = min(max_tokens, model.config.context_length - longest)
        if max_tokens < 1:
            raise ValueError(f"a prompt of {longest} tokens leaves no room for an answer")
    states = _read(model, sources)
    cache = SlotCache(
        model.config,
        slots=len(sources) * beams,
        length=longest + max_tokens,
        dtype=states[0].dtype,
        source_length=max(map(len, states)),
        device=model.device,
    )
    rules = _Rules(stop_id, max_tokens, beams, length_penalty)
    searches = [
        _Search(rules, [*range(i * beams, (i + 1) * beams)], prompt)
        for i, prompt in enumerate(begun)
    ]
    read = {search.slots[0]: each for search, each in zip(searches, states, strict=True)}
    for step in range(max_tokens):
        live = [search for search in searches if not search.done]
        if not live:
            break
        chunks, new = [], []
        for one in live:
            for slot, said in one.unread():
                chunks.append(Chunk(slot, len(one.prompt) + step - len(said), len(said)))
                new += said
        view = cache.view(chunks, sources=None if step else read)
        given = torch.tensor(new, device=model.device)
        hidden = model.encode(given, view.positions, view)
        last = torch.tensor([chunk.count for chunk in chunks]).cumsum(0) - 1
        logits = model.project(hidden[last.to(model.device)])
        chances = logits.float().log_softmax(-1).cpu()
        parts = torch.split(chances, [len(one.ids) for one in live])
        for search, part in zip(live, parts, strict=True):
            for slot, into in search.extend(part):
                cache.fork(slot, into=into)
    return [search.finished[0][1] for search in searches]


def _read(model: Transformer, sources: Sequence[Tensor]) -> list[Float[Tensor, "S E"]]:
    """The encoder's states of each source."""
    if sources[0].dim() > 1:  # of one size, unlike texts
        lengths, rows = None, torch.stack(list(sources)).to(next(model.parameters()).dtype)
    else:
        lengths = torch.tensor([len(each) for each in sources])
        rows = pad_sequence(list(sources), batch_first=True)
    placed = None if lengths is None else lengths.to(model.device)
    source = model.read(rows.to(model.device), lengths=placed)
    states = source.states.view(*source.segments.shape, -1)
    ends = [states.shape[1]] * len(rows) if lengths is None else lengths.tolist()
    return [row[:end] for row, end in zip(states, ends, strict=True)]


@dataclass(frozen=True, slots=True)
class _Rules:
    stop_id: int
    max_tokens: int
    beams: int
    length_penalty: float


@dataclass(slots=True)
class _Search:
    """The beams of one source."""

    rules: _Rules
    slots: list[int]
    """As many as there may be beams; the first are those of `ids`."""
    prompt: list[int]
    """What is read before all that is said."""
    ids: list[list[int]] = field(default_factory=lambda: [[]])
    """What each running beam has said, the likeliest first."""
    scores: Tensor = field(default_factory=lambda: torch.zeros(1))
    """Log-probability of each."""
    finished: list[tuple[float, list[int]]] = field(default_factory=list)
    """Score and ids of whole answers, the best first."""
    done: bool = False

    def unread(self) -> list[tuple[int, list[int]]]:
        """The slot of each beam, and what it has not read yet: the prompt, then its last token."""
        pairs = zip(self.slots, self.ids, strict=False)
        return [(slot, ids[-1:] or self.prompt) for slot, ids in pairs]

    def extend(self, chances: Float[Tensor, "n V"]) -> list[tuple[int, int]]:
        """Go on with the likeliest of all next tokens, whose log-probabilities are given.

        Gives pairs of slots: the second is to go on from where the first one is.
        """
        beams, total = self.rules.beams, (self.scores[:, None] + chances).flatten()
        # Each beam has one stop: of twice as many, at least `beams` go on.
        best = total.topk(min(2 * beams, len(total)))
        weight = (len(self.ids[0]) + 1) ** self.rules.length_penalty
        running = []
        for rank, place in enumerate(best.indices.tolist()):
            origin, token = divmod(place, chances.shape[1])
            is_stop = token == self.rules.stop_id
            if not is_stop and len(self.ids[0]) + 1 < self.rules.max_tokens:
                running.append((rank, origin, token))
            elif rank < beams:
                said = self.ids[origin] if is_stop else [*self.ids[origin], token]
                self.finished.append((float(best.values[rank]) / weight, said))
        self.finished = sorted(self.finished, key=lambda each: -each[0])[:beams]
        ranks, origins, tokens = zip(*running[:beams], strict=True) if running else ((), (), ())
        self.scores = best.values[list(ranks)]
        self.ids = [[*self.ids[i], token] for i, token in zip(origins, tokens, strict=True)]
        self.done = self._is_done(weight)
        return [] if self.done else self._place(origins)

    def _is_done(self, weight: float) -> bool:
        """Whether no running beam can better the worst of the finished ones as it stands."""
        if not self.ids or len(self.finished) < self.rules.beams:
            return not self.ids
        return self.rules.beams == 1 or float(self.scores[0]) / weight <= self.finished[-1][0]

    def _place(self, origins: Sequence[int]) -> list[tuple[int, int]]:
        """Give each beam a slot: that of its origin, or where another has that, a free one."""
        free = [slot for i, slot in enumerate(self.slots) if i not in origins]
        taken: list[int] = []
        forks = []
        for slot in (self.slots[i] for i in origins):
            if slot in taken:
                forks.append((slot, free.pop()))
            taken.append(forks[-1][1] if slot in taken else slot)
        self.slots = taken + free
        return forks
