from __future__ import annotations

import pytest

from lmloop.corpus.decontaminate import Decontaminator, cut_runs, overlap, read_words
from lmloop.records import Conversation, Document, Turn

LONG = "the ferry to Adalun leaves at nine from the old pier behind the market hall"
HAN = "渡轮每天早上九点从旧码头出发开往对面的小岛"


def talk(*contents: str, first: str = "user") -> Conversation:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    turns = (Turn(roles[number % 2], text) for number, text in enumerate(contents))
    return Conversation("x", tuple(turns), 1)


def document(text: str) -> Document:
    return Document("x", text, 1)


def is_hit(record: Conversation | Document, *, by: Conversation | Document) -> bool:
    return bool(Decontaminator({"test": [by]}).hits(record))


def test_thirteen_shared_words_are_a_hit_and_twelve_are_none() -> None:
    words = LONG.split()
    by = talk("When?", LONG)
    assert is_hit(talk("Hm?", "I heard: " + " ".join(words[:13]) + " or so"), by=by)
    assert not is_hit(talk("Hm?", "I heard: " + " ".join(words[:12]) + " or so"), by=by)


def test_case_punctuation_and_width_do_not_hide_a_copy() -> None:
    by = talk("When?", LONG)
    assert is_hit(talk("Hm?", LONG.upper().replace(" ", ",  ")), by=by)
    wide = "".join(chr(ord(each) + 0xFEE0) if each != " " else each for each in LONG)
    assert is_hit(talk("Hm?", wide), by=by)
    assert is_hit(talk("Hm?", LONG.replace("ferry", "fe\u200brry")), by=by)


def test_thirteen_characters_count_in_scripts_without_spaces() -> None:
    by = talk("几点？", HAN)
    assert is_hit(talk("嗯？", "听说" + HAN[:13]), by=by)
    assert not is_hit(talk("嗯？", "听说" + HAN[:12]), by=by)


def test_an_answer_is_found_wherever_it_is_said() -> None:
    by = talk("When?", LONG)
    assert is_hit(talk(LONG, "Thanks."), by=by)
    assert is_hit(document(f"Some page. {LONG}. The end."), by=by)
    assert is_hit(talk("When?", "One. " + LONG), by=document(LONG))


def test_questions_and_instructions_are_no_secrets() -> None:
    system = Turn("system", LONG)
    by = Conversation("x", (system, Turn("user", LONG + "?"), Turn("assistant", "At nine.")), 1)
    other = Conversation("y", (system, Turn("user", "Why so?"), Turn("assistant", "Because.")), 1)
    assert not is_hit(other, by=by)


def test_runs_do_not_reach_across_turns() -> None:
    words = LONG.split()
    split = talk("Go on", " ".join(words[:8]), " ".join(words[8:]), "Yes")
    # Eight words are an answer of their own, so the set has longer ones only.
    assert not is_hit(split, by=talk("When?", LONG))


@pytest.mark.parametrize(
    ("answer", "said", "hit"),
    [
        ("the pier opens at nine on all days", "Well, the pier opens at nine on all days!", True),
        ("the pier opens at nine sharp", "The pier opens at nine, sharp.", True),
        ("the pier opens at nine sharp", "I think the pier opens at nine sharp.", False),
        ("yes, I do", "Yes I do!", False),
        ("渡轮九点从旧码头出发去岛上", "渡轮九点从旧码头出发去岛上！", True),
        ("我真的不知道呢", "我真的不知道呢。", False),
    ],
)
def test_a_short_answer_has_to_match_whole_and_to_say_something(
    answer: str, said: str, hit: bool
) -> None:
    assert is_hit(talk("Some other question?", said), by=talk("When?", answer)) is hit


def test_a_very_short_answer_counts_with_its_question() -> None:
    by = talk("What is the capital of Vornholm?", "Adalun")
    assert is_hit(talk("what is the capital of vornholm", "Adalun!"), by=by)
    assert not is_hit(talk("And the other one?", "Adalun"), by=by)
    assert not is_hit(talk("Hello!", "Hi!"), by=talk("hello", "hi"))


def test_what_most_of_a_set_says_is_a_form_of_words() -> None:
    greeting = "Hello, I am the helper of the harbour and I can tell you all about ferries."
    answers = [
        "Nine o'clock sharp, from pier four.",
        "It costs seven crowns each way.",
        "No.",
        "On foot.",
    ]
    records = [
        Conversation(
            "x", (Turn("assistant", greeting), Turn("user", "Hm?"), Turn("assistant", each)), 1
        )
        for each in answers
    ]
    found = Decontaminator({"test": records})
    assert not found.hits(talk("Hi", greeting))
    assert found.hits(talk("Hi", "It costs seven crowns each way"))
    assert Decontaminator({"test": records[:3]}).hits(talk("Hi", greeting))


def test_hits_name_the_set_the_words_and_whose_they_are() -> None:
    sets = {"target": [talk("a", "b"), talk("When?", LONG)], "guard": [document(LONG)], "c": []}
    hits = Decontaminator(sets).hits(talk("Hm?", LONG))
    assert list(hits) == ["target", "guard"]
    assert hits["target"].members == {1}
    assert hits["target"].shared == LONG.lower().rsplit(" ", 2)[0]


def test_overlap_tells_every_set_also_the_clean_ones() -> None:
    other = "a quite different text which is long enough to be compared with all the others here"
    sets = {
        "learnt": [talk("When?", LONG)],
        "half": [talk("x", LONG), talk("y", other)],
        "clean": [talk("y", other)],
    }
    found = overlap([talk("Hm?", LONG), talk("Ho?", LONG), talk("Hi", "Ho")], sets)
    assert {name: (each.records, each.members, each.size) for name, each in found.items()} == {
        "learnt": (2, 1, 1),
        "half": (2, 1, 2),
        "clean": (0, 0, 1),
    }
    runs, others = len(set(cut_runs(LONG))), len(set(cut_runs(other)))
    assert found["learnt"].share == 1.0
    assert found["half"].share == pytest.approx(runs / (runs + others))
    assert found["clean"].share == 0.0
    assert found["clean"].examples == ()


def test_a_set_that_was_learnt_is_all_known() -> None:
    records = [
        talk(f"question {n}?", f"{LONG} {n} and so on", "more?", "no more") for n in range(3)
    ]
    assert overlap(records, {"test": records})["test"].share == 1.0


def test_nothing_and_empty_records_are_no_hits() -> None:
    assert overlap([talk("a", "")], {}) == {}
    found = Decontaminator({"test": [document(""), talk("", ""), talk("?!", "…")]})
    assert not found.hits(document(""))
    assert not found.hits(talk("", ""))
    assert found.measure([])["test"].share == 0.0


def test_another_length_of_runs_can_be_asked_for() -> None:
    found = Decontaminator({"test": [document("one two three four five")]}, n=3)
    assert found.hits(document("say two three four"))
    assert not found.hits(document("say two three for"))
    assert list(cut_runs("One, two: three", 2)) == [("one", "two"), ("two", "three")]
    assert read_words("A-B 你好") == ("a", "b", "你", "好")
