"""The decoder: token ids in, one hidden state and one row of logits per token out.

    ids (B, L) -> trunk -> hidden (B, L, C) -> logits (B, L, V)

One class, and its configuration makes it a GPT-1 (Radford et al. 2018: post-norm, learned positions), a GPT-2 (2019:
pre-norm, scaled residual init), a GPT-3 (Brown et al. 2020: every other layer attends to a band) or a model of today
(Qwen3: RMSNorm, rotary positions, grouped queries, normalised queries and keys, SwiGLU). Ours: query, key and value
share one matrix, and so do gate and up, because one large product is faster than three small ones; `families.py`
splits them for other libraries. Residual scaling counts two additions per block (nanoGPT's reading of GPT-2).

B sequences, L tokens, C width, H heads, D width of a head, V vocabulary.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.model.attention import attend
from tutelage.model.config import GPTConfig, RopeScaling
from tutelage.model.gradients import FrozenRMSNorm, SwiGLU, gated
from tutelage.model.kv_cache import Cache
from tutelage.model.prepack import product


class Linear(nn.Linear):
    """A linear map computed in its input's precision; the weights themselves stay as they are (fp32 to train).

    `adapter`, if there is one, is given input and output and adds to the output itself (`lora.py`). The weights have no
    values until they are initialised or loaded: of a model of 135M parameters, drawing some that are then overwritten
    takes longer than reading it.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__(in_features, out_features, bias)
        self.adapter: nn.Module | None = None

    def reset_parameters(self) -> None:
        """Nothing is drawn here."""

    def forward(self, input: Tensor) -> Tensor:
        mapped = product(input, self.weight, self.bias)
        return mapped if self.adapter is None else self.adapter(input, mapped)


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) * gain over the last axis, in the input's precision outside and fp32 inside."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        gain = self.weight.to(x.dtype)
        if torch.is_grad_enabled() and not gain.requires_grad:
            return FrozenRMSNorm.apply(x, gain, self.eps)
        return F.rms_norm(x, (x.shape[-1],), gain, self.eps)


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in its input's precision."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(
            input, self.normalized_shape, self.weight.to(input.dtype), self.bias.to(input.dtype), self.eps
        )


class Embedding(nn.Embedding):
    """A row per token or position, without values until it is initialised or loaded."""

    def reset_parameters(self) -> None:
        """Nothing is drawn here."""


def make_norm(config: GPTConfig, width: int) -> nn.Module:
    return RMSNorm(width, config.norm_eps) if config.norm == "rms" else LayerNorm(width, config.norm_eps)


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021): channel i of a head turns with channel i + D/2, as in Llama and Qwen."""

    def __init__(self, head_width: int, context: int, theta: float, scaling: RopeScaling | None = None):
        super().__init__()
        # On the CPU even where shapes alone are asked for (the meta device), which imports a second of torch for this.
        frequency = theta ** -(torch.arange(0, head_width, 2, dtype=torch.float64, device="cpu") / head_width)
        frequency = scaling.scale(frequency) if scaling else frequency
        angle = torch.outer(torch.arange(context, dtype=torch.float64, device="cpu"), frequency).repeat(1, 2)
        sign = torch.ones(head_width, device="cpu")
        sign[: head_width // 2] = -1.0
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", (angle.sin() * sign).float(), persistent=False)

    def at(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines for positions (L,) or (B, L), with an axis for the heads."""
        cos, sin = self.get_buffer("cos")[positions], self.get_buffer("sin")[positions]
        return cos.to(dtype).unsqueeze(-2), sin.to(dtype).unsqueeze(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels of x (B, L, H, D) by its position's angle."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


class Attention(nn.Module):
    """Causal self-attention with grouped queries."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.config = config
        self.layer = layer
        q, kv = config.heads * config.head_width, config.kv_heads * config.head_width
        self.qkv = Linear(config.width, q + 2 * kv, bias=config.biases or config.qkv_bias)
        self.qkv.weight.parts = [q, kv, kv]  # type: ignore[attr-defined]  # rows of the three maps stored as one
        self.out = Linear(q, config.width, bias=config.biases)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_width, config.norm_eps)
            self.k_norm = RMSNorm(config.head_width, config.norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: Cache | None, first: int = 0
    ) -> Tensor:
        """What the tokens from `first` on see: (B, L, C) -> (B, L - first, C)."""
        B, L, _ = x.shape
        c = self.config
        qkv = self.qkv(x).view(B, L, c.heads + 2 * c.kv_heads, c.head_width)
        q, k, v = qkv.split([c.heads, c.kv_heads, c.kv_heads], dim=2)
        q = q[:, first:]
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            cos, sin = rope
            q, k = rotate(q, cos[..., first:, :, :], sin[..., first:, :, :]), rotate(k, cos, sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, L, D)
        mask = None if mask is None else mask[..., first:, :]
        y = attend(q, k, v, mask) if cache is None else cache.attend(self.layer, q, k, v, mask)
        return self.out(y.transpose(1, 2).reshape(B, L - first, -1))


class MLP(nn.Module):
    """The position-wise half of a block."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.kind = config.mlp
        rows = [config.hidden] * (2 if config.mlp == "swiglu" else 1)
        self.up = Linear(config.width, sum(rows), bias=config.biases)
        self.up.weight.parts = rows  # type: ignore[attr-defined]  # gate, then up
        self.down = Linear(config.hidden, config.width, bias=config.biases)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        if self.kind == "swiglu":
            return self.down(SwiGLU.apply(h) if torch.is_grad_enabled() else gated(h))
        return self.down(F.gelu(h, approximate="tanh") if self.kind == "gelu" else F.relu(h).square())


class Block(nn.Module):
    """x + attention, then x + MLP; the norm stands before each branch, or after each addition (GPT-1)."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.post_norm = config.post_norm
        self.attention_norm = make_norm(config, config.width)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config, config.width)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: Cache | None, first: int = 0
    ) -> Tensor:
        """(B, L, C) -> (B, L - first, C): the tokens before `first` are only looked at."""
        if self.post_norm:
            x = self.attention_norm(x[:, first:] + self.attention(x, rope, mask, cache, first))
            return self.mlp_norm(x + self.mlp(x))
        x = x[:, first:] + self.attention(self.attention_norm(x), rope, mask, cache, first)
        return x + self.mlp(self.mlp_norm(x))


class Stream(NamedTuple):
    """The residual stream as it leaves the lowest blocks: what models that share these need not compute again."""

    x: Tensor  # (B, L, C)
    layers: int  # how many blocks it has passed
    source: Tensor  # the embedding it comes from: only a model with this very one may go on from here


class GPT(nn.Module):
    """The decoder. Weights are fp32; `compute_dtype` is the precision of activations and products."""

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.embedding = Embedding(config.vocab_size, config.width)
        if config.learned_positions:
            self.positions = Embedding(config.context, config.width)
        else:
            self.rotary = Rotary(config.head_width, config.context, config.rope_theta, config.rope_scaling)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))
        self.final_norm = nn.Identity() if config.post_norm else make_norm(config, config.width)
        if not config.tied:
            self.head = Linear(config.width, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """(V, C): the matrix that turns a hidden state into logits."""
        return self.embedding.weight if self.config.tied else self.head.weight

    def initialise(self, generator: torch.Generator) -> "GPT":
        """Normal weights of std .02; branches that write to the residual stream are scaled by 1/sqrt(2 layers)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
                continue
            residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
            std = 0.02 / math.sqrt(2 * self.config.layers) if residual else 0.02
            nn.init.normal_(parameter, std=std, generator=generator)
        return self

    def trunk(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        stream: Stream | None = None,
        first: int = 0,
    ) -> Tensor:
        """Hidden states (B, L - first, C) after the final norm: those of the tokens from `first` on.

        ids (B, L); positions (L,) or (B, L), default 0..L-1 after what the cache holds; mask (B, 1, L, S), True where
        a token may look, default plain causal (enough for right-padded rows, whose pads nobody real looks at).
        With a stream of the same ids the blocks it has passed are not run again.
        """
        x = self._through(slice(stream.layers if stream else 0, None), ids, positions, mask, cache, stream, first)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.final_norm(
            x[:, first - ids.shape[1] :]
        )  # where the stream has passed all blocks nothing is cut yet

    def lower(
        self, ids: Tensor, layers: int, positions: Tensor | None = None, mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Stream:  # fmt: skip
        """What `trunk` may go on from, which is asked the same: ids (B, L) through the lowest `layers` blocks."""
        return Stream(self._through(slice(layers), ids, positions, mask, cache, None), layers, self.embedding.weight)

    def _through(
        self, which: slice, ids: Tensor, positions: Tensor | None, mask: Tensor | None, cache: Cache | None,
        stream: Stream | None, first: int = 0,
    ) -> Tensor:  # fmt: skip
        """The residual stream (B, L, C) through some of the blocks, from the embedding or from where `stream` is.

        Out of the topmost block only the tokens from `first` on come: (B, L - first, C).
        """
        if positions is None:
            start = 0 if cache is None else cache.length
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        if stream is not None:
            assert stream.source is self.embedding.weight, "the stream of another model"
            x = stream.x
        else:
            x = self.embedding(ids).to(self.compute_dtype)
            if self.config.learned_positions:
                x = x + self.positions(positions).to(self.compute_dtype)
        rope = None if self.config.learned_positions else self.rotary.at(positions, self.compute_dtype)
        banded = mask
        if self.config.band:
            banded = self._banded(positions, mask) if cache is None else cache.banded(ids.shape[1], mask)
        top = self.blocks[-1]
        for band, block in list(zip(self.config.bands, self.blocks, strict=True))[which]:
            x = block(x, rope, banded if band else mask, cache, first if block is top else 0)
        return x

    def _banded(self, positions: Tensor, mask: Tensor | None) -> Tensor:
        """The mask of banded layers without a cache: j <= i and i - j < band, within what `mask` already allows.

        The band is counted in positions: where several answers share a row, all are near their prompt (`forked.py`).
        """
        i = torch.arange(positions.shape[-1], device=positions.device)
        distance = positions[..., :, None] - positions[..., None, :]
        near = (i <= i[:, None]) & (distance < self.config.band)  # (L, S), or (B, L, S) where rows have their own
        near = near.view(-1, 1, *near.shape[-2:])
        return near if mask is None else mask & near

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V), in the precision of `hidden`."""
        return product(hidden, self.head_weight, None)

    def forward(self, ids: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Logits (B, L, V); row t predicts token t + 1."""
        return self.logits(self.trunk(ids, positions, mask))
