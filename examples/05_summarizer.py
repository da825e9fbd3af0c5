"""P5. `summarizer(text, max_length=150)` as a pipeline: ids in, a prompt around, sentences out.

No summariser was trained for this: a small chat model, SmolLM2-135M-Instruct (98 MB, fetched once),
is asked for a summary. It keeps to the subject and gets details wrong: read it as a draft.
"""

from __future__ import annotations

from textwrap import fill

import lmloop
from lmloop.records import Turn

NAME = "smollm2-135m-instruct"
TEXT = """\
When on board H.M.S. 'Beagle,' as naturalist, I was much struck with certain facts in the
distribution of the inhabitants of South America, and in the geological relations of the present to
the past inhabitants of that continent. These facts seemed to me to throw some light on the origin
of species - that mystery of mysteries, as it has been called by one of our greatest philosophers.
On my return home, it occurred to me, in 1837, that something might perhaps be made out on this
question by patiently accumulating and reflecting on all sorts of facts which could possibly have
any bearing on it. After five years' work I allowed myself to speculate on the subject, and drew up
some short notes; these I enlarged in 1844 into a sketch of the conclusions, which then seemed to me
probable: from that period to the present day I have steadily pursued the same object. I hope that I
may be excused for entering on these personal details, as I give them to show that I have not been
hasty in coming to a decision."""
"""Charles Darwin, On the Origin of Species, 1859, the first paragraph of the introduction."""


TASK = "Summarize this text in two sentences:"


class Summarizer:
    """A model, opened once and called often."""

    def __init__(self) -> None:
        lmloop.pull(NAME)
        self.model = lmloop.load(NAME)
        self.engine = lmloop.Engine(self.model, max_running=1)

    def __call__(self, text: str, *, max_length: int = 150) -> str:
        """What `text` says, in at most `max_length` tokens, up to the last whole sentence."""
        asked = [Turn("user", f"{TASK}\n\n{text}")]
        sampling = lmloop.Sampling(max_tokens=max_length, temperature=0)
        answer = next(self.engine.generate([self.model.template.encode(asked)], sampling))
        if answer.finish_reason == "length" and ". " in answer.text:
            return answer.text.rpartition(". ")[0] + "."
        return answer.text


def main() -> None:
    """Summarise a paragraph."""
    summarizer = Summarizer()
    summary = summarizer(TEXT, max_length=150)
    print(f"{len(TEXT.split())} words become {len(summary.split())}:\n{fill(summary, 96)}")


if __name__ == "__main__":
    main()
