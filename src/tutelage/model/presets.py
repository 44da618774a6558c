"""Shapes of the models that the GPT papers print.

    published(size) -> GPTConfig;  named_shape(size, vocab_size, context) -> the same for another vocabulary and context

GPT-1 (Radford et al. 2018, section 4.1), GPT-2 (2019, table 2), GPT-3 (Brown et al. 2020, table 2.1). Two rows of the
last do not add up: XL has 24 heads of 128 for a width of 2,048, and 13B has a width of 5,140 for 40 heads of 128. Here
they are 16 heads and a width of 5,120, as Stiennon et al. 2020 (table 3) list the same models. The band of GPT-3's odd
layers is not published: an eighth of the context.
"""

from dataclasses import replace
from typing import Any

from tutelage.model.config import GPTConfig

GPT2_VOCABULARY, GPT1_VOCABULARY = 50_257, 40_478
ROWS = {  # name: layers, width, heads
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
    """The model as its paper has it. Raises KeyError for a name that is none of `ROWS`."""
    layers, width, heads = ROWS[size]
    family = size.partition("-")[0]
    vocabulary, context = {"gpt1": (GPT1_VOCABULARY, 512), "gpt2": (GPT2_VOCABULARY, 1024)}.get(
        family, (GPT2_VOCABULARY, 2048)
    )
    own: dict[str, dict[str, Any]] = {"gpt1": {"post_norm": True}, "gpt3": {"band": context // 8}}
    return GPTConfig(
        vocab_size=vocabulary, width=width, layers=layers, heads=heads, kv_heads=heads, head_width=width // heads,
        hidden=4 * width, context=context, norm="layer", norm_eps=1e-5, learned_positions=True, mlp="gelu",
        biases=True, **own.get(family, {}),
    )  # fmt: skip


def named_shape(size: str, vocab_size: int, context: int) -> GPTConfig:
    """A published shape with another vocabulary and context; a band stays an eighth of the context."""
    shape = published(size)
    return replace(shape, vocab_size=vocab_size, context=context, band=max(1, context // 8) if shape.band else 0)
