"""The shards of an update: feedback again and again, old text in its stated share."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lmloop.errors import TokenizerError, UpdateError
from lmloop.records import Conversation, Document, Record, Turn
from lmloop.tokens.chat import ChatTemplate
from lmloop.tokens.loader import PackedLoader
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.updating import mixture
from lmloop.updating.mixture import write_mixture

from ..conftest import make_conversations


def talk(*contents: str, name: str = "talk") -> Conversation:
    """Turns of a user and the assistant, in turn."""
    turns = tuple(
        Turn("assistant" if number % 2 else "user", each) for number, each in enumerate(contents)
    )
    return Conversation(name, turns, sum(map(len, contents)))


MARKUP = ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>")
FEEDBACK = [talk("when do you open?", "at nine."), talk("who mends wheels?", "Ivo does.")]


def write(
    folder: Path,
    tokenizer: Tokenizer,
    feedback: Sequence[Record] = FEEDBACK,
    old: Sequence[Record] = (),
    **changes: Any,
) -> dict[str, Any]:
    options: dict[str, Any] = {"passes": 3, "replay_share": 0.8, "seed": 0}
    return write_mixture(
        feedback, lambda: old, tokenizer=tokenizer, folder=folder, **(options | changes)
    )


def read(folder: Path, tokenizer: Tokenizer) -> list[str]:
    """The documents of a mixture as text with their markup."""
    shards = Shards.open(folder, "train")
    names = {tokenizer.special_id(name): name for name in MARKUP}
    texts = []
    for index in range(shards.num_documents):
        ids = shards.document(index).tolist()
        texts.append("".join(names.get(each) or tokenizer.decode([each]) for each in ids))
    return texts


def learnt(folder: Path, tokenizer: Tokenizer, index: int, *, split: str = "train") -> str:
    """The text of one document's learnt tokens, markup left out."""
    shards = Shards.open(folder, split)
    start, stop = (int(shards.starts[place]) for place in (index, index + 1))
    ids, marks = shards.read(start, stop), shards.read_answers(start, stop)
    special = {tokenizer.special_id(name) for name in MARKUP}
    return tokenizer.decode([each for each in ids[marks].tolist() if each not in special])


def size(records: Iterable[Record], tokenizer: Tokenizer) -> int:
    template = ChatTemplate.of(tokenizer)
    return sum(
        len(template.encode(each.turns, add_generation_prompt=False))
        if isinstance(each, Conversation)
        else len(tokenizer.encode_document(each.text))
        for each in records
    )


def test_feedback_is_held_as_often_as_asked_and_the_rest_is_old(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    old = make_conversations(60, seed=5)
    counts = write(tmp_path, tokenizer, old=old)
    texts = Counter(read(tmp_path, tokenizer))
    opening = "<|endoftext|><|user|>when do you open?<|end|><|assistant|>at nine.<|end|>"
    assert texts.pop(opening) == 3
    assert sorted(texts.values())[-1] == 3
    assert sum(texts.values()) == 3 + counts["old_records"]
    assert counts["feedback_records"] == 2
    assert counts["feedback_tokens_learnt"] == 3 * size(FEEDBACK, tokenizer)
    assert counts["tokens"] == counts["feedback_tokens_learnt"] + counts["old_tokens_learnt"]
    longest = max(size([each], tokenizer) for each in old)
    assert abs(counts["old_tokens_learnt"] - 4 * counts["feedback_tokens_learnt"]) <= longest / 2
    assert counts["replay_share"] == pytest.approx(0.8, abs=0.02)


def test_training_reads_what_was_written(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path, tokenizer, old=make_conversations(60, seed=5))
    assert Tokenizer.open(tmp_path).encode("café 火车") == tokenizer.encode("café 火车")
    loader = PackedLoader(
        Shards.open(tmp_path, "train"),
        row_tokens=32,
        document_id=tokenizer.document_id,
        answers_only=True,
        seed=0,
    )
    assert loader.rows(0, loader.rows_per_epoch).learnt.all()


def test_equal_arguments_give_equal_bytes_and_another_seed_other_old_text(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    old = make_conversations(60, seed=5)
    write(tmp_path / "one", tokenizer, old=old)
    write(tmp_path / "two", tokenizer, old=list(reversed(old)))
    write(tmp_path / "other", tokenizer, old=old, seed=1)
    one, two, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two", "other")
    )
    assert one == two
    assert one["train-00000.tokens"] != other["train-00000.tokens"]
    assert one.keys() == other.keys()


def test_old_records_are_the_first_by_hash_whatever_their_order(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    old = make_conversations(60, seed=5)
    count = write(tmp_path, tokenizer, old=old)["old_records"]
    ordered = sorted(old, key=lambda each: hashlib.sha256(f"0 {each.id}".encode()).digest())
    ids = Shards.open(tmp_path, "train")
    template = ChatTemplate.of(tokenizer)
    for place, each in enumerate(ordered[:count]):
        expected = template.encode(each.turns, add_generation_prompt=False)
        assert ids.document(6 + place).tolist() == expected


def test_of_many_old_records_few_are_encoded(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Record] = []
    real = mixture.encode_records

    def spy(records: Sequence[Record], template: ChatTemplate) -> Any:
        encoded.extend(records)
        return real(records, template)

    monkeypatch.setattr(mixture, "encode_records", spy)
    old = make_conversations(1000, seed=5)
    counts = write(tmp_path, tokenizer, old=old)
    assert counts["old_records"] < 30
    assert len(encoded) < 250


def test_too_little_old_text_is_replayed_several_times(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    old = make_conversations(2, seed=5)
    counts = write(tmp_path, tokenizer, old=old, passes=10)
    times = Counter(read(tmp_path, tokenizer)[20:])
    assert len(times) == 2
    assert max(times.values()) - min(times.values()) <= 1
    assert counts["replay_share"] == pytest.approx(0.8, abs=0.02)


def test_without_replay_old_text_is_not_even_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def read_old() -> Iterable[Record]:
        raise AssertionError

    counts = write_mixture(
        FEEDBACK, read_old, tokenizer=tokenizer, folder=tmp_path, passes=2, replay_share=0, seed=0
    )
    assert (counts["old_records"], counts["replay_share"]) == (0, 0)
    assert Shards.open(tmp_path, "train").num_documents == 4


def test_only_the_last_answer_of_a_collected_conversation_is_learnt(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    long = talk("hello", "go away", "when do you open?", "at nine.", "thank you")
    write(tmp_path, tokenizer, feedback=[long], passes=1, old=[talk("hello", "good day")])
    assert learnt(tmp_path, tokenizer, 0) == "hellowhen do you open?at nine.thank you"
    assert learnt(tmp_path, tokenizer, 1) == "hellogood day"


def test_what_patience_watches_is_a_split_of_its_own_and_is_not_learnt(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    feedback = [
        talk("hello", "go away", "when do you open?", "at nine."),
        talk("good day", "what now", "who mends wheels?", "Ivo does."),
    ]
    more: dict[str, Any] = {"passes": 2, "replay_share": 0}
    plain = write(tmp_path / "plain", tokenizer, feedback, **more)
    assert plain["feedback_watched"] == 0
    assert [*json.loads((tmp_path / "plain/shards.json").read_text())["splits"]] == ["train"]
    counts = write(tmp_path / "new", tokenizer, feedback, **more, is_watched=True)
    assert (counts["feedback_records"], counts["feedback_watched"]) == (1, 1)
    said = [learnt(tmp_path / "new", tokenizer, index) for index in (0, 1)]
    said.append(learnt(tmp_path / "new", tokenizer, 0, split="validation"))
    assert said[0] == said[1]
    assert {*said} == {"hellowhen do you open?at nine.", "good daywho mends wheels?Ivo does."}


def test_old_documents_are_replayed_as_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    old = [Document(f"d{number}", f"the sea is {number} miles away", 22) for number in range(50)]
    counts = write(tmp_path, tokenizer, old=old)
    first = read(tmp_path, tokenizer)[6]
    assert first.startswith("<|endoftext|>the sea is ")
    assert "<|user|>" not in first
    assert counts["replay_share"] == pytest.approx(0.8, abs=0.02)


def test_feedback_without_an_answer_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    feedback = [Document("d", "plain text", 10), talk("only a question")]
    with pytest.raises(UpdateError, match="none of the 2 collected records has an answer"):
        write(tmp_path / "new", tokenizer, feedback=feedback)
    assert not (tmp_path / "new").exists()


def test_a_replay_of_nothing_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match=r"no old training records.*update\.replay_share = 0"):
        write(tmp_path / "new", tokenizer, old=[])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}", "learn to stop"),
    ],
)
def test_a_tokenizer_that_cannot_chat_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, template: str | None, reason: str
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8")) | {"chat_template": template}
    path.write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match=reason):
        write(tmp_path / "new", Tokenizer.open(tmp_path), old=make_conversations(5, seed=5))
    assert not (tmp_path / "new").exists()
