"""A vocabulary of whole words: each known word is one id, an unknown one its characters.

Takes: texts and how their runs of Han characters are cut. Gives: a backend of `tokenizers` from
which every text comes back byte for byte. A character that is unknown too is its UTF-8 bytes, so
nothing is ever lost, and bits per byte count each byte of what is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from lmloop.tokens.words import LETTERS

PIECES = rf" ?{LETTERS}|\p{{Han}}+| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Words as `words` cuts them, each with the space before it; what stands between them; spaces."""


def train_words(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Sequence[str],
    cut: Callable[[str], list[str]],
    whole: bool = True,
) -> tokenizers.Tokenizer:
    """The most frequent words and characters as a backend of at most `vocab_size` entries.

    `cut` parts a text where no pattern can: between the words of a run of Han characters. Without
    `whole` there are characters only.
    """
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    words: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for text in texts:
        characters.update(text)
        for part in cut(text) if whole else ():
            words.update(piece for piece, _ in split.pre_tokenize_str(part))
    ranked = [entry for entry, _ in (words | characters).most_common()]
    vocabulary, merges = _compose(ranked, vocab_size=vocab_size, special_tokens=special_tokens)
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole))
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, spell])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special_tokens))
    return backend


def _compose(
    ranked: Iterable[str], *, vocab_size: int, special_tokens: Sequence[str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Special tokens, bytes, then entries in their order; and the pairs that make characters.

    Characters of several bytes are joined byte by byte. Only a first byte begins a pair, as UTF-8
    tells it from the others, so no pair reaches into the next character.
    """
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    names = [*special_tokens, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {name: number for number, name in enumerate(names)}
    merges = []
    for entry in ranked:
        letters = "".join(piece for piece, _ in spell.pre_tokenize_str(entry))
        ends = range(2, len(letters) + 1) if len(entry) == 1 else [len(letters)]
        new = [end for end in ends if letters[:end] not in vocabulary]
        if len(vocabulary) + len(new) > vocab_size:
            continue
        for end in new:
            vocabulary[letters[:end]] = len(vocabulary)
            if len(entry) == 1:
                merges.append((letters[: end - 1], letters[end - 1]))
        if len(vocabulary) == vocab_size:
            break
    return vocabulary, merges
