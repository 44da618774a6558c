"""`tutelage score`: what a reward gives the answers in a file, in the shape that an HTTP scorer answers.

    rewards by name, a JSONL file -> {"object": "list", "data": [{"index", "score"}, ...], "model": name}

Each line holds one answer or several: a conversation that ends with the answer (`messages`, or an instruction triple),
a `prompt` with one `response`, or a `prompt` with `responses`, each of which is scored. The index counts the answers
through the file, in their order.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from tutelage.atomic import atomic_write
from tutelage.data.fields import check_text, kind_of, names_of, text_field
from tutelage.data.records import Messages, demonstration_from, prompt_field, read_jsonl
from tutelage.errors import InputError
from tutelage.rewards.config import RewardsConfig
from tutelage.rewards.http import score_list
from tutelage.rewards.open import load_frozen, open_reward
from tutelage.rewards.reward import with_answer
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

    members: further rewards; with the first they are an ensemble.
    out: write there, instead of printing.

    Example: tutelage score runs/reward demonstrations.jsonl
    """
    conversations = [
        messages for line, record in read_jsonl(input) for messages in answers_in(record, f"{input}, line {line}")
    ]
    device = choose_device(config.device, config.dtype)
    rewards = (reward, *members)
    judge = open_reward(rewards, config, lambda place: load_frozen(place, device))
    name = f"{config.ensemble}({', '.join(rewards)})" if members else reward
    answer = score_list(name, judge.score(conversations).tolist())
    if out is None:
        print(json.dumps(answer, ensure_ascii=False))
        return
    with atomic_write(out) as file:
        json.dump(answer, file, ensure_ascii=False)


def answers_in(record: dict[str, Any], where: str) -> list[Messages]:
    """The conversations of one line, each ending with an answer. Raises InputError for a line without any."""
    if "messages" in record or "instruction" in record:
        messages = demonstration_from(record, where).messages
        if messages[-1]["role"] != "assistant":
            raise InputError(f"{where}: ends with a {messages[-1]['role']} turn; end it with the answer to be scored")
        return [messages]
    if "responses" in record:
        return [with_answer(prompt_field(record, where), text) for text in texts_field(record, where)]
    if "response" in record:
        return [with_answer(prompt_field(record, where), text_field(record, "response", where))]
    shapes = '"messages", or "prompt" with "response" or "responses"'
    raise InputError(f"{where}: holds no answer to score; give {shapes}, this one has {names_of(record)}")


def texts_field(record: dict[str, Any], where: str) -> Sequence[str]:
    texts = record["responses"]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f'{where}: "responses" must be a list of texts, it is {kind_of(texts)}')
    return [check_text(text, where) for text in texts]
