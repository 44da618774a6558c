"""Properties that every family of decoder has, and each part against its definition written out."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.model.gpt import GPT, MLP, RMSNorm, Rotary, rotate
from tutelage.sampling.prefill import prefill

IDS = torch.tensor([[5, 17, 260, 33, 8, 120, 77, 201, 9, 45], [61, 2, 2, 290, 14, 15, 16, 99, 100, 3]])


def test_the_future_changes_nothing(make_gpt: Any, family: str) -> None:
    """Bit for bit, not approximately."""
    model = make_gpt(family)
    before = model(IDS)
    for j in range(1, IDS.shape[1]):
        edited = IDS.clone()
        edited[:, j] = (edited[:, j] + 1) % 300
        after = model(edited)
        assert torch.equal(after[:, :j], before[:, :j])
        assert not torch.equal(after[:, j], before[:, j])


def test_no_gradient_comes_from_the_future(make_gpt: Any, family: str) -> None:
    model = make_gpt(family)
    state = model.embedding(IDS).detach().requires_grad_()
    model.embedding.forward = lambda ids: state
    (gradient,) = torch.autograd.grad(model.trunk(IDS)[:, 4].square().sum(), state)
    reaches = gradient.abs().sum(-1)
    assert (reaches[:, 5:] == 0).all() and (reaches[:, :5] > 0).any()


def test_padding_is_invisible(make_gpt: Any, family: str) -> None:
    """A row by itself, right-padded, and left-padded with its own positions and mask."""
    model = make_gpt(family)
    row, pad = IDS[:1, :6], torch.full((1, 4), 1)
    alone = model(row)
    torch.testing.assert_close(model(torch.cat([row, pad], 1))[:, :6], alone, atol=1e-5, rtol=1e-5)
    real = torch.tensor([[False] * 4 + [True] * 6])
    mask = torch.ones(10, 10, dtype=torch.bool).tril() & real[:, None, None, :] | torch.eye(10, dtype=torch.bool)
    positions = (torch.arange(10) - 4).clamp(min=0)[None]
    left = model(torch.cat([pad, row], 1), positions, mask)
    torch.testing.assert_close(left[:, 4:], alone, atol=1e-5, rtol=1e-5)


def test_attention_by_definition(make_gpt: Any) -> None:
    """One pre-norm block in plain algebra: softmax(QK'/sqrt d)V per head, tanh GELU, biases, final norm."""
    model = make_gpt("gpt2", layers=1)
    b = model.blocks[0]
    c = model.config

    def norm(x: Tensor, layer: Any) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    x = model.embedding.weight[IDS[0]] + model.positions.weight[:10]
    q, k, v = (norm(x, b.attention_norm) @ b.attention.qkv.weight.T + b.attention.qkv.bias).split(c.width, dim=-1)
    heads = []
    for h in range(c.heads):
        at = slice(h * c.head_width, (h + 1) * c.head_width)
        scores = q[:, at] @ k[:, at].T / math.sqrt(c.head_width)
        scores = scores + torch.full((10, 10), -1e9).triu(1)
        heads.append(scores.exp() / scores.exp().sum(-1, keepdim=True) @ v[:, at])
    x = x + torch.cat(heads, -1) @ b.attention.out.weight.T + b.attention.out.bias
    h = norm(x, b.mlp_norm) @ b.mlp.up.weight.T + b.mlp.up.bias
    h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    x = x + h @ b.mlp.down.weight.T + b.mlp.down.bias
    expected = norm(x, model.final_norm) @ model.embedding.weight.T
    torch.testing.assert_close(model(IDS[:1])[0], expected, atol=1e-4, rtol=1e-4)


def test_rotary_positions_are_relative(make_gpt: Any) -> None:
    model = make_gpt("modern")
    here, there = model(IDS, torch.arange(10)), model(IDS, torch.arange(10) + 37)
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
    apart = model(IDS, torch.arange(10) * 3)
    assert (here - apart).abs().max() > 0.1


def test_rotary_by_complex_numbers() -> None:
    """Channels i and i + D/2 are a complex number, rotated by position * theta^(-2i/D)."""
    rotary, generator = Rotary(8, 16, 10_000.0), torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 2, 8, generator=generator)
    y = rotate(x, *rotary.at(torch.arange(16), torch.float32))
    turn = torch.polar(torch.ones(16, 4), torch.outer(torch.arange(16.0), 10_000.0 ** (-torch.arange(0, 8, 2) / 8)))
    expected = torch.complex(x[..., :4], x[..., 4:]) * turn[None, :, None]
    torch.testing.assert_close(y, torch.cat([expected.real, expected.imag], -1))
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(y[:, 0], x[:, 0])  # position 0 is the identity


def test_grouped_queries_are_repeated_keys(make_gpt: Any) -> None:
    grouped, full = make_gpt(kv_heads=2), make_gpt(kv_heads=4)
    full.load_state_dict({n: p for n, p in grouped.state_dict().items() if "qkv" not in n}, strict=False)
    for theirs, ours in zip(full.blocks, grouped.blocks):
        q, k, v = ours.attention.qkv.weight.data.split([48, 24, 24])
        k, v = (w.view(2, 12, 32).repeat_interleave(2, 0).view(48, 32) for w in (k, v))
        theirs.attention.qkv.weight.data = torch.cat([q, k, v])
    torch.testing.assert_close(grouped(IDS), full(IDS), atol=1e-5, rtol=1e-5)


def test_mlps_by_definition(make_gpt: Any) -> None:
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    for kind, by_hand in (
        ("swiglu", lambda h: F.silu(h[:, :48]) * h[:, 48:]),
        ("relu2", lambda h: h.clamp(min=0) ** 2),
    ):
        mlp = make_gpt(mlp=kind).blocks[0].mlp
        assert isinstance(mlp, MLP)
        torch.testing.assert_close(mlp(x), by_hand(x @ mlp.up.weight.T) @ mlp.down.weight.T)


def test_rms_norm_sees_no_scale() -> None:
    norm, x = RMSNorm(8, 1e-6), torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    norm.weight.data = torch.arange(1.0, 9.0)
    torch.testing.assert_close(norm(x), x / x.square().mean(-1, keepdim=True).sqrt() * torch.arange(1.0, 9.0))
    torch.testing.assert_close(norm(1000 * x), norm(x), atol=1e-4, rtol=1e-4)


def test_post_norm_blocks_are_normalised(make_gpt: Any) -> None:
    """At gain 1 and bias 0; the output of a pre-norm block is not normalised."""
    for family, normalised in (("gpt1", True), ("gpt2", False)):
        model = make_gpt(family)
        for block in model.blocks:
            block.mlp_norm.weight.data.fill_(1.0)
            block.mlp_norm.bias.data.zero_()
        seen: list[Tensor] = []
        for block in model.blocks:
            block.register_forward_hook(lambda _, inputs, output, seen=seen: seen.append(output))
        model(IDS)
        for x in seen:
            centred = bool((x.mean(-1).abs() < 1e-5).all() and ((x.var(-1, unbiased=False) - 1).abs() < 1e-3).all())
            assert centred == normalised


def test_without_positions_and_mask_order_is_invisible(make_gpt: Any) -> None:
    """Permuting the tokens permutes the logits."""
    model = make_gpt("gpt2")
    model.positions.weight.data.zero_()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(1, 1, 10, 10, dtype=torch.bool)
    shuffled = model(IDS[:, order], mask=everything)
    torch.testing.assert_close(shuffled, model(IDS, mask=everything)[:, order], atol=1e-5, rtol=1e-5)


def test_zero_output_maps_make_a_block_the_identity(make_gpt: Any) -> None:
    block = make_gpt("gpt2").blocks[0]
    for linear in (block.attention.out, block.mlp.down):
        linear.weight.data.zero_()
        linear.bias.data.zero_()
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x, None, None, None), x)


def test_a_tied_head_is_the_embedding_and_sums_both_gradients(make_gpt: Any) -> None:
    """The tied gradient is that of an untied model's embedding plus that of its head."""
    tied, untied = make_gpt("gpt2"), make_gpt("gpt2", tied=False)
    assert tied.head_weight is tied.embedding.weight
    untied.load_state_dict(tied.state_dict() | {"head.weight": tied.embedding.weight}, strict=True)
    for model in (tied, untied):
        F.cross_entropy(model(IDS).flatten(0, 1), IDS.flatten()).backward()
    torch.testing.assert_close(tied.embedding.weight.grad, untied.embedding.weight.grad + untied.head.weight.grad)


@pytest.mark.parametrize("family", ["gpt2", "modern"])
def test_gradients_against_finite_differences(make_gpt: Any, family: str) -> None:
    """In float64."""
    shape = dict(width=8, heads=2, kv_heads=2, head_width=4, hidden=12, vocab_size=11, layers=1, context=8)
    model: GPT = make_gpt(family, dtype=torch.float64, **shape).double()
    ids = torch.tensor([[3, 7, 1, 10]])
    names = [name for name, _ in model.named_parameters()]

    def forward(*parameters: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, parameters)), (ids,))

    inputs = tuple(p.detach().clone().requires_grad_() for p in model.parameters())
    assert torch.autograd.gradcheck(forward, inputs, fast_mode=True)


def test_one_batch_can_be_memorised(make_gpt: Any) -> None:
    model = make_gpt("modern").initialise(torch.Generator().manual_seed(0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.01


def test_bf16_activations_come_from_fp32_weights(make_gpt: Any) -> None:
    exact, rough = make_gpt("modern"), make_gpt("modern", dtype=torch.bfloat16)
    logits = rough(IDS)
    assert logits.dtype == torch.bfloat16 and all(p.dtype == torch.float32 for p in rough.parameters())
    assert 1e-6 < (logits.float() - exact(IDS)).abs().mean().item() < 0.1


def test_the_top_block_returns_the_last_tokens_only(make_gpt: Any, family: str) -> None:
    """The last states are those of a full pass: plain, masked, with a cache and from a stream."""
    model, ids = make_gpt(family), IDS
    mask = torch.ones(10, 10, dtype=torch.bool).tril()[None, None].repeat(2, 1, 1, 1)
    mask[1, :, 3:, :3] = False  # the second row does not attend to its first three tokens
    positions = torch.stack([torch.arange(10), (torch.arange(10) - 3).clamp(min=0)])
    for arguments in (
        {},
        {"positions": positions, "mask": mask},
        {"stream": model.lower(ids, 1)},
        {"stream": model.lower(ids, len(model.blocks))},
    ):
        expected = model.trunk(ids, **arguments)
        torch.testing.assert_close(model.trunk(ids, **arguments, first=6), expected[:, 6:], atol=1e-5, rtol=1e-5)
    caches = [prefill(model, ids[:, :4].tolist(), 6).cache for _ in range(2)]
    last, every = (
        model.trunk(ids[:, 4:], cache=cache, first=first) for cache, first in zip(caches, (3, 0), strict=True)
    )
    torch.testing.assert_close(last, every[:, 3:], atol=1e-5, rtol=1e-5)


def test_the_top_block_computes_the_last_tokens_only(make_gpt: Any, family: str) -> None:
    """Slicing its output would give the same numbers but save nothing."""
    model, widths = make_gpt(family), []
    for block in model.blocks:
        block.mlp.register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[1]))
    model.trunk(IDS, first=6)
    assert widths == [10] * (len(model.blocks) - 1) + [4]
