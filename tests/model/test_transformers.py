"""Every family against transformers' class: the same weights give the same logits and text, in both directions.

The expected values are always theirs. All weights are random, gains and biases too.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from theirs import CASES, IDS, LLAMA3, make_theirs, read

from tutelage.errors import InputError
from tutelage.model.families import load_hf_weights, to_hf_weights
from tutelage.model.gpt import GPT
from tutelage.model.hf_config import from_hf_config, to_hf_config
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.sampler import generate

NEVER = -1  # an end of turn that no text contains


@pytest.fixture(params=CASES)
def theirs(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield make_theirs(request.param)


@pytest.fixture
def ours(theirs: Any, tmp_path: Path) -> GPT:
    theirs.save_pretrained(tmp_path / "theirs")
    return read(tmp_path / "theirs")


def test_logits_are_theirs(theirs: Any, ours: GPT) -> None:
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)


def test_a_padded_row_is_theirs(theirs: Any, ours: GPT) -> None:
    """Their row left-padded, with the positions that their `generate` uses, against ours without padding."""
    mask = torch.tensor([[0, 0, 0] + [1] * 7, [1] * 10])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = theirs(IDS, attention_mask=mask, position_ids=positions).logits[0, 3:]
        torch.testing.assert_close(ours(IDS[:1, 3:])[0], logits, atol=1e-4, rtol=1e-4)


def test_greedy_text_is_theirs(theirs: Any, ours: GPT) -> None:
    """Ours with a cache, alone and in a ragged batch; theirs one row at a time, without a cache."""
    prompts = [IDS[0].tolist(), IDS[1, :4].tolist(), IDS[0, 3:9].tolist()]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(12):
            with torch.no_grad():
                ids.append(int(theirs(torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(ids[len(prompt) :])
    greedy = SamplingConfig(max_tokens=12, temperature=0)
    together = [a.ids for (a,) in generate(ours, prompts, range(3), NEVER, greedy)]
    alone = [generate(ours, [prompt], [0], NEVER, greedy)[0][0].ids for prompt in prompts]
    assert together == alone == expected


def test_what_we_write_they_load(theirs: Any, ours: GPT, tmp_path: Path) -> None:
    """Their class loads all tensors and gives the same logits, and we can read the folder again."""
    folder = tmp_path / "ours"
    folder.mkdir()
    save_file(
        {n: t.contiguous() for n, t in to_hf_weights(ours).items()}, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(to_hf_config(ours.config)))
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=1e-4)
        assert torch.allclose(read(folder)(IDS), ours(IDS), atol=1e-5)
    assert from_hf_config(to_hf_config(ours.config)) == ours.config


def test_gradients_are_theirs_too() -> None:
    theirs = make_theirs("qwen3")
    ours = GPT(from_hf_config(theirs.config.to_dict()))
    load_hf_weights(ours, theirs.state_dict())
    labels = IDS.clone()
    labels[:, :4] = -100  # the prompt does not count in the loss
    theirs(IDS, labels=labels).loss.backward()
    loss = torch.nn.functional.cross_entropy(ours(IDS)[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100)
    loss.backward()
    torch.testing.assert_close(ours.embedding.weight.grad, theirs.model.embed_tokens.weight.grad, atol=1e-5, rtol=1e-3)
    q, k, v = ours.blocks[0].attention.qkv.weight.grad.split([48, 24, 24])
    for mine, name in ((q, "q_proj"), (k, "k_proj"), (v, "v_proj")):
        expected = getattr(theirs.model.layers[0].self_attn, name).weight.grad
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-3)


def test_older_folders(tmp_path: Path) -> None:
    """OpenAI's files of 2019 have no prefix but masks; before transformers 5 the rope settings were two fields."""
    theirs = make_theirs("gpt2")
    old = {n.removeprefix("transformer."): t for n, t in theirs.state_dict().items() if n != "lm_head.weight"}
    old |= {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(2)}
    ours = GPT(from_hf_config(theirs.config.to_dict())).eval()
    load_hf_weights(ours, old)
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)
    new = make_theirs("llama3").config.to_dict()
    before = {k: v for k, v in new.items() if k != "rope_parameters"} | {
        "rope_theta": 500.0,
        "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"},
    }
    assert from_hf_config(before) == from_hf_config(new)
    del before["rope_theta"], before["rope_scaling"], before["head_dim"]
    plain = from_hf_config(before)
    assert (plain.rope_theta, plain.rope_scaling, plain.head_width) == (10_000.0, None, 8)


REFUSED = [
    ("bloom", {}, "family 'bloom' is not supported"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
    ("llama", {"attention_bias": True}, "attention_bias is True"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 4.0}}, "type 'yarn'"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True"),
    ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ("gpt_neo", {"attention_types": [[["global"], 4]]}, "does not alternate dense and banded layers"),
    ("qwen3", {"num_key_value_heads": 3}, "does not describe a qwen3 decoder"),
    ("qwen3", {"hidden_size": None}, "does not describe a qwen3 decoder"),
]


@pytest.mark.parametrize(("kind", "changes", "line"), REFUSED, ids=[line for _, _, line in REFUSED])
def test_settings_that_would_change_a_number_are_refused(kind: str, changes: dict[str, Any], line: str) -> None:
    case = {"gpt_neo": "gpt3", "bloom": "llama"}.get(kind, kind)
    config = make_theirs(case).config.to_dict() | {"model_type": kind} | changes
    with pytest.raises(InputError, match=line):
        from_hf_config(config)


def test_shapes_without_a_class_are_not_written(make_gpt: Any) -> None:
    for shape in (dict(family="modern", band=4), dict(family="gpt1", band=4), dict(family="modern", mlp="relu2"),
                  dict(family="gpt1", hidden=48), dict(family="modern", qkv_bias=True)):  # fmt: skip
        with pytest.raises(InputError, match="no class"):
            to_hf_config(make_gpt(**shape).config)
    with pytest.raises(InputError, match="q_proj.bias is not 0; GPT-Neo"):
        to_hf_weights(make_gpt("gpt3"))


def test_foreign_weights_are_refused(make_gpt: Any) -> None:
    model = make_gpt()
    weights = to_hf_weights(model)
    with pytest.raises(InputError, match="lack 1 tensors .model.norm.weight"):
        load_hf_weights(model, {n: t for n, t in weights.items() if n != "model.norm.weight"})
    with pytest.raises(InputError, match="1 unknown ones .lm_head.weight"):
        load_hf_weights(model, weights | {"lm_head.weight": torch.zeros(300, 32)})
    with pytest.raises(InputError, match=r"model.norm.weight is \(31,\), the configuration asks for \(32,\)"):
        load_hf_weights(model, weights | {"model.norm.weight": torch.zeros(31)})
