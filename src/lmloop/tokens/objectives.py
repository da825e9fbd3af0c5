"""Objectives: what the model reads, what it is to say at each place, and which of it counts.

Takes: ids of one text (or of one packed row), options, a random generator. Gives: an `Example`.
All are pure: a generator made from a seed and the number of a row gives the same row again. Which
tokens see each other travels as one array, `order`, so that examples of different objectives can be
packed into one row and attended to with one rule, `visible`. Span corruption is in `spans.py`.
Axes: N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lmloop.errors import TrainingError

Ids = Sequence[int] | NDArray[np.int64]
"""Token ids [N]."""
Marks = Sequence[bool] | NDArray[np.bool_]
"""A yes or no for each token [N]."""


@dataclass(frozen=True, slots=True)
class Example:
    """One text made ready to be learnt from, all arrays [N] but `source`."""

    tokens: NDArray[np.int64]
    """What the model reads."""
    targets: NDArray[np.int64]
    """What it is to say at the same place: a true id also where the loss does not count."""
    learnt: NDArray[np.bool_]
    """Where the loss counts."""
    order: NDArray[np.int64]
    """When a token is revealed: token i sees token j where order[j] <= order[i]."""
    source: NDArray[np.int64] | None = None
    """What an encoder reads, seen from all of `tokens`; absent where there is one stack only."""
    positions: NDArray[np.int64] | None = None
    """Where the tokens stand in their text, where that is not their place in `tokens`."""

    @property
    def is_causal(self) -> bool:
        """Whether each token sees exactly itself and those before it."""
        return bool((np.diff(self.order) > 0).all())

    @property
    def is_bidirectional(self) -> bool:
        """Whether all tokens see each other."""
        return bool((np.diff(self.order) == 0).all())


@dataclass(frozen=True, kw_only=True, slots=True)
class Masking:
    """Masked language modelling (Devlin et al. 2018, arXiv:1810.04805, section 3.1)."""

    mask_id: int
    """Stands for what is hidden."""
    vocab_size: int
    special_ids: tuple[int, ...] = ()
    """Never hidden, never predicted, never put in another token's place."""
    rate: float = 0.15
    """Share of the tokens that is predicted."""
    mask_share: float = 0.8
    """Share of those that is shown as `mask_id`."""
    random_share: float = 0.1
    """Share of those that is shown as a random token; the rest is shown as it is."""
    exact: bool = False
    """Predict `rate` of each text, rounded (but at least one token), not only on average."""
    next_token: bool = False
    """Predict a hidden token one place before it, as causal rows do, so that both teach one head
    (Charpentier and Samuel 2024, GPT-BERT, arXiv:2410.24159)."""

    def __post_init__(self) -> None:
        """Raise `TrainingError` where a share or an id is out of range."""
        _check_shares(rate=self.rate, mask_share=self.mask_share, random_share=self.random_share)
        _check_shares(mask_and_random_share=round(self.mask_share + self.random_share, 9))
        reserved = {self.mask_id, *self.special_ids}
        if min(reserved) < 0 or max(reserved) >= self.vocab_size:
            raise TrainingError(
                f"mask_id and special_ids are {sorted(reserved)}: they must be ids of the "
                f"vocabulary, 0 to {self.vocab_size - 1}"
            )
        if len(reserved) == self.vocab_size:
            raise TrainingError(
                f"all {self.vocab_size} ids of the vocabulary are special: leave some to predict"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class FillInTheMiddle:
    """Fill-in-the-middle (Bavarian et al. 2022, arXiv:2207.14255, section 3)."""

    prefix_id: int
    suffix_id: int
    middle_id: int
    rate: float = 0.5
    """Share of the texts that is rearranged; the others stay causal."""
    suffix_first_rate: float = 0.5
    """Share of the rearranged ones that has the suffix first (SPM), the others the prefix (PSM)."""

    def __post_init__(self) -> None:
        """Raise `TrainingError` where a share is out of range or two markers are the same."""
        _check_shares(rate=self.rate, suffix_first_rate=self.suffix_first_rate)
        markers = self.prefix_id, self.suffix_id, self.middle_id
        if len(set(markers)) < 3:
            raise TrainingError(f"the markers of the pieces are {markers}: give three different")


@dataclass(frozen=True, kw_only=True, slots=True)
class Permutation:
    """Permutation language modelling (Yang et al. 2019, XLNet, arXiv:1906.08237)."""

    share: float = 1 / 6
    """Last share of the order that is predicted: 1 / K of section 2.3, with K = 6 as published."""
    special_ids: tuple[int, ...] = ()
    """Known from the start, never predicted."""

    def __post_init__(self) -> None:
        """Raise `TrainingError` where the share is out of range."""
        _check_shares(share=self.share)


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, of which the first was liked better."""

    chosen: Example
    rejected: Example


def causal(tokens: Ids, *, document_id: int | None = None) -> Example:
    """Each token from those before it (Bengio et al. 2003, JMLR 3, equation 1).

    `document_id` begins every document and so follows the last token; without it nothing does, and
    the last place is not learnt.
    """
    ids = _as_ids(tokens)
    return _predict_next(ids, np.ones(len(ids), dtype=np.bool_), document_id=document_id)


def masked(
    tokens: Ids, options: Masking, *, generator: Generator, word_starts: Marks | None = None
) -> Example:
    """Hidden tokens from all others: masked, replaced or left as they are.

    With `word_starts` a word is hidden whole or not at all (whole-word masking of BERT's code,
    May 2019; for Chinese, Cui et al. 2019, arXiv:1906.08101); each of its tokens is masked,
    replaced or left for itself. With `exact`, a word that would exceed the share is passed over.
    """
    ids = _as_ids(tokens)
    special = np.isin(ids, [options.mask_id, *options.special_ids])
    hidden = _draw_hidden(_number_words(special, word_starts), options, generator)
    fate = generator.random(len(ids))
    shown = np.where(hidden & (fate < options.mask_share), options.mask_id, ids)
    replaced = hidden & (fate >= options.mask_share)
    replaced &= fate < options.mask_share + options.random_share
    shown = np.where(replaced, _draw_ordinary(len(ids), options, generator), shown)
    order = np.zeros(len(ids), dtype=np.int64)
    if options.next_token:
        return replace(_predict_next(ids, hidden), tokens=shown, order=order)
    return Example(shown, ids, hidden, order)


def causal_or_masked(
    tokens: Ids,
    options: Masking,
    *,
    causal_share: float,
    generator: Generator,
    word_starts: Marks | None = None,
    document_id: int | None = None,
) -> Example:
    """A causal row with probability `causal_share`, else a masked one; its `order` says which.

    Both in one run as in GPT-BERT (Charpentier and Samuel 2024, arXiv:2410.24159);
    `options.next_token` lets them share a head.
    """
    _check_shares(causal_share=causal_share)
    if generator.random() < causal_share:
        return causal(tokens, document_id=document_id)
    return masked(tokens, options, generator=generator, word_starts=word_starts)


def prefix(tokens: Ids, *, prefix_length: int, document_id: int | None = None) -> Example:
    """What comes behind a prefix that sees itself in both directions.

    Prefix language model of Raffel et al. 2020, arXiv:1910.10683, section 3.2.1.
    """
    ids = _as_ids(tokens)
    if not 0 <= prefix_length <= len(ids):
        raise TrainingError(
            f"prefix_length is {prefix_length} in a text of {len(ids)} tokens: give at most those"
        )
    behind = np.arange(len(ids)) - prefix_length + 1
    example = _predict_next(ids, behind > 0, document_id=document_id)
    return replace(example, order=np.maximum(behind, 0))


def draw_prefix_length(num_tokens: int, *, generator: Generator) -> int:
    """A length from 1 to `num_tokens` - 1, each as likely; all of a text of one token."""
    return min(num_tokens, int(generator.integers(1, max(num_tokens, 2))))


def fill_in_the_middle(
    tokens: Ids,
    options: FillInTheMiddle,
    *,
    generator: Generator,
    document_id: int | None = None,
) -> Example:
    """A text cut between tokens into three pieces, the middle put last; or left causal.

    A `document_id` in front stays there. For a cut between characters, which models of code
    want (the paper compares both), cut the text with `cut_middle`, encode each piece and give them
    to `join_middle`.
    """
    ids = _as_ids(tokens)
    if generator.random() >= options.rate:
        return causal(ids, document_id=document_id)
    suffix_first = bool(generator.random() < options.suffix_first_rate)
    head = int(document_id is not None and ids[:1].tolist() == [document_id])
    begin, end = (head + cut for cut in cut_middle(len(ids) - head, generator=generator))
    pieces = ids[head:begin], ids[begin:end], ids[end:]
    return join_middle(*pieces, options, suffix_first=suffix_first, document_id=document_id)


def cut_middle(length: int, *, generator: Generator) -> tuple[int, int]:
    """Where the middle begins and ends: two of the places 0 to `length`, each as likely."""
    begin, end = sorted(generator.integers(0, length + 1, size=2).tolist())
    return begin, end


def join_middle(
    before: Ids,
    middle: Ids,
    after: Ids,
    options: FillInTheMiddle,
    *,
    suffix_first: bool,
    document_id: int | None = None,
) -> Example:
    """The three pieces in the order in which they are read, the document token in front.

    PSM: prefix_id, before, suffix_id, after, middle_id, middle. SPM, in the second variant of the
    paper's appendix D: prefix_id, suffix_id, after, middle_id, before, middle. The loss counts on
    all pieces and on `document_id`, which ends the middle, but not on the markers: where a text was
    cut cannot be known, and no model should write a marker.
    """
    markers = [options.prefix_id, options.suffix_id, options.middle_id]
    pieces: list[Ids] = [[] if document_id is None else [document_id]]
    if suffix_first:
        pieces += [markers[:2], after, markers[2:], before, middle]
    else:
        pieces += [markers[:1], before, markers[1:2], after, markers[2:], middle]
    ids = np.concatenate([_as_ids(piece) for piece in pieces])
    return _predict_next(ids, ~np.isin(ids, markers), document_id=document_id)


def permuted(tokens: Ids, options: Permutation, *, generator: Generator) -> Example:
    """The last tokens of a drawn factorisation order, each from those before it in that order.

    `order` is the rank of each token, special ones first. A target is the token at its own place,
    so it must be predicted from the query stream, which sees what `visible(order, itself=False)`
    says; the content stream sees `visible(order)` (sections 2.2 and 2.3 of the paper).
    """
    ids = _as_ids(tokens)
    special = np.isin(ids, options.special_ids)
    ranked = np.lexsort((generator.permutation(len(ids)), ~special))
    order = np.empty(len(ids), dtype=np.int64)
    order[ranked] = np.arange(len(ids))
    predicted = _count_share(int((~special).sum()), options.share)
    return Example(ids, ids, order >= len(ids) - predicted, order)


def permuted_in_one_stream(
    tokens: Ids, options: Permutation, *, mask_id: int, generator: Generator
) -> Example:
    """The same prediction for a model that has no query stream: questions are tokens of their own.

    Behind the text each predicted token is asked for by a `mask_id` at its position, revealed just
    before the token itself: it sees what was revealed earlier and never its answer. As in MPNet
    (Song et al. 2020, arXiv:2004.09297) questions are tokens of one sequence, with positions told
    as in σ-GPT (Pannatier et al. 2024, arXiv:2404.09562). Unlike in XLNet later tokens also see the
    earlier questions, which know nothing that these tokens do not see anyhow.
    """
    drawn = permuted(tokens, options, generator=generator)
    places = np.arange(len(drawn.tokens))
    asked = places[drawn.learnt]
    return Example(
        tokens=np.append(drawn.tokens, np.full(len(asked), mask_id)),
        targets=np.append(drawn.targets, drawn.targets[asked]),
        learnt=np.repeat([False, True], [len(places), len(asked)]),
        order=np.append(2 * drawn.order + 1, 2 * drawn.order[asked]),
        positions=np.append(places, asked),
    )


def chat(tokens: Ids, answers: Marks) -> Example:
    """A conversation of which only the answers are learnt; see `ChatTemplate.encode_answers`."""
    return _predict_next(_as_ids(tokens), np.asarray(answers, dtype=np.bool_))


def preference(prompt: Ids, *, chosen: Ids, rejected: Ids) -> Preference:
    """Two answers behind one prompt; the loss counts on the answers only.

    The rows of direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, equation 7).
    Each answer ends with its stop token. An empty prompt leaves its first token unpredicted.
    """
    before = _as_ids(prompt)

    def answer(ids: NDArray[np.int64]) -> Example:
        marks = np.repeat([False, True], [len(before), len(ids)])
        return chat(np.concatenate([before, ids]), marks)

    return Preference(answer(_as_ids(chosen)), answer(_as_ids(rejected)))


def visible(
    order: NDArray[np.int64],
    *,
    segments: NDArray[np.int64] | None = None,
    itself: bool = True,
) -> NDArray[np.bool_]:
    """Which token (row) sees which (column), [N, N]: the rule that every attention path keeps.

    `segments` [N] part the texts of a packed row. Without `itself` a token sees only what was
    revealed earlier: the query stream of permutation language modelling.
    """
    later, earlier = order[:, None], order[None, :]
    seen = earlier <= later if itself else earlier < later
    return seen if segments is None else seen & (segments[:, None] == segments[None, :])


def _predict_next(
    ids: NDArray[np.int64], counts: NDArray[np.bool_], *, document_id: int | None = None
) -> Example:
    """A causal example whose loss counts where the next token is one that `counts`."""
    follows = ids[-1:] if document_id is None else _as_ids([document_id])
    targets = np.concatenate([ids[1:], follows])[: len(ids)]
    learnt = np.append(counts[1:], document_id is not None)[: len(ids)]
    return Example(ids, targets, learnt, np.arange(len(ids)))


def _number_words(special: NDArray[np.bool_], word_starts: Marks | None) -> NDArray[np.int64]:
    """Number of the word that each token belongs to; -1 for special tokens, which part words."""
    starts = np.ones(len(special)) if word_starts is None else np.asarray(word_starts)
    behind_special = np.append(True, special)[: len(special)]
    begins = ~special & (starts.astype(np.bool_) | behind_special)
    return np.where(special, -1, np.cumsum(begins) - 1)


def _draw_hidden(
    words: NDArray[np.int64], options: Masking, generator: Generator
) -> NDArray[np.bool_]:
    sizes = np.bincount(words[words >= 0])
    hidden = np.zeros(len(sizes) + 1, dtype=np.bool_)  # its last entry is that of word -1
    if not options.exact:
        hidden[:-1] = generator.random(len(sizes)) < options.rate
        return hidden[words]
    left = _count_share(int(sizes.sum()), options.rate)
    for word in generator.permutation(len(sizes)):
        if sizes[word] <= left:
            hidden[word] = True
            left -= sizes[word]
    return hidden[words]


def _draw_ordinary(count: int, options: Masking, generator: Generator) -> NDArray[np.int64]:
    """Random ids that are not special, each as likely."""
    special = np.unique([options.mask_id, *options.special_ids])
    drawn = generator.integers(0, options.vocab_size - len(special), size=count)
    # The k-th ordinary id lies behind all special ones that at most k ordinary ids stand before.
    return drawn + np.searchsorted(special - np.arange(len(special)), drawn, side="right")


def _count_share(count: int, share: float) -> int:
    """`share` of `count`, rounded, but at least one where there is anything to take from."""
    return min(count, max(1, round(count * share))) if share > 0 else 0


def _as_ids(tokens: Ids) -> NDArray[np.int64]:
    return np.asarray(tokens, dtype=np.int64)


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise TrainingError(f"{name} is {share}: give a share from 0 to 1")
