"""The decoder: one hidden state and one row of logits per token.

    ids (B, L) -> trunk -> hidden (B, L, C) -> logits (B, L, V)

The configuration of this one class makes it a GPT-1 (Radford et al. 2018: post-norm, learned positions), a GPT-2 (2019:
pre-norm, scaled residual initialisation), a GPT-3 (Brown et al. 2020: every second layer attends to a band) or a
current model (Qwen3: RMSNorm, rotary positions, grouped queries, normalised queries and keys, SwiGLU).
Ours: query, key and value are stored as one matrix, and so are gate and up, because one large product is faster than
several small ones; `families.py` splits them for other libraries. The initialisation of GPT-2's residual branches
counts two residual additions per block, as in nanoGPT.

Shapes: B sequences, L tokens, C width, H heads, D channels per head, V vocabulary.
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
    """A linear map computed in its input's precision; the weights keep their own (fp32 in training).

    An `adapter` (`lora.py`) receives input and output, and adds to the output in place. The constructor leaves the
    weights uninitialised: for a model of 135M parameters, drawing values that loading then overwrites takes longer than
    reading the file.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__(in_features, out_features, bias)
        self.adapter: nn.Module | None = None

    def reset_parameters(self) -> None:
        """Do nothing: see the class docstring."""

    def forward(self, input: Tensor) -> Tensor:
        mapped = product(input, self.weight, self.bias)
        return mapped if self.adapter is None else self.adapter(input, mapped)


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) * gain over the last axis. Output in the input's precision, computed in fp32."""

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
    """One row per token or position, uninitialised until `GPT.initialise` or loading."""

    def reset_parameters(self) -> None:
        """Do nothing: see `Linear`."""


def make_norm(config: GPTConfig, width: int) -> nn.Module:
    return RMSNorm(width, config.norm_eps) if config.norm == "rms" else LayerNorm(width, config.norm_eps)


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021): channel i of a head is paired with channel i + D/2, as in Llama and Qwen."""

    def __init__(self, head_width: int, context: int, theta: float, scaling: RopeScaling | None = None):
        super().__init__()
        # Computed on the CPU even under the meta device, where torch would spend a second on imports for this.
        frequency = theta ** -(torch.arange(0, head_width, 2, dtype=torch.float64, device="cpu") / head_width)
        frequency = scaling.scale(frequency) if scaling else frequency
        angle = torch.outer(torch.arange(context, dtype=torch.float64, device="cpu"), frequency).repeat(1, 2)
        sign = torch.ones(head_width, device="cpu")
        sign[: head_width // 2] = -1.0
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", (angle.sin() * sign).float(), persistent=False)

    def at(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines at positions (L,) or (B, L): (L, 1, D) or (B, L, 1, D), with an axis for heads."""
        cos, sin = self.get_buffer("cos")[positions], self.get_buffer("sin")[positions]
        return cos.to(dtype).unsqueeze(-2), sin.to(dtype).unsqueeze(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of channels of x (B, L, H, D) by the angle of its position."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


class Attention(nn.Module):
    """Causal self-attention with grouped queries, optionally with normalised queries and keys."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.config = config
        self.layer = layer
        q, kv = config.heads * config.head_width, config.kv_heads * config.head_width
        self.qkv = Linear(config.width, q + 2 * kv, bias=config.biases or config.qkv_bias)
        self.qkv.weight.parts = [q, kv, kv]  # type: ignore[attr-defined]  # rows of query, key and value
        self.out = Linear(q, config.width, bias=config.biases)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_width, config.norm_eps)
            self.k_norm = RMSNorm(config.head_width, config.norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: Cache | None, first: int = 0
    ) -> Tensor:
        """(B, L, C) -> (B, L - first, C): all tokens give keys and values, those from `first` on give queries."""
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
    """The position-wise feed-forward half of a block: (B, L, C) -> (B, L, C)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.kind = config.mlp
        rows = [config.hidden] * (2 if config.mlp == "swiglu" else 1)
        self.up = Linear(config.width, sum(rows), bias=config.biases)
        self.up.weight.parts = rows  # type: ignore[attr-defined]  # rows of gate and up
        self.down = Linear(config.hidden, config.width, bias=config.biases)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        if self.kind == "swiglu":
            return self.down(SwiGLU.apply(h) if torch.is_grad_enabled() else gated(h))
        return self.down(F.gelu(h, approximate="tanh") if self.kind == "gelu" else F.relu(h).square())


class Block(nn.Module):
    """x + attention, then x + MLP, with a norm before each branch or after each addition (GPT-1)."""

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
        """(B, L, C) -> (B, L - first, C): tokens before `first` only give keys and values."""
        if self.post_norm:
            x = self.attention_norm(x[:, first:] + self.attention(x, rope, mask, cache, first))
            return self.mlp_norm(x + self.mlp(x))
        x = x[:, first:] + self.attention(self.attention_norm(x), rope, mask, cache, first)
        return x + self.mlp(self.mlp_norm(x))


class ResidualStream(NamedTuple):
    """The residual stream after the lowest blocks, computed once for all models that share these blocks."""

    x: Tensor  # (B, L, C)
    layers: int  # number of blocks it has passed through
    source: Tensor  # the embedding weight it was computed with; only a model with the same object may continue from it


class GPT(nn.Module):
    """The decoder. Weights are fp32; `compute_dtype` is the precision of activations and products."""

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.tokens = config.vocab_size  # fewer if the last rows of the embedding belong to no token: never sampled
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
        """Draw normal weights of std 0.02, or 0.02 / sqrt(2 layers) for the maps that write to the residual stream.

        Gains start at 1, biases at 0.
        """
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
        stream: ResidualStream | None = None,
        first: int = 0,
    ) -> Tensor:
        """Hidden states (B, L - first, C) after the final norm, of the tokens from `first` on.

        ids (B, L); positions (L,) or (B, L), by default 0..L-1 plus the cache's length; mask (B, 1, L, S), True = may
        attend, by default causal. Causal is enough for right-padded rows: no real token attends to a pad.
        Given a `stream` of the same ids, the blocks it has passed through are skipped.
        """
        layers = slice(stream.layers if stream else 0, None)
        x = self._run_blocks(layers, ids, positions, mask, cache, stream, first)
        if cache is not None:
            cache.advance(ids.shape[1])
        # The top block has dropped the tokens before `first`, unless `stream` has passed through all blocks.
        return self.final_norm(x[:, first - ids.shape[1] :])

    def lower(
        self,
        ids: Tensor,
        layers: int,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> ResidualStream:
        """Run ids (B, L) through the lowest `layers` blocks only; `trunk` can continue from the result.

        Call `trunk` with the same ids, positions, mask and cache. The cache advances there, not here.
        """
        x = self._run_blocks(slice(layers), ids, positions, mask, cache, None)
        return ResidualStream(x, layers, self.embedding.weight)

    def _run_blocks(
        self,
        layers: slice,
        ids: Tensor,
        positions: Tensor | None,
        mask: Tensor | None,
        cache: Cache | None,
        stream: ResidualStream | None,
        first: int = 0,
    ) -> Tensor:
        """The residual stream (B, L, C) after these blocks, starting from the embedding or from `stream`.

        The top block of the model returns only the tokens from `first` on: (B, L - first, C).
        """
        if positions is None:
            start = 0 if cache is None else cache.length
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        if stream is not None:
            assert stream.source is self.embedding.weight, "the stream comes from another model"
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
        for band, block in list(zip(self.config.bands, self.blocks, strict=True))[layers]:
            x = block(x, rope, banded if band else mask, cache, first if block is top else 0)
        return x

    def _banded(self, positions: Tensor, mask: Tensor | None) -> Tensor:
        """The mask of banded layers without a cache: j <= i and i - j < band, and allowed by `mask`.

        The band is measured in positions, not in columns: if several responses share a row (`shared_prefix.py`), each
        one's distance to the prompt is that in its own text.
        """
        i = torch.arange(positions.shape[-1], device=positions.device)
        distance = positions[..., :, None] - positions[..., None, :]
        near = (i <= i[:, None]) & (distance < self.config.band)
        near = near.view(-1, 1, *near.shape[-2:])  # (1, 1, L, L), or (B, 1, L, L) for positions (B, L)
        return near if mask is None else mask & near

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., C) -> logits (..., V), in the precision of `hidden`."""
        return product(hidden, self.head_weight, None)

    def forward(self, ids: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Logits (B, L, V); row t predicts token t + 1."""
        return self.logits(self.trunk(ids, positions, mask))
