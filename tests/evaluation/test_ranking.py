"""hits@1: who is asked what, and scores that equal those of every reply read by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from lmloop.evaluation.ranking import (
    SIZE_STEP,
    Questions,
    Ranking,
    fit_context,
    make_questions,
    measure_ranking,
    rank,
    score_replies,
)
from lmloop.inference.load import LoadedModel
from lmloop.model.transformer import Transformer
from lmloop.progress import Silent
from lmloop.records import Conversation, Document, Record, Turn
from lmloop.sections import EvaluateConfig
from lmloop.tokens.chat import ChatTemplate
from lmloop.tokens.tokenizer import Tokenizer

from ..conftest import random_model, tiny_shape


def talk(name: str, *texts: str) -> Conversation:
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[place % 2], text) for place, text in enumerate(texts))
    return Conversation(name, turns, 0)


@pytest.fixture
def template(tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate.of(tokenizer)


def ask(
    conversations: Sequence[Conversation],
    template: ChatTemplate,
    *,
    candidates: int = 3,
    limit: int = 100,
    context_length: int = 64,
    seed: int = 0,
) -> Questions:
    return make_questions(
        conversations,
        template,
        candidates=candidates,
        limit=limit,
        context_length=context_length,
        seed=seed,
    )


def texts_of(questions: Questions, tokenizer: Tokenizer) -> list[list[str]]:
    """The candidates of each question as text."""
    return [
        [tokenizer.decode(questions.replies[number]) for number in question.candidates]
        for question in questions.asked
    ]


@torch.no_grad()
def plain_score(model: Transformer, context: Sequence[int], reply: Sequence[int]) -> float:
    ids = torch.tensor([[*context, *reply]])
    logs = model(ids[:, :-1])[0].double().log_softmax(-1)
    places = range(len(context) - 1, ids.shape[1] - 1)
    return sum(float(logs[place, ids[0, place + 1]]) for place in places)


def test_each_reply_scores_as_if_it_stood_alone_behind_the_context() -> None:
    model, context = random_model(tiny_shape()), [0, 3, 9, 27, 4]
    replies = [[5, 1], [7, 8, 9, 1], [1], [5, 6, 1], [5, 1]]
    scores = score_replies(model, context, replies)
    expected = [plain_score(model, context, reply) for reply in replies]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_many_replies_score_as_one_by_one() -> None:
    model, context = random_model(tiny_shape()), [0, *range(1, 30)]
    draw = np.random.default_rng(0)
    replies = [draw.integers(0, 50, size=20).tolist() for _ in range(20)]
    assert SIZE_STEP < 20 * 20
    together = score_replies(model, context, replies)
    alone = [float(score_replies(model, context, [reply])[0]) for reply in replies]
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_hits_by_hand() -> None:
    ranking = Ranking(
        given_context=np.array([[-4.0, -6.0, -3.0], [-2.0, -8.0, -9.0]]),
        alone=np.array([[-9.0, -7.0, -5.0], [-1.0, -9.0, -8.0]]),
        lengths=np.array([[4, 3, 2], [1, 8, 3]]),
    )
    # Gains are 5, 1, 2 and -1, 1, -1; means -1, -2, -1.5 and -2, -1, -3.
    assert ranking.hits("gain").tolist() == [1.0, 0.0]
    assert ranking.hits("mean").tolist() == [1.0, 0.0]
    assert ranking.hits("total").tolist() == [0.0, 1.0]


def test_a_shared_first_place_counts_in_part_and_no_number_not_at_all() -> None:
    scores = np.array([[0.0, 0.0, -1.0, 0.0], [float("nan"), 0.0, 0.0, 0.0]])
    zeros, ones = np.zeros((2, 4)), np.ones((2, 4), dtype=np.int64)
    assert Ranking(scores, zeros, ones).hits("gain").tolist() == [1 / 3, 0.0]


def test_the_true_reply_stands_first_and_others_come_from_elsewhere(
    template: ChatTemplate, tokenizer: Tokenizer
) -> None:
    conversations = [
        talk("a", "one?", "Yes, I do", "two?", "not today"),
        talk("b", "three?", "far away", "four?", "no idea"),
        talk("c", "five?", "yes,  i DO", "six?", "green tea"),
    ]
    questions = ask(conversations, template)
    assert questions.num_candidates == 3
    own = [{turn.content for turn in each.turns[1::2]} for each in conversations]
    assert len(questions.asked) == 6
    for question, candidates in zip(questions.asked, texts_of(questions, tokenizer), strict=True):
        folded = [" ".join(text.split()).casefold() for text in candidates]
        assert len(set(folded)) == 3
        here = {" ".join(text.split()).casefold() for text in own[question.conversation]}
        assert folded[0] in here
        assert not here & set(folded[1:])
        assert tokenizer.decode(question.context).endswith("?")


def test_the_same_seed_asks_the_same(
    template: ChatTemplate, splits: dict[str, list[Record]]
) -> None:
    conversations = [each for each in splits["heldout"] if isinstance(each, Conversation)]
    one, again, other = (ask(conversations, template, limit=5, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert len(one.asked) == 5


def test_fewer_replies_than_asked_for_make_fewer_candidates(template: ChatTemplate) -> None:
    conversations = [talk("a", "one?", "yes"), talk("b", "two?", "no"), talk("c", "six?", "hm")]
    assert ask(conversations, template, candidates=20).num_candidates == 3
    assert ask(conversations[:1], template).asked == []
    assert ask([talk("a", "one?", "yes"), talk("b", "two?", "YES")], template).asked == []
    assert ask([], template).num_candidates == 0


def test_replies_that_leave_no_room_for_a_context_are_left_out(
    template: ChatTemplate, tokenizer: Tokenizer
) -> None:
    conversations = [
        talk("a", "one?", "yes"),
        talk("b", "two?", "no"),
        talk("c", "six?", "a long reply " * 10),
        talk("d", "a long question " * 30, "hm"),
    ]
    questions = ask(conversations, template, candidates=20)
    assert sorted(question.conversation for question in questions.asked) == [0, 1]
    for question, candidates in zip(questions.asked, texts_of(questions, tokenizer), strict=True):
        assert set(candidates) == {"yes", "no", "hm"}
        longest = max(len(questions.replies[number]) for number in question.candidates)
        assert len(question.context) + longest <= 64


def test_a_long_context_loses_its_oldest_turns_whole(
    template: ChatTemplate, tokenizer: Tokenizer
) -> None:
    turns = talk("a", "one?", "yes", "two?", "no", "three?").turns
    whole = template.encode(turns)
    assert fit_context(template, turns, max_tokens=len(whole)) == whole
    shorter = fit_context(template, turns, max_tokens=len(whole) - 1)
    assert shorter == template.encode(turns[2:])
    last = template.encode(turns[4:])
    assert fit_context(template, turns, max_tokens=len(last)) == last
    assert fit_context(template, turns, max_tokens=len(last) - 1) is None


def test_a_system_turn_is_kept(template: ChatTemplate) -> None:
    turns = (Turn("system", "be kind"), *talk("a", "one?", "yes", "two?").turns)
    kept = (turns[0], turns[3])
    assert fit_context(template, turns, max_tokens=len(template.encode(kept))) == template.encode(
        kept
    )


def test_gains_are_taken_against_an_empty_user_turn(
    template: ChatTemplate, tokenizer: Tokenizer
) -> None:
    model = random_model(tiny_shape(vocab_size=tokenizer.vocab_size))
    conversations = [talk("a", "one?", "yes"), talk("b", "two?", "no"), talk("c", "six?", "hm")]
    questions = ask(conversations, template)
    ranking = rank(model, questions, template, progress=Silent())
    nothing = template.encode([Turn("user", "")])
    for row, question in enumerate(questions.asked):
        for column, number in enumerate(question.candidates):
            reply = questions.replies[number]
            assert reply[-1] == tokenizer.stop_ids[0]
            assert ranking.lengths[row, column] == len(reply)
            given = plain_score(model, question.context, reply)
            alone = plain_score(model, nothing, reply)
            assert ranking.given_context[row, column] == pytest.approx(given, rel=1e-4)
            assert ranking.alone[row, column] == pytest.approx(alone, rel=1e-4)


def test_the_metric_says_how_it_was_asked(
    loaded: LoadedModel, splits: dict[str, list[Record]]
) -> None:
    config = EvaluateConfig(candidates=4, ranking_questions=10)
    (metric,), facts = measure_ranking(config, loaded, splits["heldout"], seed=0, progress=Silent())
    assert (facts["questions"], facts["candidates"], facts["scoring"]) == (10, 4, "gain")
    assert metric.value == facts["hits_at_1"]["gain"]
    assert metric.reference == 0.25
    assert metric.interval is not None and metric.value is not None
    assert 0 <= metric.interval[0] <= metric.value <= metric.interval[1] <= 1
    assert "log p(reply after context) - log p(reply alone)" in metric.explanation


def test_text_without_conversations_has_no_ranking(loaded: LoadedModel) -> None:
    records = [Document("a", "some text", 9)]
    for given in (records, [talk("a", "one?", "yes")]):
        found = measure_ranking(EvaluateConfig(), loaded, given, seed=0, progress=Silent())
        assert found == ([], {"questions": 0})
