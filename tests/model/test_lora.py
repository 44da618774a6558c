"""Low-rank adapters against the paper's definition and parameter counts, and properties that they must have."""

import copy

import pytest
import torch

from tutelage.learning.head import next_token_loss
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.model.lora import (
    ALL,
    LoRAConfig,
    adapted_linears,
    adapters_off,
    add_adapters,
    frozen_depth,
    merge_adapters,
    shallow_copy,
    without_adapters,
)
from tutelage.model.parameters import trainable

IDS = torch.tensor([[5, 17, 26, 33, 8, 12, 7, 20], [6, 2, 2, 29, 14, 15, 16, 9]])
MODERN = dict(
    vocab_size=40, width=32, layers=2, heads=4, kv_heads=2, head_width=8, hidden=48, context=16, qk_norm=True,
)  # fmt: skip
CLASSIC = dict(
    vocab_size=40, width=32, layers=2, heads=4, kv_heads=4, head_width=8, hidden=64, context=16, norm="layer",
    learned_positions=True, mlp="gelu", biases=True,
)  # fmt: skip


def make(shape: dict[str, object] = MODERN) -> GPT:
    model = GPT(GPTConfig(**shape))  # type: ignore[arg-type]
    return model.initialise(torch.Generator().manual_seed(0))


def shake(model: GPT) -> GPT:
    """Give every B a value, as training would."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for _, _, adapter in adapted_linears(model):
            for up in adapter.up:
                up.copy_(0.1 * torch.randn(up.shape, generator=generator))
    return model


def adapt(model: GPT, **settings: object) -> GPT:
    return add_adapters(model, LoRAConfig(**settings), torch.Generator().manual_seed(1))  # type: ignore[arg-type]


def loss_of(model: GPT) -> torch.Tensor:
    return next_token_loss(model.trunk(IDS[:, :-1]).flatten(0, 1), model.head_weight, IDS[:, 1:].flatten())


@pytest.mark.parametrize("shape", [MODERN, CLASSIC])
def test_training_begins_at_the_base_bit_for_bit(shape: dict[str, object]) -> None:
    model = make(shape)
    before = model(IDS)
    targets = ALL if shape is MODERN else tuple(name for name in ALL if name != "gate")
    assert torch.equal(adapt(model, targets=targets)(IDS), before)


def test_an_adapted_map_is_the_papers_formula() -> None:
    model = shake(adapt(make(), rank=3, alpha=12.0, targets=("q", "v", "up")))
    for name, linear, adapter in adapted_linears(model):
        x = torch.randn(5, linear.in_features, generator=torch.Generator().manual_seed(2))
        rows = {"q": (0, 32), "v": (48, 64)} if "qkv" in name else {"up": (48, 96)}
        expected = x @ linear.weight.T
        for which, (first, last) in rows.items():
            a, b = adapter.map(which)
            assert a.shape == (3, 32) and b.shape == (last - first, 3)
            expected[:, first:last] += 12.0 / 3 * (x @ a.T @ b.T)
        torch.testing.assert_close(linear(x), expected)


def test_switched_off_it_is_the_base_bit_for_bit_and_on_again_after() -> None:
    model = make()
    before = model(IDS)
    adapted = shake(adapt(model, targets=ALL))
    after = adapted(IDS)
    assert not torch.allclose(after, before, atol=1e-3)
    with adapters_off(adapted):
        assert torch.equal(adapted(IDS), before)
    assert torch.equal(adapted(IDS), after)


def test_at_the_start_only_b_has_a_gradient() -> None:
    model = adapt(make(), targets=ALL)
    loss_of(model).backward()
    for _, _, adapter in adapted_linears(model):
        assert adapter.down.grad is not None and adapter.down.grad.abs().max() == 0
        assert all(up.grad is not None and up.grad.abs().max() > 0 for up in adapter.up)


def test_training_moves_adapters_only_and_within_their_rank() -> None:
    model = adapt(make(), rank=2, targets=ALL)
    base = {name: p.clone() for name, p in model.named_parameters() if ".adapter." not in name}
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    for _, _, adapter in adapted_linears(model):
        for update in adapter.update().split(adapter.rows):
            assert torch.linalg.matrix_rank(update, rtol=1e-5) <= 2


@pytest.mark.parametrize("shape", [MODERN, CLASSIC])
def test_merged_is_the_same_function_without_adapters(shape: dict[str, object]) -> None:
    targets = ("q", "k", "v", "out", "up", "down")
    adapted = shake(adapt(make(shape), rank=4, targets=targets))
    expected = adapted(IDS)
    merged = merge_adapters(copy.deepcopy(adapted))
    torch.testing.assert_close(merged(IDS), expected, atol=1e-5, rtol=0)
    assert merged.state_dict().keys() == make(shape).state_dict().keys()


def test_a_full_rank_adapter_can_become_any_update() -> None:
    adapted = adapt(make(), rank=32, alpha=32.0, targets=("q",))
    wanted = torch.randn(32, 32, generator=torch.Generator().manual_seed(3))
    _, linear, adapter = next(adapted_linears(adapted))
    a, b = adapter.map("q")
    with torch.no_grad():
        b.copy_(wanted @ torch.linalg.inv(a))
    update = adapter.update()
    torch.testing.assert_close(update[:32], wanted, atol=1e-3, rtol=1e-3)
    assert update[32:].abs().max() == 0


def big(layers: int, width: int, heads: int) -> GPT:
    with torch.device("meta"):
        return GPT(
            GPTConfig(
                vocab_size=50_257, width=width, layers=layers, heads=heads, kv_heads=heads, head_width=width // heads,
                hidden=4 * width, context=1024, norm="layer", learned_positions=True, mlp="gelu", biases=True,
            )
        )  # fmt: skip


@pytest.mark.parametrize(
    "layers, width, heads, rank, count",
    [
        (96, 12_288, 96, 1, 4_718_592),  # GPT-3, the paper's table 4: 4.7M
        (96, 12_288, 96, 8, 37_748_736),  # 37.7M
        (12, 768, 12, 4, 147_456),  # GPT-2 small
        (24, 1024, 16, 4, 393_216),  # GPT-2 medium
    ],
)
def test_as_many_numbers_to_train_as_the_paper_counts(
    layers: int, width: int, heads: int, rank: int, count: int
) -> None:
    model = big(layers, width, heads)
    with torch.device("meta"):
        add_adapters(model, LoRAConfig(rank=rank), None)  # type: ignore[arg-type]
    assert sum(p.numel() for p in trainable(model).values()) == count


def test_dropout_is_on_the_adapters_input_and_only_in_training() -> None:
    model = shake(adapt(make(), rank=4, dropout=0.5, targets=("q",)))
    _, linear, adapter = next(adapted_linears(model))
    x = torch.ones(4000, 32)
    model.train()
    torch.manual_seed(0)

    def added() -> torch.Tensor:
        return adapter(x, torch.zeros(len(x), linear.out_features))[:, :32]

    noisy = added()
    model.eval()
    plain = added()
    assert torch.equal(added(), plain)
    torch.testing.assert_close(noisy.mean(0), plain.mean(0), atol=0.05, rtol=0)
    assert noisy.std(0).min() > 0


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(targets=("query",)), "'query' is not a linear map"),
        (dict(targets=()), "for 0 maps: both must be at least 1"),
        (dict(rank=0), "rank 0"),
        (dict(dropout=1.0), "dropout"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LoRAConfig(**settings)  # type: ignore[arg-type]


def test_a_map_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="no map 'gate'"):
        adapt(make(CLASSIC), targets=("q", "gate"))


def test_adapters_in_the_top_layers_only() -> None:
    """The blocks below have nothing to train; a model that is trained as a whole has a frozen depth of 0."""
    model = make({**MODERN, "layers": 3})
    assert frozen_depth(model) == 0
    adapt(model, layers=1)
    assert {path.split(".")[1] for path, _, _ in adapted_linears(model)} == {"2"}
    assert frozen_depth(model) == 2
    assert frozen_depth(adapt(make({**MODERN, "layers": 3}))) == 0
    with pytest.raises(ValueError, match="top 4 layers: this model has 3"):
        adapt(make({**MODERN, "layers": 3}), layers=4)


def test_a_copy_shares_what_is_frozen_and_merging_it_leaves_the_original_alone() -> None:
    model = shake(adapt(make(), layers=1))
    before, weights = model(IDS), {name: p.clone() for name, p in model.named_parameters()}
    merged = merge_adapters(shallow_copy(model))
    torch.testing.assert_close(merged(IDS), before, atol=1e-5, rtol=1e-5)
    assert merged.embedding.weight is model.embedding.weight
    assert merged.blocks[0].mlp.up.weight is model.blocks[0].mlp.up.weight
    assert torch.equal(model(IDS), before)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    base = without_adapters(model)
    with adapters_off(model):
        assert torch.equal(base(IDS), model(IDS))
    assert not list(adapted_linears(base)) and list(adapted_linears(model))
