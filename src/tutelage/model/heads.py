"""A decoder with a scalar head: the reward model and the value network.

    ids (B, L) -> trunk -> hidden (B, L, C) -> score of each prefix (B, L)

A reward model (Ouyang et al. 2022, section 3.5) is read at the end of the response's turn. One that others trained is
read where transformers reads it: at the last token of the rendered conversation that is not the padding token. `mean`,
the average score of demonstrations, is subtracted so that these score 0. `std` is the standard deviation of their
scores, which puts the members of an ensemble on one scale; None if not measured. A value network is read at every
position.
The head has no bias, because transformers' sequence-classification heads have none.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.model.gpt import GPT, Linear, ResidualStream


@dataclass(frozen=True)
class LastToken:
    """A reward model is read at the last token that is not padding."""

    pad_id: int | None  # of the model's config.json; None: any last token


class ScalarGPT(nn.Module):
    """A GPT trunk and a scalar head: one number per token. The trunk's own output head is not used."""

    def __init__(self, trunk: GPT, mean: float = 0.0, std: float | None = None, last_token: LastToken | None = None):
        super().__init__()
        self.trunk = trunk
        self.score = Linear(trunk.config.width, 1, bias=False)
        self.mean, self.std = mean, std
        self.last_token = last_token  # None: read at the end of the turn

    @property
    def read_at(self) -> str:
        """Where its score is read, in words, for the output and run.json."""
        return "last token" if self.last_token else "end of turn"

    def initialise(self, generator: torch.Generator) -> "ScalarGPT":
        """Draw head weights of std 1/sqrt(C + 1) (Stiennon et al. 2020, appendix B); the trunk is unchanged."""
        nn.init.normal_(self.score.weight, std=(self.trunk.config.width + 1) ** -0.5, generator=generator)
        return self

    def forward(self, ids: Tensor, stream: ResidualStream | None = None, first: int = 0) -> Tensor:
        """Right-padded ids (B, L) -> scores (B, L - first) at the tokens from `first` on, minus `mean`, in fp32."""
        hidden = self.trunk.trunk(ids, stream=stream, first=first)
        return (hidden.float() @ self.score.weight.float().T).squeeze(-1) - self.mean

    def at(
        self,
        ids: Tensor,
        last: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        stream: ResidualStream | None = None,
    ) -> Tensor:
        """Scores at the tokens `last` of each row, where turns end: ids (B, L), last (B,) or (B, K) -> shape of `last`.

        positions, mask and stream are passed to `GPT.trunk`; positions and mask are for rows with several texts.
        """
        rows = torch.arange(len(ids), device=ids.device).view(-1, *[1] * (last.ndim - 1))
        first = int(last.min())
        hidden = self.trunk.trunk(ids, positions, mask, stream=stream, first=first)[rows, last - first]
        return (hidden.float() @ self.score.weight.float().T).squeeze(-1) - self.mean
