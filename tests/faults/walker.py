"""Runs a verb again and again, each time in a process of its own that a test may kill.

Usage: walker.py VERB RECIPE HOME [KEY=VALUE ...]. A line on stdin starts a process; its id is
written, and when it is over how it ended: its exit code, or the negative number of a signal. The
libraries are imported once and the processes forked, so that a start costs next to nothing.
"""

from __future__ import annotations

import os
import sys
import traceback

import torch
import torch._dynamo

import lmloop
import lmloop.corpus.prepare
import lmloop.evaluation.perplexity
import lmloop.training.recipes
from lmloop.config import parse_value


def main(verb: str, recipe: str, home: str, *changes: str) -> None:
    overrides = {
        key: parse_value(value) for key, _, value in (each.partition("=") for each in changes)
    }
    torch.set_num_threads(1)
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            try:
                getattr(lmloop, verb)(recipe, home=home, **overrides)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
