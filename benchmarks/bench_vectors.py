"""Word vectors: words a second and agreement with people, beside gensim in one run.

The text is the demo's conversations, or files; agreement is Spearman's rank correlation with the
judgements of WordSim-353 (in gensim's package). Both train on two threads, one epoch for the speed,
five for the agreement; gensim has no GloVe, so that row has no peer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gensim
from chitchat_dataset import Dataset
from gensim.models import Word2Vec
from scipy.stats import spearmanr

from harness import make_parser, make_row, median, report
from lmloop.tokens.vectors import WordVectors
from lmloop.tokens.words import WordSplitter, WordStream, index_words
from lmloop.training.glove import GloveOptions, train_glove
from lmloop.training.skip_gram import SkipGramOptions, train_skip_gram

THREADS = 2
EPOCHS = 5
JUDGEMENTS = Path(gensim.__file__).parent / "test" / "test_data" / "wordsim353.tsv"


def read_arguments() -> argparse.Namespace:
    """How often, how long, and on which text."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; medians are shown")
    parser.add_argument("--glove-epochs", type=int, default=50)
    parser.add_argument("--text", nargs="*", default=[], help="text files, a sentence a line")
    return parser.parse_args()


def read_sentences(files: Sequence[str]) -> list[list[str]]:
    """Words of the files' lines, or of the chitchat conversations."""
    split = WordSplitter().split
    if files:
        lines = [line for file in files for line in Path(file).read_text("utf-8").splitlines()]
    else:
        lines = [
            message["text"]
            for talk in Dataset().values()
            for turn in talk["messages"]
            for message in turn
        ]
    return [words for words in map(split, lines) if words]


def agree(vectors: WordVectors) -> float:
    """Spearman's correlation of the cosines with people's judgements, over the known pairs."""
    rows = [line.split() for line in JUDGEMENTS.read_text("utf-8").splitlines() if line[0] != "#"]
    known = [
        (first.lower(), second.lower(), float(judged))
        for first, second, judged in rows
        if {first.lower(), second.lower()} <= vectors.index.keys()
    ]
    cosines = [
        dict(vectors.nearest(first, len(vectors.words))).get(second, 1.0)
        for first, second, _ in known
    ]
    return float(spearmanr(cosines, [judged for *_, judged in known]).statistic)


def train_ours(stream: WordStream, *, epochs: int, threads: int = THREADS) -> WordVectors:
    """Our skip-gram with its defaults."""
    return train_skip_gram(stream, options=SkipGramOptions(epochs=epochs, threads=threads), seed=1)


def train_gensim(sentences: list[list[str]], *, epochs: int) -> tuple[WordVectors, float]:
    """Gensim's skip-gram with the same settings, and the seconds of its training alone."""
    model = Word2Vec(
        vector_size=100, window=5, min_count=5, sg=1, negative=5, sample=1e-3, workers=THREADS
    )
    model.build_vocab(sentences)
    start = time.perf_counter()
    model.train(sentences, total_examples=model.corpus_count, epochs=epochs)
    seconds = time.perf_counter() - start
    return WordVectors(tuple(model.wv.index_to_key), model.wv.vectors), seconds


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure in rounds, ours and the peer in turn."""
    arguments = read_arguments()
    sentences = read_sentences(arguments.text)
    stream = index_words(sentences)
    words = len(stream.ids)
    seconds: dict[str, list[float]] = {"ours": [], "one": [], "gensim": []}
    for _ in range(arguments.rounds):
        seconds["ours"].append(timed(lambda: train_ours(stream, epochs=1)))
        seconds["one"].append(timed(lambda: train_ours(stream, epochs=1, threads=1)))
        seconds["gensim"].append(train_gensim(sentences, epochs=1)[1])
    rate = {name: words / median(each) for name, each in seconds.items()}
    gensim_agrees = agree(train_gensim(sentences, epochs=EPOCHS)[0])
    glove = train_glove(stream, options=GloveOptions(epochs=arguments.glove_epochs), seed=1)
    peer = {"peer_name": "gensim", "peer": rate["gensim"]}
    rows = [
        make_row("vectors.skip_gram", "words/s", rate["ours"], **peer),
        make_row("vectors.repeatable", "words/s", rate["one"], **peer),
        make_row(
            "vectors.wordsim353",
            "rank correlation",
            agree(train_ours(stream, epochs=EPOCHS)),
            peer_name="gensim",
            peer=gensim_agrees,
        ),
        make_row("vectors.glove", "rank correlation", agree(glove)),
    ]
    report("bench_vectors", rows, arguments)


if __name__ == "__main__":
    main()
