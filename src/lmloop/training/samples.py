"""What a model says while it learns: the same prompts at every validation.

Takes: a recipe's prompts and the tokenizer. Gives: a function from the model to its words. It takes
the most likely token always and draws from no generator, so that a run is the same with samples and
without, and says the same again after a resume.
"""

from __future__ import annotations

from collections.abc import Callable

from lmloop.errors import TrainingError
from lmloop.inference.engine import Engine
from lmloop.inference.load import LoadedModel
from lmloop.inference.sampling import Sampling
from lmloop.learning import TrainConfig
from lmloop.model.config import ModelConfig
from lmloop.model.transformer import Transformer
from lmloop.records import Turn
from lmloop.tokens.chat import ChatTemplate
from lmloop.tokens.tokenizer import Tokenizer

Sample = Callable[[Transformer], list[dict[str, str]]]
"""A `prompt` and the `text` that follows it, a pair a prompt."""


def make_sampler(
    config: TrainConfig, shape: ModelConfig, tokenizer: Tokenizer, *, is_chat: bool
) -> Sample | None:
    """The recipe's `sample_prompts` as a function of the model; None where it has none.

    With `is_chat` a prompt is what a user says, else the beginning of a text. Raises
    `TrainingError` for a model that does not continue text, and for a prompt that fills its length.
    """
    if not config.sample_prompts:
        return None
    if shape.encoder is not None or not shape.causal or shape.head == "none":
        raise TrainingError("sample_prompts: this model does not continue text; leave them out")
    encoded = [_encode(prompt, tokenizer, is_chat=is_chat) for prompt in config.sample_prompts]
    for prompt, ids in zip(config.sample_prompts, encoded, strict=True):
        if not 0 < len(ids) < shape.context_length:
            raise TrainingError(
                f"sample_prompts: {prompt[:40]!r} has {len(ids)} tokens; give 1 to "
                f"{shape.context_length - 1}, as the model's length is {shape.context_length}"
            )
    asked = Sampling(max_tokens=config.sample_tokens, temperature=0.0, seed=0)

    def sample(model: Transformer) -> list[dict[str, str]]:
        engine = Engine(LoadedModel(model, tokenizer, "unversioned"), max_running=len(encoded))
        answers = engine.generate(encoded, asked)
        return [
            {"prompt": prompt, "text": answer.text}
            for prompt, answer in zip(config.sample_prompts, answers, strict=True)
        ]

    return sample


def _encode(prompt: str, tokenizer: Tokenizer, *, is_chat: bool) -> list[int]:
    if is_chat:
        return ChatTemplate.of(tokenizer).encode([Turn("user", prompt)])
    return tokenizer.encode_document(prompt)
