"""What judges answers, behind one interface: a reward model, a Python function, an HTTP scorer, several of them.

    conversations, each ending with the answer to judge -> one score each

A reward model reads the very ids that were sampled, and in a rollout goes on from what the policy has computed; the
others read messages.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tutelage.data.rankings import encode_response
from tutelage.data.records import Messages
from tutelage.errors import InputError
from tutelage.model.heads import ScalarGPT
from tutelage.model.shared_prefix import score_texts
from tutelage.sampling.rollout import Responses, response_scores
from tutelage.text.tokenizer import Tokenizer

LARGEST = 3e38  # what fp32 holds
Group = Sequence[Sequence[int]]  # texts in ids, the answers to one prompt


class Reward(Protocol):
    """One score per answer. The three methods differ in what is known of the answers."""

    @property
    def models(self) -> Sequence[ScalarGPT]:
        """The reward models in it; none where a function or a server judges."""

    def score(self, conversations: Sequence[Messages]) -> Tensor:
        """(N,) of N conversations in words."""

    def score_groups(self, groups: Sequence[Group], conversations: Sequence[Sequence[Messages]]) -> list[Tensor]:
        """One (K,) per group of K answers to one prompt, each in ids and in words."""

    def score_responses(self, responses: Responses, conversations: Sequence[Messages]) -> Tensor:
        """(B,) of a rollout's responses, and the same in words."""


class ModelReward:
    """A reward model: its score at the last token of the answer."""

    def __init__(self, model: ScalarGPT, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.models = [model]

    @torch.no_grad()
    def score(self, conversations: Sequence[Messages]) -> Tensor:
        texts = [encode_response(messages[:-1], messages[-1]["content"], self.tokenizer) for messages in conversations]
        room = self.model.trunk.config.context
        for messages, ids in zip(conversations, texts, strict=True):
            if len(ids) > room:
                raise InputError(
                    f"reward: a conversation needs {len(ids)} tokens, the model's context is {room}; shorten the one "
                    f"that ends {messages[-1]['content'][-40:]!r}"
                )
        return torch.cat(score_texts(self.model, [[text] for text in texts], self.tokenizer.pad_id))

    @torch.no_grad()
    def score_groups(self, groups: Sequence[Group], conversations: Sequence[Sequence[Messages]]) -> list[Tensor]:
        return score_texts(self.model, groups, self.tokenizer.pad_id)

    @torch.no_grad()
    def score_responses(self, responses: Responses, conversations: Sequence[Messages]) -> Tensor:
        return response_scores(self.model, responses)


def with_response(prompt: Messages, answer: str) -> Messages:
    """A conversation that ends with this answer."""
    return [*prompt, {"role": "assistant", "content": answer}]


def is_score(value: float) -> bool:
    """A number that is finite, in fp32, too."""
    return abs(value) < LARGEST


class TextReward:
    """Whatever turns conversations into numbers: somebody's function, somebody's server."""

    models: Sequence[ScalarGPT] = ()

    def __init__(self, judge: Callable[[Sequence[Messages]], list[float]]):
        self.judge = judge

    def score(self, conversations: Sequence[Messages]) -> Tensor:
        return torch.tensor(self.judge(conversations), dtype=torch.float64)  # as it was said

    def score_groups(self, groups: Sequence[Group], conversations: Sequence[Sequence[Messages]]) -> list[Tensor]:
        scores = self.score([messages for group in conversations for messages in group])
        return list(scores.split([len(group) for group in conversations]))

    def score_responses(self, responses: Responses, conversations: Sequence[Messages]) -> Tensor:
        return self.score(conversations).float().to(responses.ids.device)
