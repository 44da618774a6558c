"""The configuration of one decoder: a GPT-1, a GPT-3, or a current model such as Llama or Qwen3."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin

from torch import Tensor

from tutelage.kinds import is_finite

SIZES = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_width", "hidden", "context", "band_every")
WORDS: dict[Any, str] = {int: "a whole number", bool: "true or false"}


def check_types(config: Any) -> None:
    """Raises ValueError for a field of a config dataclass that has another type than declared, or is not finite."""
    for field in fields(config):
        value, kind = getattr(config, field.name), field.type
        if get_origin(kind) is Literal:
            fits, words = value in get_args(kind), f"one of {', '.join(get_args(kind))}"
        elif kind is float:
            fits, words = is_finite(value), "a finite number"
        else:
            fits, words = type(value) is kind or kind not in WORDS, WORDS.get(kind, "")
        if not fits:
            raise ValueError(f"{field.name} is {value!r:.60}; it must be {words}")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's extension of the context: low rotary frequencies are divided by a factor, high ones are kept.

    Frequencies between the two thresholds are interpolated.
    """

    factor: float
    """Divisor of the low frequencies."""
    low_frequency: float
    """Channels with fewer rotations than this in the original context are divided by the full factor."""
    high_frequency: float
    """Channels with more rotations than this are unchanged."""
    original_context: int
    """Context length, in tokens, before the extension."""

    def __post_init__(self) -> None:
        check_types(self)
        if not (self.factor > 0 and self.original_context > 0 and self.high_frequency > self.low_frequency):
            raise ValueError(f"the rotary factors {self} are not those of Llama 3's scaling")

    def scale(self, frequency: Tensor) -> Tensor:
        """Frequencies before scaling -> after scaling, in radians per token; any shape."""
        turns = self.original_context * frequency / (2 * math.pi)
        ramp = (turns - self.low_frequency) / (self.high_frequency - self.low_frequency)
        kept = ramp.clamp(0, 1)
        return kept * frequency + (1 - kept) * frequency / self.factor


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The shape of one decoder. Raises ValueError for values that do not fit together."""

    vocab_size: int
    """Number of tokens, rows of the embedding: V."""
    width: int
    """Channels of the residual stream: C."""
    layers: int
    """Number of blocks."""
    heads: int
    """Query heads: H."""
    kv_heads: int
    """Key and value heads; fewer than `heads` means grouped-query attention."""
    head_width: int
    """Channels per head: D."""
    hidden: int
    """Hidden channels of the MLP."""
    context: int
    """Context length: the longest sequence, in tokens."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or LayerNorm with gain and bias."""
    post_norm: bool = False
    """Normalise after each residual addition, without a final norm (GPT-1), instead of before each branch."""
    norm_eps: float = 1e-6
    """Epsilon of the norms, added to the variance."""
    learned_positions: bool = False
    """Learn a vector per position instead of using rotary positions."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies, theta^(-2i/D)."""
    rope_scaling: RopeScaling | None = None
    """Llama 3's scaling of the rotary frequencies; None for no scaling."""
    mlp: Literal["swiglu", "gelu", "relu2"] = "swiglu"
    """Gated SiLU, GELU in its tanh approximation, or squared ReLU."""
    qk_norm: bool = False
    """RMS-normalise each head's queries and keys (Qwen3)."""
    biases: bool = False
    """Biases in every linear map of the blocks (GPT-1 to GPT-3)."""
    qkv_bias: bool = False
    """Biases for queries, keys and values only (Qwen2)."""
    tied: bool = True
    """Use the embedding as the output head, too."""
    band: int = 0
    """In banded layers, attend only to the last `band` tokens; 0 means dense attention in all layers."""
    band_every: int = 2
    """Which layers are banded: 2 for every second one, the odd ones (GPT-3), 1 for all (Mistral)."""

    @property
    def bands(self) -> tuple[int, ...]:
        """Per layer, the number of tokens that a token attends to, itself included; 0 means all."""
        return tuple(0 if (i + 1) % self.band_every else self.band for i in range(self.layers))

    def __post_init__(self) -> None:
        check_types(self)
        for name in SIZES:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.band < 0 or self.norm_eps < 0 or self.rope_theta <= 0:
            raise ValueError(
                f"band {self.band}, epsilon {self.norm_eps} and theta {self.rope_theta} must not be negative"
            )
        channels = self.heads * self.head_width
        if self.learned_positions and channels != self.width:
            raise ValueError(
                f"{self.heads} heads of {self.head_width} channels make {channels}, not the width of {self.width}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly")
        if self.head_width % 2 and not self.learned_positions:
            raise ValueError(f"rotary positions rotate pairs of channels, but a head has {self.head_width}")
