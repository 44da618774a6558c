"""The reward interface, and its implementations: a reward model, or any function from messages to numbers.

    conversations, each ending with the response to score -> one score each

A reward model reads the sampled token ids. In a rollout it can reuse the activations that the policy has already
computed, if the two share their lower layers. All other rewards read messages.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tutelage.data.messages import Messages
from tutelage.data.rankings import encode_response
from tutelage.errors import InputError
from tutelage.model.heads import ScalarGPT
from tutelage.model.shared_prefix import score_texts
from tutelage.sampling.rollout import Responses, response_scores
from tutelage.text.tokenizer import Tokenizer

LARGEST = 3e38  # just below the largest fp32 number
Group = Sequence[Sequence[int]]  # token ids of each text: one prompt with its responses


class Reward(Protocol):
    """One score per response. The three methods differ in the form in which the responses arrive."""

    @property
    def models(self) -> Sequence[ScalarGPT]:
        """The reward models in it; empty for a function or a server."""

    def score(self, conversations: Sequence[Messages]) -> Tensor:
        """(N,) scores of N conversations, given as messages."""

    def score_groups(self, groups: Sequence[Group], conversations: Sequence[Sequence[Messages]]) -> list[Tensor]:
        """One (K,) tensor per group of K responses to one prompt, given both as token ids and as messages."""

    def score_responses(self, responses: Responses, conversations: Sequence[Messages]) -> Tensor:
        """(B,) scores of a rollout's B responses, given both as token ids and as messages."""


class ModelReward:
    """A reward model: the score is its output at the last token of the response."""

    def __init__(self, model: ScalarGPT, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.models = [model]

    @torch.no_grad()
    def score(self, conversations: Sequence[Messages]) -> Tensor:
        texts = [encode_response(messages[:-1], messages[-1]["content"], self.tokenizer) for messages in conversations]
        context = self.model.trunk.config.context
        for messages, ids in zip(conversations, texts, strict=True):
            if len(ids) > context:
                raise InputError(
                    f"reward: a conversation has {len(ids)} tokens, the reward model's context is {context}; shorten "
                    f"the one that ends {messages[-1]['content'][-40:]!r}"
                )
        return torch.cat(score_texts(self.model, [[text] for text in texts], self.tokenizer.pad_id))

    @torch.no_grad()
    def score_groups(self, groups: Sequence[Group], conversations: Sequence[Sequence[Messages]]) -> list[Tensor]:
        return score_texts(self.model, groups, self.tokenizer.pad_id)

    @torch.no_grad()
    def score_responses(self, responses: Responses, conversations: Sequence[Messages]) -> Tensor:
        return response_scores(self.model, responses)


def with_response(prompt: Messages, response: str) -> Messages:
    """The prompt with this response as its last turn."""
    return [*prompt, {"role": "assistant", "content": response}]


def is_score(value: float) -> bool:
    """Whether the number is finite in fp32."""
    return abs(value) < LARGEST


class TextReward:
    """A reward computed from messages by a function, such as a user's function or an HTTP scorer."""

    models: Sequence[ScalarGPT] = ()

    def __init__(self, function: Callable[[Sequence[Messages]], list[float]]):
        self.function = function

    def score(self, conversations: Sequence[Messages]) -> Tensor:
        return torch.tensor(self.function(conversations), dtype=torch.float64)  # keeps every digit of the scores

    def score_groups(self, groups: Sequence[Group], conversations: Sequence[Sequence[Messages]]) -> list[Tensor]:
        scores = self.score([messages for group in conversations for messages in group])
        return list(scores.split([len(group) for group in conversations]))

    def score_responses(self, responses: Responses, conversations: Sequence[Messages]) -> Tensor:
        return self.score(conversations).float().to(responses.ids.device)
