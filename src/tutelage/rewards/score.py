"""`tutelage score`: scores the responses in a file with a reward and prints them as an HTTP scorer would return them.

    rewards by name, a JSONL file -> {"object": "list", "data": [{"index", "score"}, ...], "model": name}

Each line holds one or more responses: a conversation that ends with the response (`messages`, or an instruction
triple), a `prompt` with one `response`, or a `prompt` with `responses`, each of which is scored. The index counts the
responses through the file, in order. A conversation longer than a reward model's context loses its oldest turns. A
response that does not fit even with the last question alone is not scored, and its index is missing.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from tutelage.atomic import atomic_write
from tutelage.data.conversations import CONVERSATIONS, prompt_field
from tutelage.data.fields import kind_of, names_of
from tutelage.data.jsonl import read_jsonl
from tutelage.data.messages import Messages, content_text
from tutelage.data.pairs import is_pair
from tutelage.data.prompts import latest_turns
from tutelage.data.rankings import encode_prompt, encode_response
from tutelage.data.records import comparison_from, demonstration_from
from tutelage.errors import InputError, located
from tutelage.options import Advanced
from tutelage.rewards.config import RewardsConfig
from tutelage.rewards.http import score_list
from tutelage.rewards.open import load_frozen, open_reward
from tutelage.rewards.reward import ModelReward, with_response
from tutelage.runs.device import choose_device


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(RewardsConfig):
    """Device and precision for reward models, and how several rewards are combined."""

    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: Advanced[str] = "auto"
    """Precision of activations and matrix products: auto, fp32 or bf16."""


def score(
    reward: tyro.conf.Positional[str],
    input: tyro.conf.Positional[Path],
    members: tuple[str, ...] = (),
    out: Path | None = None,
    config: ScoreConfig = ScoreConfig(),
) -> None:
    """Score the responses in a file with a reward: a run, FILE.py:FUNCTION, module:FUNCTION, or a scorer's URL.

    Conversations longer than a reward model's context lose their oldest turns.

    reward: A run, FILE.py:FUNCTION, module:FUNCTION, or a scorer's URL.
    A function is def f(conversations) -> list[float]: each conversation is a list of {"role", "content"} messages that
    ends with the response, and gets one number.
    input: JSONL file with conversations, or with prompts and their responses.
    members: Further rewards, combined with the first into an ensemble.
    out: Write the scores to this file instead of printing them.

    Example: tutelage score runs/reward demonstrations.jsonl
    """
    lines = [(f"{input}, line {n}", record) for n, record in read_jsonl(input)]
    conversations = [(where, conversations_in(record, where)) for where, record in lines]
    device = choose_device(config.device, config.dtype)
    rewards = (reward, *members)
    models: list[ModelReward] = []

    def load(place: Path) -> ModelReward:
        models.append(load_frozen(place, device))
        return models[-1]

    combined = open_reward(rewards, config, load)
    fitting = fit_all(conversations, models)
    scores = combined.score(list(fitting.values())).tolist()
    name = f"{config.ensemble}({', '.join(rewards)})" if members else reward
    result = score_list(name, zip(fitting, scores, strict=True))
    if out is None:
        print(json.dumps(result, ensure_ascii=False))
        return
    with atomic_write(out) as file:
        json.dump(result, file, ensure_ascii=False)
    print(f"{out}: {len(fitting):,} scores by {name}", file=sys.stderr)


def fit_all(lines: Sequence[tuple[str, list[Messages]]], models: Sequence[ModelReward]) -> dict[int, Messages]:
    """The conversations that fit the contexts of all models, by index. Warns about those it shortens or leaves out.

    Raises InputError if none fits.
    """
    fitting: dict[int, Messages] = {}
    shortened: list[str] = []
    left_out: list[str] = []
    index = 0
    for where, conversations in lines:
        with located(where):
            kept = fitted(conversations, models)
        fitting |= enumerate(kept, start=index)
        index += len(conversations)
        if kept != conversations:
            (shortened if kept else left_out).append(where)
    context = min((model.model.trunk.config.context for model in models), default=0)
    too_long = f"the last question and the response exceed the reward model's context of {context} tokens"
    if not fitting:
        raise InputError(f"{left_out[0]}: {too_long}; shorten them")
    if shortened:
        cause = f"to fit the reward model's context of {context} tokens"
        warn(f"{shortened[0]}: scored without the oldest turns {cause}", shortened, lines)
    if left_out:
        warn(f"{left_out[0]}: {too_long}; not scored", left_out, lines)
    return fitting


def fitted(conversations: list[Messages], models: Sequence[ModelReward]) -> list[Messages]:
    """Conversations with one prompt, shortened from the oldest turn on until all of them fit all models.

    All lose the same turns, because scores after different prompts could not be compared. Empty if the longest response
    does not fit even with the last question alone.
    """
    prompt = conversations[0][:-1]
    for model in models:
        size = max(len(encode_response(prompt, messages[-1]["content"], model.tokenizer)) for messages in conversations)
        context = model.model.trunk.config.context
        if size > context:
            room = context - (size - len(encode_prompt(prompt, model.tokenizer)))
            latest = latest_turns(prompt, model.tokenizer, room)
            if latest is None:
                return []
            prompt = latest
    return [[*prompt, messages[-1]] for messages in conversations]


def warn(message: str, affected: Sequence[str], lines: Sequence[object]) -> None:
    print(f"{message} ({len(affected)} of {len(lines)} lines)", file=sys.stderr)


def conversations_in(record: dict[str, Any], where: str) -> list[Messages]:
    """The conversations of one line, each ending with a response. Raises InputError for a line without any."""
    if is_pair(record):
        pair = comparison_from(record, where)
        return [with_response(pair.prompt, text) for text in pair.responses]
    if any(record.get(name) is not None for name in CONVERSATIONS):
        messages = demonstration_from(record, where).messages
        if messages[-1]["role"] != "assistant":
            raise InputError(f"{where}: ends with a {messages[-1]['role']} turn; end it with the response to score")
        return [messages]
    if record.get("responses") is not None:
        return [with_response(prompt_field(record, where), text) for text in texts_field(record, where)]
    if record.get("response") is not None:
        text = content_text(record["response"], "response", where)
        return [with_response(prompt_field(record, where), text)]
    shapes = '"messages", or "prompt" with "response" or "responses"'
    raise InputError(f"{where}: holds no response to score; give {shapes}; this line has {names_of(record)}")


def texts_field(record: dict[str, Any], where: str) -> Sequence[str]:
    texts = record["responses"]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str | list) for text in texts):
        raise InputError(f'{where}: "responses" must be a list of texts, it is {kind_of(texts)}')
    return [content_text(text, "responses", f"{where}, response {i}") for i, text in enumerate(texts, start=1)]
