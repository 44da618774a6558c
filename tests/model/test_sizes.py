"""The published sizes: exact parameter counts, shapes that are refused, and the loss before training."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.model.parameters import parameter_count
from tutelage.model.presets import ROWS, named_shape, published

COUNTS = {  # by hand: N(12d^2 + 13d) + Vd + ctx d, plus 2d for the final norm if there is one
    "gpt1": 116_534_784,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3-small": 125_226_240,
    "gpt3-medium": 355_871_744,
    "gpt3-large": 760_300_032,
    "gpt3-xl": 1_315_723_264,
    "gpt3-2.7b": 2_651_553_280,
    "gpt3-6.7b": 6_658_404_352,
    "gpt3-13b": 12_853_386_240,
    "gpt3-175b": 174_604_259_328,
}


def gpt(layers: int, width: int, heads: int, **changes: Any) -> GPTConfig:
    shape: dict[str, Any] = dict(
        vocab_size=50_257, width=width, layers=layers, heads=heads, kv_heads=heads, head_width=width // heads,
        hidden=4 * width, context=1024, norm="layer", norm_eps=1e-5, learned_positions=True, mlp="gelu", biases=True,
    )  # fmt: skip
    return GPTConfig(**(shape | changes))


def counted(config: GPTConfig) -> int:
    with torch.device("meta"):  # needs no memory, so 175B is as quick as the others
        return parameter_count(GPT(config))


@pytest.mark.parametrize("size", ROWS)
def test_published_sizes(size: str) -> None:
    assert counted(published(size)) == COUNTS[size]


def test_gpt3_has_a_band_in_every_second_layer_and_the_others_none() -> None:
    assert [(published(size).band, published(size).band_every) for size in ROWS if size.startswith("gpt3")] == [
        (256, 2)
    ] * 8
    assert not any(published(size).band for size in ROWS if not size.startswith("gpt3"))
    assert named_shape("gpt3-small", 300, 64).band == 8


@pytest.mark.parametrize(("width", "heads", "head_width"), [(2048, 24, 128), (5140, 40, 128)])
def test_rows_of_the_gpt3_table_that_do_not_add_up_are_refused(width: int, heads: int, head_width: int) -> None:
    """Brown et al. 2020, table 2.1 prints 24 heads of 128 for a width of 2,048, and 40 of 128 for 5,140."""
    with pytest.raises(
        ValueError, match=f"{heads} heads of {head_width} channels make {heads * head_width}, not the width of {width}"
    ):
        gpt(24, width, heads, head_width=head_width)


def test_other_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="4 heads cannot share 3"):
        gpt(1, 32, 4, kv_heads=3)
    with pytest.raises(ValueError, match="pairs of channels"):
        gpt(1, 28, 4, head_width=7, learned_positions=False)


@pytest.mark.parametrize(("vocab_size", "expected"), [(50_257, 10.8249), (40_478, 10.6085), (256, 5.5452)])
@pytest.mark.parametrize("rotary", [False, True])
def test_before_training_every_token_is_as_likely(vocab_size: int, expected: float, rotary: bool) -> None:
    changes: dict[str, Any] = dict(norm="rms", mlp="swiglu", biases=False, qk_norm=True, learned_positions=False)
    config = gpt(2, 64, 4, vocab_size=vocab_size, context=32, **(changes if rotary else {}))
    generator = torch.Generator().manual_seed(0)
    model = GPT(config).initialise(generator)
    ids = torch.randint(vocab_size, (4, 32), generator=generator)
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert float(loss.detach()) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("layers", [2, 8])
def test_initial_weights_are_those_of_gpt2_with_scaled_residuals(layers: int) -> None:
    model = GPT(gpt(layers, 128, 4, vocab_size=500)).initialise(torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == (1.0 if name.endswith("norm.weight") else 0.0)).all(), name
            continue
        writes_to_stream = name.endswith(("attention.out.weight", "mlp.down.weight"))
        expected = 0.02 / (2 * layers) ** 0.5 if writes_to_stream else 0.02
        assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.03), name


def test_the_residual_stream_does_not_grow_with_depth() -> None:
    """The blocks together add as much after 32 layers as after 2; without scaling, four times as much."""

    def added(layers: int) -> float:
        model = GPT(gpt(layers, 64, 4, vocab_size=256)).initialise(torch.Generator().manual_seed(0))
        seen: list[torch.Tensor] = []
        model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model.blocks[-1].register_forward_hook(lambda _, inputs, output: seen.append(output))
        model(torch.arange(32)[None])
        return float((seen[1] - seen[0]).detach().std())

    assert 0.7 < added(32) / added(2) < 1.6
