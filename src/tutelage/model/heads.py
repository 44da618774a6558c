"""A decoder that ends in one number: the reward model and the value network.

    ids (B, L) -> trunk -> hidden (B, L, C) -> score of each prefix (B, L)

As a reward model (Ouyang et al. 2022, section 3.5) only the score at the last token of the response is read, less
`mean`, the average score of demonstrations, so that these score 0; `std` is their spread, by which ensembles compare
reward models, None where nobody measured it. As a value network every position is read.
The head has no bias: transformers' sequence-classification heads have none.
"""

import torch
from torch import Tensor, nn

from tutelage.model.gpt import GPT, Linear, Stream


class ScalarGPT(nn.Module):
    """A GPT trunk and a vector: one number per token. The trunk's own output head is not used."""

    def __init__(self, trunk: GPT, mean: float = 0.0, std: float | None = None):
        super().__init__()
        self.trunk = trunk
        self.score = Linear(trunk.config.width, 1, bias=False)
        self.mean, self.std = mean, std

    def initialise(self, generator: torch.Generator) -> "ScalarGPT":
        """Head weights of std 1/sqrt(C + 1) (Stiennon et al. 2020, appendix B); the trunk stays as it is."""
        nn.init.normal_(self.score.weight, std=(self.trunk.config.width + 1) ** -0.5, generator=generator)
        return self

    def forward(self, ids: Tensor, stream: Stream | None = None, first: int = 0) -> Tensor:
        """(B, L) right-padded ids -> (B, L - first) scores of the tokens from `first` on, less `mean`, fp32."""
        hidden = self.trunk.trunk(ids, stream=stream, first=first)
        return (hidden.float() @ self.score.weight.float().T).squeeze(-1) - self.mean

    def at(
        self,
        ids: Tensor,
        last: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        stream: Stream | None = None,
    ) -> Tensor:
        """Scores of the shape of `last`, (B,) or (B, K): read at those tokens of each row, where a turn ends.

        positions and mask are those of `GPT.trunk`, for rows that hold more than one text; so is the stream.
        """
        rows = torch.arange(len(ids), device=ids.device).view(-1, *[1] * (last.ndim - 1))
        first = int(last.min())
        hidden = self.trunk.trunk(ids, positions, mask, stream=stream, first=first)[rows, last - first]
        return (hidden.float() @ self.score.weight.float().T).squeeze(-1) - self.mean
