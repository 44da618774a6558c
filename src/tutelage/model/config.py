"""The shape of one decoder: what makes it a GPT-1, a GPT-3 or a model of today."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's way to a longer context: slow turns are slowed down further, fast ones stay, a ramp between."""

    factor: float
    """How much slower the slowest channels turn."""
    low_frequency: float
    """Channels with fewer turns than this in the original context are slowed by the whole factor."""
    high_frequency: float
    """Channels with more turns than this stay as they are."""
    original_context: int
    """The context that the model was first trained with."""

    def scale(self, frequency: Tensor) -> Tensor:
        """Radians per token, before and after."""
        turns = self.original_context * frequency / (2 * math.pi)
        ramp = (turns - self.low_frequency) / (self.high_frequency - self.low_frequency)
        kept = ramp.clamp(0, 1)
        return kept * frequency + (1 - kept) * frequency / self.factor


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The shape of one decoder. Raises ValueError where the numbers disagree."""

    vocab_size: int
    """Rows of the embedding: V."""
    width: int
    """Channels of the residual stream: C."""
    layers: int
    """Blocks."""
    heads: int
    """Query heads: H."""
    kv_heads: int
    """Key and value heads; fewer than `heads` is grouped-query attention."""
    head_width: int
    """Channels of a head: D."""
    hidden: int
    """Channels inside the MLP."""
    context: int
    """Longest sequence in tokens."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or LayerNorm with gain and bias."""
    post_norm: bool = False
    """Normalise after the residual addition (GPT-1), without a final norm, instead of before each branch."""
    norm_eps: float = 1e-6
    """Added to the variance."""
    learned_positions: bool = False
    """A trained vector per position instead of rotary positions."""
    rope_theta: float = 10_000.0
    """Longest wavelength of the rotary positions, in radians."""
    rope_scaling: RopeScaling | None = None
    """Llama 3's slower rotation of the slow channels; None is as trained."""
    mlp: Literal["swiglu", "gelu", "relu2"] = "swiglu"
    """Gated SiLU, GELU in its tanh form, or squared ReLU."""
    qk_norm: bool = False
    """RMS-normalise each head's queries and keys (Qwen3)."""
    biases: bool = False
    """Additive biases in every linear map of the blocks (GPT-1 to 3)."""
    qkv_bias: bool = False
    """Additive biases of queries, keys and values alone (Qwen2)."""
    tied: bool = True
    """The embedding is also the output head."""
    band: int = 0
    """In banded layers, attend only to the last `band` tokens; 0 is dense attention everywhere."""
    band_every: int = 2
    """Which layers are banded: 2 is every second one, the odd ones (GPT-3), 1 is all of them (Mistral)."""

    @property
    def bands(self) -> tuple[int, ...]:
        """For each layer how many tokens it looks at, its own included; 0 is all of them."""
        return tuple(0 if (i + 1) % self.band_every else self.band for i in range(self.layers))

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_width", "hidden", "context"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be positive")
        if self.learned_positions and self.heads * self.head_width != self.width:
            raise ValueError(
                f"{self.heads} heads of {self.head_width} make {self.heads * self.head_width}, not {self.width}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly")
        if self.head_width % 2 and not self.learned_positions:
            raise ValueError(f"rotary positions turn pairs of channels; a head has {self.head_width}")
