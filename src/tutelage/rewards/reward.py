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
from tutelage.data.rankings import after_turn, encode_response
from tutelage.errors import InputError
from tutelage.model.heads import ScalarGPT
from tutelage.model.shared_prefix import score_texts
from tutelage.sampling.rollout import Responses, response_scores
from tutelage.text.chat import chat_ids
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
    """A reward model: the score is its output at the response's end of turn, or for one that others trained, at the
    last token of the rendered conversation.

    A response that another token ended is read as if it had ended its turn, because the model knows no other end.
    """

    def __init__(self, model: ScalarGPT, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.models = [model]
        self.tail = after_turn(tokenizer) if model.last_token else []  # ids between the two

    def encode(self, messages: Messages) -> list[int]:
        """Ids of a conversation that ends with a response, up to the token at which the score is read."""
        if self.model.last_token:
            return self.without_padding(chat_ids(self.tokenizer, messages))
        return encode_response(messages[:-1], messages[-1]["content"], self.tokenizer)

    def up_to_score(self, ids: Sequence[int]) -> list[int]:
        """Ids of prompt and response -> ids up to the token at which the score is read."""
        end = self.tokenizer.end_of_turn_id
        ended = ids[-1] in self.tokenizer.end_ids
        if not self.model.last_token:
            return [*ids[:-1], end] if ended else list(ids)
        return self.without_padding([*(ids[:-1] if ended else ids), end, *self.tail])

    def without_padding(self, ids: list[int]) -> list[int]:
        """transformers skips padding tokens at the end, even an end of turn that is also the padding token."""
        pad = self.model.last_token.pad_id if self.model.last_token else None
        last = next((i for i in range(len(ids) - 1, 0, -1) if ids[i] != pad), 0)
        return ids[: last + 1]

    @torch.no_grad()
    def score_ids(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """(N,) scores of N texts, given as ids up to the token at which the score is read."""
        return torch.cat(score_texts(self.model, [[text] for text in texts], self.tokenizer.pad_id))

    def score(self, conversations: Sequence[Messages]) -> Tensor:
        texts = [self.encode(messages) for messages in conversations]
        context = self.model.trunk.config.context
        for messages, ids in zip(conversations, texts, strict=True):
            if len(ids) > context:
                raise InputError(
                    f"reward: a conversation has {len(ids)} tokens, the reward model's context is {context}; shorten "
                    f"the one that ends {messages[-1]['content'][-40:]!r}"
                )
        return self.score_ids(texts)

    @torch.no_grad()
    def score_groups(self, groups: Sequence[Group], conversations: Sequence[Sequence[Messages]]) -> list[Tensor]:
        texts = [[self.up_to_score(text) for text in group] for group in groups]
        return score_texts(self.model, texts, self.tokenizer.pad_id)

    @torch.no_grad()
    def score_responses(self, responses: Responses, conversations: Sequence[Messages]) -> Tensor:
        if not self.model.last_token:
            return response_scores(self.model, responses.ending_with(self.tokenizer.end_of_turn_id))
        rows = zip(responses.ids.tolist(), responses.last.tolist(), strict=True)
        texts = [[self.up_to_score(row[: last + 1])] for row, last in rows]
        return torch.cat(score_texts(self.model, texts, self.tokenizer.pad_id))


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
