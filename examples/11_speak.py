"""A decoder speaks: text becomes codes of sound, and they become a WAV file.

One speaker's recordings of digits, days, months and the spelling alphabet (Debian's sounds of
Asterisk) are laid behind each other in ever new orders, one to four words at a time. The decoder
learns what such a row sounds like, then speaks rows that it has never heard, of words that it has.
Whether they can be understood says somebody else: Whisper hears the recordings, the same out of
codes, and the speech.
"""

from __future__ import annotations

import argparse
import gzip
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from code_writer import CodeWriter
from numpy.typing import NDArray
from texts import debian_files

import lmloop
from lmloop.corpus.audio import RATE, read_wav, write_wav
from lmloop.corpus.sound_codes import decode_sound, encode_sound, fit_sound_codes
from lmloop.inference.speech import transcribe_speech
from lmloop.inference.transcribe import read_rules

Samples = NDArray[np.float32]
"""[N]"""
NAMED = re.compile(r"digits/(\d|day-\d|mon-\d+)|phonetic/\w_p")
CODES, LEVELS, FRAMES = 512, 2, 4
"""Codes a level, codes a step, hundredths of a second a step."""
MOST_WORDS = 4
ROWS = 12
"""Rows of words a training step."""
QUIET, AROUND = 0.02, RATE // 20
"""Share of the loudest below which a recording has not begun, and samples kept around it."""
FIGURES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def read_words() -> dict[str, Samples]:
    """Each word that is a recording of its own, without the silence around it."""
    told = debian_files("asterisk-core-sounds-en") / "usr/share/doc/asterisk-core-sounds-en"
    sounds = debian_files("asterisk-core-sounds-en-wav") / "usr/share/asterisk/sounds"
    words = {}
    with gzip.open(told / "core-sounds-en.txt.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            name, _, text = line.strip().partition(": ")
            word = text.lower()
            if NAMED.fullmatch(name):
                words[word] = trim(read_wav(sounds / "en_US_f_Allison" / f"{name}.wav"))
    return words


def trim(samples: Samples) -> Samples:
    """Samples from shortly before the first loud one to shortly after the last."""
    (loud,) = (np.abs(samples) > QUIET * np.abs(samples).max()).nonzero()
    return samples[max(0, loud[0] - AROUND) : loud[-1] + AROUND]


def compose(words: dict[str, Samples], random: np.random.Generator, *, least: int = 1) -> list[str]:
    """Some words, none of them twice."""
    count = int(random.integers(least, MOST_WORDS + 1))
    return [str(word) for word in random.choice(list(words), count, replace=False)]


def spell(text: str) -> list[str]:
    """The words of what was heard: figures are written out, hyphens and points left out."""
    plain = re.sub(r"\d", lambda found: f" {FIGURES[int(found[0])]} ", text.lower())
    return re.findall("[a-z]+", plain.replace("-", ""))


def count_edits(heard: list[str], said: list[str]) -> int:
    """Words to change, leave out or put in, at the least (Levenshtein 1966)."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(heard, 1):
        before, row = row, [i]
        for j, other in enumerate(said, 1):
            row.append(min(before[j - 1] + (word != other), before[j] + 1, row[-1] + 1))
    return row[-1]


def open_ears() -> Callable[[Samples], list[str]]:
    """Whisper tiny.en, as a function from samples to words."""
    model = lmloop.load(lmloop.pull("whisper-tiny.en").path)
    tokenizer = model.require_tokenizer()
    rules = read_rules(model.settings, tokenizer)

    def hear(samples: Samples) -> list[str]:
        return spell(
            transcribe_speech(model.transformer, samples, tokenizer=tokenizer, rules=rules)
        )

    return hear


def measure(
    name: str,
    sounds: Iterable[Samples],
    said: list[list[str]],
    hear: Callable[[Samples], list[str]],
) -> list[list[str]]:
    """What is heard; prints the share of words that are heard wrong."""
    heard = [hear(each) for each in sounds]
    wrong, count = sum(map(count_edits, heard, said)), sum(map(len, said))
    print(f"{name:14} {wrong / count:6.1%} of {count} words wrong", flush=True)
    return heard


def main() -> None:
    """Learn codes, learn to write them, speak, and have the speech heard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--rows", type=int, default=12, help="of words, to be spoken")
    parser.add_argument("--folder", type=Path, default=Path("speech"))
    arguments = parser.parse_args()

    words = read_words()
    book = fit_sound_codes(words.values(), num_codes=CODES, num_levels=LEVELS, frames=FRAMES)
    codes = {word: encode_sound(samples, book) for word, samples in words.items()}
    order = np.random.default_rng(1)
    asked = [compose(words, order, least=3) for _ in range(arguments.rows)]
    kept_back = {tuple(row) for row in asked}

    def draw_rows() -> list[tuple[str, NDArray[np.int64]]]:
        rows = [compose(words, order) for _ in range(ROWS)]
        rows = [row for row in rows if tuple(row) not in kept_back]
        return [(" ".join(row), np.concatenate([codes[word] for word in row])) for row in rows]

    writer = CodeWriter(book, context_length=512)
    writer.train(draw_rows, steps=arguments.steps)
    written = writer.write([" ".join(row) for row in asked], max_tokens=400, temperature=0)
    speech = [decode_sound(each, book) for each in written]

    hear = open_ears()
    originals = [np.concatenate([words[word] for word in row]) for row in asked]
    coded = [decode_sound(np.concatenate([codes[word] for word in row]), book) for row in asked]
    measure("recordings", originals, asked, hear)
    measure("out of codes", coded, asked, hear)
    heard = measure("speech", speech, asked, hear)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for number, (row, understood, samples) in enumerate(zip(asked, heard, speech, strict=True)):
        write_wav(arguments.folder / f"{number:02}.wav", samples)
        print(f"{number:02}.wav  {' '.join(row)}  →  {' '.join(understood)}")


if __name__ == "__main__":
    main()
