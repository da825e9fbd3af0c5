"""An embedding that begins with word vectors.

Takes: an embedding's matrix, the word of each of its rows, `WordVectors`. Gives: the rows of known
words replaced, in place, and no larger than the matrix was.
Axes: V words, D numbers a word.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmloop.errors import TrainingError
from lmloop.tokens.vectors import WordVectors


@torch.no_grad()
def initialise_embedding(
    weight: Tensor,
    *,
    vocabulary: Sequence[str],
    vectors: WordVectors,
    freeze: bool = False,
) -> int:
    """Give the rows of known words their vectors, others keep theirs; how many were known.

    weight: [V, D]; vocabulary: the word of each row, in the order of the ids. One factor brings the
    vectors to the root mean square that the matrix has, if it is not empty: a model that also
    predicts with it would begin with far too certain guesses. With `freeze` the whole matrix takes
    no gradient from now on. Raises `TrainingError` where the sizes differ or no word is known.
    """
    rows, width = weight.shape
    dimensions = vectors.matrix.shape[1]
    if width != dimensions:
        raise TrainingError(
            f"the vectors have {dimensions} numbers a word and the embedding {width}: "
            f"set hidden_size to {dimensions} or choose other vectors"
        )
    if rows != len(vocabulary):
        raise TrainingError(f"the embedding has {rows} rows for {len(vocabulary)} words")
    aligned, found = vectors.align(vocabulary)
    if not found.any():
        raise TrainingError(
            f"none of {rows} words of the vocabulary has a vector, such as {vocabulary[0]!r}: "
            "choose vectors of the same language and case"
        )
    known = torch.from_numpy(found).to(weight.device)
    given = torch.from_numpy(aligned[found]).to(weight.device)
    size, wanted = given.square().mean().sqrt(), weight.float().square().mean().sqrt()
    if size > 0 and wanted > 0:
        given *= wanted / size
    weight[known] = given.to(weight.dtype)
    weight.requires_grad_(not freeze)
    return int(found.sum())
