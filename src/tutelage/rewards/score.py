"""`tutelage score`: what a reward gives the answers in a file, in the shape that an HTTP scorer answers.

    rewards by name, a JSONL file -> {"object": "list", "data": [{"index", "score"}, ...], "model": name}

Each line holds one answer or several: a conversation that ends with the answer (`messages`, or an instruction triple),
a `prompt` with one `response`, or a `prompt` with `responses`, each of which is scored. The index counts the answers
through the file, in their order. A conversation that a reward model cannot read whole loses its oldest turns; an answer
that does not even fit with its question is passed over, and its index is missing.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from tutelage.atomic import atomic_write
from tutelage.data.fields import check_text, kind_of, names_of, text_field
from tutelage.data.prompts import latest_turns
from tutelage.data.rankings import encode_prompt, encode_response
from tutelage.data.records import Messages, demonstration_from, prompt_field, read_jsonl
from tutelage.errors import InputError
from tutelage.rewards.config import RewardsConfig
from tutelage.rewards.http import score_list
from tutelage.rewards.open import load_frozen, open_reward
from tutelage.rewards.reward import ModelReward, with_response
from tutelage.runs.device import choose_device


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(RewardsConfig):
    """Where reward models are run, and how several rewards become one."""

    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """Precision of activations and products: auto, fp32 or bf16."""


def score(
    reward: tyro.conf.Positional[str],
    input: tyro.conf.Positional[Path],
    members: tuple[str, ...] = (),
    out: Path | None = None,
    config: ScoreConfig = ScoreConfig(),
) -> None:
    """Score the answers in a file by a reward: a run, FILE.py:FUNCTION, module:FUNCTION, or a scorer's URL.

    Turns that a reward model has no room for are dropped, the oldest first.

    members: further rewards; with the first they are an ensemble.
    out: write there, instead of printing.

    Example: tutelage score runs/reward demonstrations.jsonl
    """
    lines = [(f"{input}, line {n}", record) for n, record in read_jsonl(input)]
    answers = [(where, answers_in(record, where)) for where, record in lines]
    device = choose_device(config.device, config.dtype)
    rewards = (reward, *members)
    models: list[ModelReward] = []

    def load(place: Path) -> ModelReward:
        models.append(load_frozen(place, device))
        return models[-1]

    judge = open_reward(rewards, config, load)
    fitting = fit_all(answers, models)
    name = f"{config.ensemble}({', '.join(rewards)})" if members else reward
    answer = score_list(name, zip(fitting, judge.score(list(fitting.values())).tolist(), strict=True))
    if out is None:
        print(json.dumps(answer, ensure_ascii=False))
        return
    with atomic_write(out) as file:
        json.dump(answer, file, ensure_ascii=False)
    print(f"{out}: {len(fitting):,} scores by {name}", file=sys.stderr)


def fit_all(lines: Sequence[tuple[str, list[Messages]]], models: Sequence[ModelReward]) -> dict[int, Messages]:
    """By index, what all of these models can read. Says what had to go; raises InputError where nothing is left."""
    fitting: dict[int, Messages] = {}
    cut: list[str] = []
    over: list[str] = []
    index = 0
    for where, answers in lines:
        kept = fitted(answers, models)
        fitting |= enumerate(kept, start=index)
        index += len(answers)
        if kept != answers:
            (cut if kept else over).append(where)
    room = min((model.model.trunk.config.context for model in models), default=0)
    too_long = f"question and answer alone need more than the {room} tokens that the reward model reads"
    if not fitting:
        raise InputError(f"{over[0]}: {too_long}; shorten them")
    if cut:
        tell(f"{cut[0]}: scored without the oldest turns, as the reward model reads {room} tokens", cut, lines)
    if over:
        tell(f"{over[0]}: {too_long}; not scored", over, lines)
    return fitting


def fitted(answers: list[Messages], models: Sequence[ModelReward]) -> list[Messages]:
    """Answers to one prompt, all without the oldest turns that one of them has no room for.

    Empty if the longest has none beside the last question. Scores after different turns could not be compared.
    """
    asked = answers[0][:-1]
    for model in models:
        size = max(len(encode_response(asked, messages[-1]["content"], model.tokenizer)) for messages in answers)
        context = model.model.trunk.config.context
        if size > context:
            room = context - (size - len(encode_prompt(asked, model.tokenizer)))
            latest = latest_turns(asked, model.tokenizer, room)
            if latest is None:
                return []
            asked = latest
    return [[*asked, messages[-1]] for messages in answers]


def tell(what: str, some: Sequence[str], lines: Sequence[object]) -> None:
    print(f"{what} ({len(some)} of {len(lines)} lines)", file=sys.stderr)


def answers_in(record: dict[str, Any], where: str) -> list[Messages]:
    """The conversations of one line, each ending with an answer. Raises InputError for a line without any."""
    if "messages" in record or "instruction" in record:
        messages = demonstration_from(record, where).messages
        if messages[-1]["role"] != "assistant":
            raise InputError(f"{where}: ends with a {messages[-1]['role']} turn; end it with the answer to be scored")
        return [messages]
    if "responses" in record:
        return [with_response(prompt_field(record, where), text) for text in texts_field(record, where)]
    if "response" in record:
        return [with_response(prompt_field(record, where), text_field(record, "response", where))]
    shapes = '"messages", or "prompt" with "response" or "responses"'
    raise InputError(f"{where}: holds no answer to score; give {shapes}, this one has {names_of(record)}")


def texts_field(record: dict[str, Any], where: str) -> Sequence[str]:
    texts = record["responses"]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f'{where}: "responses" must be a list of texts, it is {kind_of(texts)}')
    return [check_text(text, where) for text in texts]
