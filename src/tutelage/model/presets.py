"""Shapes of the models in the GPT papers.

    published(size) -> GPTConfig;  named_shape(size, vocab_size, context) -> the same for another vocabulary and context

GPT-1 (Radford et al. 2018, section 4.1), GPT-2 (2019, table 2), GPT-3 (Brown et al. 2020, table 2.1). Two rows of the
GPT-3 table are inconsistent: XL has 24 heads of 128 with a width of 2,048, and 13B 40 heads of 128 with a width of
5,140. We use 16 heads and a width of 5,120, as Stiennon et al. 2020 (table 3) do for the same models. The band of
GPT-3's odd layers is not published; ours is an eighth of the context.
"""

from dataclasses import replace
from typing import Any

from tutelage.model.config import GPTConfig

GPT2_VOCABULARY, GPT1_VOCABULARY = 50_257, 40_478
# Name: layers, width, heads.
ROWS = {
    "gpt1": (12, 768, 12),
    "gpt2": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "gpt2-large": (36, 1280, 20),
    "gpt2-xl": (48, 1600, 25),
    "gpt3-small": (12, 768, 12),
    "gpt3-medium": (24, 1024, 16),
    "gpt3-large": (24, 1536, 16),
    "gpt3-xl": (24, 2048, 16),
    "gpt3-2.7b": (32, 2560, 32),
    "gpt3-6.7b": (32, 4096, 32),
    "gpt3-13b": (40, 5120, 40),
    "gpt3-175b": (96, 12288, 96),
}


def published(size: str) -> GPTConfig:
    """The shape of a model as published. Raises KeyError for a name that is not in `ROWS`."""
    layers, width, heads = ROWS[size]
    family = size.partition("-")[0]
    context = {"gpt1": 512, "gpt2": 1024, "gpt3": 2048}[family]
    extra: dict[str, dict[str, Any]] = {"gpt1": {"post_norm": True}, "gpt3": {"band": context // 8}}
    return GPTConfig(
        vocab_size=GPT1_VOCABULARY if family == "gpt1" else GPT2_VOCABULARY,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        hidden=4 * width,
        context=context,
        norm="layer",
        norm_eps=1e-5,
        learned_positions=True,
        mlp="gelu",
        biases=True,
        **extra.get(family, {}),
    )


def named_shape(size: str, vocab_size: int, context: int) -> GPTConfig:
    """A published shape with another vocabulary and context; the band, if any, becomes an eighth of that context."""
    shape = published(size)
    return replace(shape, vocab_size=vocab_size, context=context, band=max(1, context // 8) if shape.band else 0)
