"""Model folders: transformers loads them and computes the same numbers; files that do not fit give one-line errors."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from tutelage.errors import InputError
from tutelage.model.heads import ScalarGPT
from tutelage.runs.adapter import lighten
from tutelage.runs.device import Device
from tutelage.runs.folder import load_policy, load_scorer, same_tokenizer, save_policy, save_scorer
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.sampler import generate, inference_copy
from tutelage.text.bpe import train_bpe
from tutelage.text.tokenizer import Tokenizer

IDS = torch.tensor([[15, 17, 260, 33, 8, 120, 77, 201, 9, 45], [61, 22, 22, 290, 14, 15, 16, 99, 100, 33]])
CPU = Device(torch.device("cpu"), torch.float32, 1, "the tests")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_computes_our_logits(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, tied: bool) -> None:
    ours = make_gpt(tied=tied, rope_theta=500.0, norm_eps=1e-5)
    save_policy(tmp_path, ours, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)
    assert theirs.generation_config.eos_token_id == tokenizer.end_of_turn_id
    assert theirs.generation_config.pad_token_id == tokenizer.pad_id


def test_what_is_saved_names_every_end(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As with Llama 3.1, where several ids end an answer: transformers stops at all of them, and so does a reload."""
    several = Tokenizer(tokenizer._backend, tokenizer.settings, ends=(2, 0))
    save_policy(tmp_path, make_gpt(), several)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id == [5, 2, 0]
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == 5
    assert load_policy(tmp_path, CPU)[1].end_ids == (5, 2, 0)
    (tmp_path / "generation_config.json").unlink()
    assert load_policy(tmp_path, CPU)[1].end_ids == (5, 2, 0)


def test_we_load_what_transformers_saved(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_policy(tmp_path / "ours", make_gpt(), tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    ours, _ = load_policy(tmp_path / "theirs", CPU)
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)


FAMILIES = {
    "modern": "Qwen3", "llama": "Llama", "qwen2": "Qwen2", "mistral": "Mistral", "gpt2": "GPT2", "gpt1": "OpenAIGPT",
}  # fmt: skip


@pytest.mark.parametrize(("family", "name"), FAMILIES.items())
def test_transformers_logit_less_the_mean_is_our_score(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, family: str, name: str
) -> None:
    shape = {"hidden": 128} if family == "gpt1" else {}
    ours = ScalarGPT(make_gpt(family, **shape), 0.37).initialise(torch.Generator().manual_seed(1))
    save_scorer(tmp_path, ours, tokenizer)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(theirs).__name__ == f"{name}ForSequenceClassification" and theirs.num_labels == 1
    lengths = torch.tensor([10, 6])  # theirs reads the last token that is no PAD
    ids = torch.where(torch.arange(10) < lengths[:, None], IDS, tokenizer.pad_id)
    logits = theirs(ids, attention_mask=(ids != tokenizer.pad_id).long()).logits[:, 0]
    expected = logits - json.loads((tmp_path / "config.json").read_text())["reward_mean"]
    torch.testing.assert_close(ours.at(ids, lengths - 1), expected, atol=1e-4, rtol=1e-4)
    loaded, _ = load_scorer(tmp_path, CPU)
    assert torch.equal(loaded.at(ids, lengths - 1), ours.at(ids, lengths - 1))


def test_shards_are_one_model(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Shards as transformers writes them. A shard that is missing or outside the folder is refused."""
    save_policy(tmp_path / "whole", make_gpt(tied=False), tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval()
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    tokenizer.save(tmp_path / "shards")
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 2
    ours, _ = load_policy(tmp_path / "shards", CPU)
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)
    shards[1].unlink()
    with pytest.raises(InputError, match="missing"):
        load_policy(tmp_path / "shards", CPU)
    index = tmp_path / "shards" / "model.safetensors.index.json"
    edit_json(index, weight_map={"model.norm.weight": "../whole/model.safetensors"})
    with pytest.raises(InputError, match="outside the folder"):
        load_policy(tmp_path / "shards", CPU)


def test_a_pickle_is_not_opened(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_policy(tmp_path, make_gpt(), tokenizer)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="pytorch_model.bin, a pickle"):
        load_policy(tmp_path, CPU)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [303, 400, 600])
def test_rows_of_no_token_are_kept_and_never_sampled(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, rows: int, tied: bool
) -> None:
    """The rows beyond the tokens copy likely tokens, so a sampler over all rows would draw them at once."""
    model = make_gpt("llama", vocab_size=rows, tied=tied)
    with torch.no_grad():
        model.head_weight[300:] = 3 * model.head_weight[: rows - 300]
    save_policy(tmp_path, model, tokenizer)
    edit_json(tmp_path / "config.json", vocabulary_sha256=None)  # as in folders that others wrote
    loaded, _ = load_policy(tmp_path, CPU)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(loaded(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)
    assert float(loaded(IDS)[..., 300:].max()) > float(loaded(IDS)[..., :300].max())
    for settings in (dict(), dict(temperature=0.0), dict(top_p=0.9), dict(frequency_penalty=1.0), dict(min_p=0.1)):
        sampling = SamplingConfig(max_tokens=12, **settings)  # type: ignore[arg-type]
        for model in (loaded, inference_copy(loaded)):
            drawn = generate(model, IDS.tolist(), range(8), 5, sampling, samples=4)
            assert max(token for group in drawn for one in group for token in one.ids) < 300


def test_a_model_with_twice_as_many_rows_as_tokens_is_taken_for_another(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_policy(tmp_path, make_gpt(vocab_size=601), tokenizer)
    load_policy(tmp_path, CPU)  # its hash says that the tokenizer is its own
    edit_json(tmp_path / "config.json", vocabulary_sha256=None)
    with pytest.raises(InputError, match="601 tokens, tokenizer.json has 300"):
        load_policy(tmp_path, CPU)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_head_that_differs_from_its_tied_embedding_is_kept(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, family: str
) -> None:
    """transformers warns and keeps both; config.json alone would make the embedding the head."""
    save_policy(tmp_path, make_gpt(family, tied=False), tokenizer)
    edit_json(tmp_path / "config.json", tie_word_embeddings=True)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ours, words = load_policy(tmp_path, CPU)
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)
    save_policy(tmp_path / "again", ours, words)
    assert torch.equal(load_policy(tmp_path / "again", CPU)[0](IDS), ours(IDS))


def test_a_policy_comes_back_bit_for_bit(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ours = make_gpt()
    save_policy(tmp_path, ours, tokenizer)
    loaded, restored = load_policy(tmp_path, CPU)
    assert torch.equal(loaded(IDS), ours(IDS)) and loaded.config == ours.config
    assert restored.encode("the cat") == tokenizer.encode("the cat")
    loaded.blocks[0].mlp.down.weight.data.zero_()  # the folder's file is not mapped into the model
    assert load_file(tmp_path / "model.safetensors")["model.layers.0.mlp.down_proj.weight"].any()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "binary"])
def test_damage_is_one_line(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, name: str, damage: str) -> None:
    save_policy(tmp_path, make_gpt(), tokenizer)
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            path.read_bytes()[: path.stat().st_size // 2] if damage == "truncated" else b"\xff\xfe\x00" * 50
        )
    with pytest.raises(InputError) as caught:
        load_policy(tmp_path, CPU)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_no_numbers_are_refused(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    """One in one tensor is enough; the error names the tensor. The largest finite numbers are weights."""
    save_scorer(tmp_path, ScalarGPT(make_gpt()).initialise(torch.Generator()), tokenizer)
    path = tmp_path / "model.safetensors"
    sound = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    for name in ("model.layers.1.mlp.down_proj.weight", "score.weight"):
        weights = {n: t.clone() for n, t in sound.items()}
        weights[name].view(-1)[-1] = value
        save_file(weights, path)
        with pytest.raises(InputError, match=f"{tmp_path}: model: {name} holds NaN or infinity"):
            load_scorer(tmp_path, CPU)
        weights[name].fill_(torch.finfo(dtype).max)
        save_file(weights, path)
        load_scorer(tmp_path, CPU)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.uint8, torch.complex64])
@pytest.mark.parametrize("tied", [True, False])
def test_tensors_of_other_types_are_refused(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, dtype: torch.dtype, tied: bool
) -> None:
    save_policy(tmp_path, make_gpt(tied=tied), tokenizer)
    path = tmp_path / "model.safetensors"
    sound = load_file(path)
    for name in ("model.layers.0.self_attn.q_proj.weight", *(() if tied else ("lm_head.weight",))):
        save_file(sound | {name: sound[name].to(dtype)}, path)
        kind = str(dtype).removeprefix("torch.")
        with pytest.raises(InputError, match=f"{name} holds numbers of type {kind}, not floating-point numbers"):
            load_policy(tmp_path, CPU)


CLAIMS = [
    {"vocab_size": 2**31 - 1}, {"hidden_size": 2**31 - 2}, {"intermediate_size": 2**31 - 1}, {"head_dim": 2**30},
    {"num_attention_heads": 2**31 - 2, "num_key_value_heads": 1}, {"num_hidden_layers": 10_000},
    {"max_position_embeddings": 2**31 - 1}, {"hidden_size": 2**62}, {"vocab_size": 10**30}, {"head_dim": 2**64},
]  # fmt: skip


@pytest.mark.parametrize("claims", CLAIMS, ids=str)
def test_sizes_that_the_file_cannot_have_cost_nothing(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, claims: dict[str, int]
) -> None:
    """They are compared with the file's content before memory is taken for them."""
    save_policy(tmp_path, make_gpt("llama"), tokenizer)
    edit_json(tmp_path / "config.json", vocabulary_sha256=None, **claims)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="come from different|asks for|from 1 to|positions; at most"):
        load_policy(tmp_path, CPU)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_fields_of_another_kind_are_refused_by_name(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Where transformers refuses them, too."""
    save_policy(tmp_path, make_gpt("llama"), tokenizer)
    sound = (tmp_path / "config.json").read_text()
    wrong: dict[str, Any] = {"hidden_size": "32", "num_attention_heads": [4], "rms_norm_eps": "small"}
    wrong |= {"vocab_size": 300.5, "num_hidden_layers": {"a": 2}, "tie_word_embeddings": "false"}
    for name, value in wrong.items():
        edit_json(tmp_path / "config.json", **{name: value})
        with pytest.raises(InputError, match=f"^{tmp_path}: model: config.json does not describe a llama .*{name} is"):
            load_policy(tmp_path, CPU)
        with pytest.raises(Exception, match=name):
            LlamaConfig(**{name: value})
        (tmp_path / "config.json").write_text(sound)
    for name in ("hidden_size", "num_hidden_layers", "vocab_size"):
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in json.loads(sound).items() if k != name}))
        with pytest.raises(InputError, match=f"without|it has no '{name}'"):
            load_policy(tmp_path, CPU)


def test_what_comes_from_different_runs_is_refused(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_policy(tmp_path, make_gpt(), tokenizer)
    train_bpe(["abab abab"], 264).save(tmp_path)
    with pytest.raises(InputError, match=r"300 tokens, tokenizer.json has 264"):
        load_policy(tmp_path, CPU)
    tokenizer.save(tmp_path)
    edit_json(tmp_path / "config.json", intermediate_size=64)
    with pytest.raises(InputError, match="the configuration asks for"):
        load_policy(tmp_path, CPU)
    edit_json(tmp_path / "config.json", intermediate_size=48, num_hidden_layers=3)
    with pytest.raises(InputError, match="lack 11 tensors"):
        load_policy(tmp_path, CPU)
    edit_json(tmp_path / "config.json", model_type="gpt_neox")
    with pytest.raises(InputError, match="gpt_neox"):
        load_policy(tmp_path, CPU)


def test_another_tokenizer_of_the_same_size_is_refused(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """It has as many ids with other meanings, so no other check would notice."""
    save_policy(tmp_path, make_gpt(), tokenizer)
    other = "quite another text, which has other words in it: mountains, rivers, glaciers, meadows, villages"
    train_bpe([other] * 5, 300).save(tmp_path)
    with pytest.raises(InputError, match="not the one this model was saved with"):
        load_policy(tmp_path, CPU)


def test_a_language_model_is_no_reward_model(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_policy(tmp_path, make_gpt(), tokenizer)
    with pytest.raises(InputError, match="not a reward model"):
        load_scorer(tmp_path, CPU)
    edit_json(tmp_path / "config.json", reward_mean=0.0)
    with pytest.raises(InputError, match="no score.weight"):
        load_scorer(tmp_path, CPU)
    save_scorer(tmp_path / "reward", ScalarGPT(make_gpt()), tokenizer)
    with pytest.raises(InputError, match="holds a reward model, not a language model"):
        load_policy(tmp_path / "reward", CPU)


def test_a_score_of_another_width_is_refused(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_scorer(tmp_path, ScalarGPT(make_gpt()), tokenizer)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"score.weight": torch.ones(2, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="score.weight"):
        load_scorer(tmp_path, CPU)


def test_two_folders_share_a_tokenizer_or_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a")
    tokenizer.save(tmp_path / "b")
    same_tokenizer(tmp_path / "a", tmp_path / "b")
    train_bpe(["abab abab"], 264).save(tmp_path / "b")
    with pytest.raises(InputError, match="tokenizers differ"):
        same_tokenizer(tmp_path / "a", tmp_path / "b")


def test_a_classifier_of_transformers_is_a_scorer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A one-label classifier made by transformers: no reward_mean in its config, no lm_head in its file."""
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, num_labels=1, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    theirs = LlamaForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    ours, _ = load_scorer(tmp_path, CPU)
    torch.testing.assert_close(ours(IDS)[:, -1], theirs(IDS).logits[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "family, changes", [("gpt3", {}), ("gpt1", {"band": 3}), ("modern", {"qkv_bias": True, "tied": False})]
)
def test_what_no_library_has_is_kept_in_our_own_format(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    """GPT-3 has biases of queries, keys and values; GPT-Neo, the nearest model in transformers, has none."""
    ours = make_gpt(family, **changes)
    save_policy(tmp_path / "model", ours, tokenizer)
    again, _ = load_policy(tmp_path / "model", CPU)
    assert again.config == ours.config and torch.equal(again.eval()(IDS), ours(IDS))
    scorer = ScalarGPT(ours, 0.25).initialise(torch.Generator().manual_seed(1))
    save_scorer(tmp_path / "scorer", scorer, tokenizer)
    loaded, _ = load_scorer(tmp_path / "scorer", CPU)
    assert torch.equal(loaded.eval()(IDS), scorer(IDS))
    edit_json(tmp_path / "model/config.json", kv_heads=3)
    with pytest.raises(InputError, match="does not describe a tutelage decoder"):
        load_policy(tmp_path / "model", CPU)


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
def test_frozen_matrices_are_read_into_the_compute_precision(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, family: str, saved: torch.dtype
) -> None:
    """The same numbers as casting after loading in fp32; parameters that training keeps in fp32 stay in fp32."""
    bf16 = Device(torch.device("cpu"), torch.bfloat16, 1, "the tests")
    tied = family in ("gpt1", "gpt3")
    scorer = ScalarGPT(make_gpt(family, tied=tied), 0.3).initialise(torch.Generator().manual_seed(0))
    save_policy(tmp_path / "policy", scorer.trunk, tokenizer)
    save_scorer(tmp_path / "scorer", scorer, tokenizer)
    for folder in (tmp_path / "policy", tmp_path / "scorer"):
        path = folder / "model.safetensors"
        save_file({name: t.to(saved) for name, t in load_file(path).items()}, path, {"format": "pt"})
    late, early = load_policy(tmp_path / "policy", bf16)[0], load_policy(tmp_path / "policy", bf16, frozen=True)[0]
    late_scorer, early_scorer = (load_scorer(tmp_path / "scorer", bf16, frozen)[0] for frozen in (False, True))
    lighten(late.requires_grad_(False))
    lighten(late_scorer.requires_grad_(False).trunk)
    for one, other in ((late, early), (late_scorer, early_scorer)):
        for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
            assert q.dtype == (torch.bfloat16 if p.ndim == 2 and name != "score.weight" else torch.float32), name
            assert torch.equal(p, q) and p.dtype == q.dtype and vars(p).keys() == vars(q).keys(), name
    exact = load_policy(tmp_path / "policy", CPU, frozen=True)[0]
    assert all(
        torch.equal(p, q) for p, q in zip(exact.parameters(), load_policy(tmp_path / "policy", CPU)[0].parameters())
    )
