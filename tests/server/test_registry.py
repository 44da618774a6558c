"""The registry: names, shared engines, adapters beside their base, reward models, loading and unloading."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tutelage.engine.engine import EngineConfig
from tutelage.engine.requests import Done, Event, Request, Token
from tutelage.errors import InputError
from tutelage.model.heads import ScalarGPT
from tutelage.model.lora import LoRAConfig, add_adapters, merge_adapters
from tutelage.runs.adapter import save_adapter
from tutelage.runs.device import Device
from tutelage.runs.folder import load_policy, load_scorer, save_policy, save_scorer
from tutelage.sampling.distribution import DistributionConfig, SamplingConfig
from tutelage.sampling.sampler import generate, inference_copy
from tutelage.server.api.scores import encode
from tutelage.server.registry import Registry, Served
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

DEVICE = Device(torch.device("cpu"), torch.float32, 1, "tests")
PROMPT = (5, 17, 260, 33, 8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, make_gpt: Any, tokenizer: Tokenizer) -> Path:
    """base; red: only an adapter; blue: an adapter and its merged weights; judge: a reward model."""
    folder = tmp_path_factory.mktemp("runs")
    save_policy(folder / "base", make_gpt("llama", vocab_size=tokenizer.vocab_size), tokenizer)
    for seed, name in enumerate(["red", "blue"]):
        model = adapted(folder / "base", seed)
        save_adapter(folder / name / "adapter", model, folder / "base")
        tokenizer.save(folder / name)
        if name == "blue":
            save_policy(folder / name, merge_adapters(model), tokenizer)
    judge = ScalarGPT(make_gpt("llama", vocab_size=tokenizer.vocab_size, seed=7), mean=0.5)
    save_scorer(folder / "judge", judge.initialise(torch.Generator().manual_seed(0)), tokenizer)
    return folder


def adapted(base: Path, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    model = add_adapters(load_policy(base, DEVICE)[0], LoRAConfig(rank=2, targets=("q", "up")), generator)
    for path, parameter in model.named_parameters():
        if ".adapter.up" in path:
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return model


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry(DEVICE, EngineConfig(slots=4, memory=16))
    yield registry
    registry.close()
    assert not registry.engines and not registry.names()


def answer(served: Served) -> list[int]:
    events: Queue[Event] = Queue()
    assert served.engine
    served.engine.submit(Request(PROMPT, 6, DistributionConfig(temperature=0), 0, adapter=served.adapter), events.put)
    ids = []
    while not isinstance(event := events.get(timeout=30), Done):
        assert isinstance(event, Token)
        ids.append(event.id)
    return ids


def expected(run: Path) -> list[int]:
    """What the sampler generates with the run, loaded as a training stage loads it."""
    model = inference_copy(load_policy(run, DEVICE)[0])
    return generate(model, [PROMPT], [0], -1, SamplingConfig(max_tokens=6, temperature=0))[0][0].ids


def test_models_have_the_names_of_their_runs_or_given_ones(registry: Registry, runs: Path) -> None:
    first, again = registry.load(f"{runs}/base"), registry.load(f"twin={runs}/base")
    assert registry.names() == ["base", "twin"] and registry.get("twin") is again
    assert first.engine is again.engine and first.fingerprint == again.fingerprint
    assert first.fingerprint.startswith("fp_") and first.created > 1.7e9 and first.context == 64
    assert answer(first) == expected(runs / "base")
    with pytest.raises(InputError, match="a model named base is already served"):
        registry.load(f"{runs}/base/")
    with pytest.raises(InputError, match="no such folder"):
        registry.load(f"{runs}/nowhere")
    with pytest.raises(InputError, match="give NAME=RUN"):
        registry.load(f"={runs}/base")
    assert registry.names() == ["base", "twin"]


def test_spare_rows_of_an_embedding_are_tokens_without_text(
    registry: Registry, make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Embeddings may have more rows than there are tokens. At a high temperature such rows are drawn, too."""
    rows = tokenizer.vocab_size + 2
    save_policy(tmp_path / "padded", make_gpt("llama", vocab_size=rows), tokenizer)
    table = registry.load(str(tmp_path / "padded")).table
    assert len(table) == rows and table[-2:] == [b""] * 2
    assert b"".join(table[token] for token in tokenizer.encode("the cat 你好")).decode() == "the cat 你好"


def test_adapters_share_the_weights_of_their_base(registry: Registry, runs: Path) -> None:
    red, base, blue = (registry.load(f"{runs}/{name}") for name in ("red", "base", "blue"))
    assert red.engine is base.engine is blue.engine and len(registry.engines) == 1
    answers = [answer(served) for served in (red, base, blue)]
    assert answers == [expected(runs / name) for name in ("red", "base", "blue")]
    assert len({tuple(ids) for ids in answers}) == 3
    assert len({served.fingerprint for served in (red, base, blue)}) == 3
    registry.unload("base")
    registry.unload("red")
    assert answer(blue) == answers[2]
    assert base.engine and "red" not in base.engine.adapters.named


def test_an_adapter_that_changes_the_embedding_is_served_from_its_own_weights(registry: Registry, runs: Path) -> None:
    """As PEFT writes it: the embedding of the base cannot be shared with it."""
    tensors = load_file(runs / "red/adapter/adapter_model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for side, shape in (("A", (2, 300)), ("B", (32, 2))):
        name = f"base_model.model.model.embed_tokens.lora_embedding_{side}"
        tensors[name] = 0.5 * torch.randn(shape, generator=generator)
    (runs / "green").mkdir()
    save_file(tensors, runs / "green/adapter_model.safetensors")
    config = json.loads((runs / "red/adapter/adapter_config.json").read_text())
    (runs / "green/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "../base"}))
    base, green = registry.load(f"{runs}/base"), registry.load(f"{runs}/green")
    assert green.engine is not base.engine and green.adapter == ""
    assert answer(green) == expected(runs / "green") != expected(runs / "red")


def test_a_merged_run_without_its_base_is_served_from_its_own_weights(registry: Registry, runs: Path) -> None:
    blue = registry.load(f"{runs}/blue")
    assert blue.adapter == "" and answer(blue) == expected(runs / "blue")


def test_what_is_unloaded_is_gone(registry: Registry, runs: Path) -> None:
    engine = registry.load(f"{runs}/base").engine
    registry.unload("base")
    assert engine and engine.closing and not registry.engines
    with pytest.raises(KeyError):
        registry.get("base")
    assert answer(registry.load(f"{runs}/base")) == expected(runs / "base")


def test_a_reward_model_scores_whole_conversations(registry: Registry, runs: Path) -> None:
    judge = registry.load(f"fair={runs}/judge")
    assert (judge.kind, judge.engine, judge.context) == ("reward", None, 64)
    said = ["hello there", "the cat sat on the mat", "I am fine"] * 12
    conversations = [
        [{"role": "user", "content": "how are you?"}, {"role": "assistant", "content": text}] for text in said
    ]
    texts = asyncio.run(encode(judge, conversations, "somebody"))
    found = registry.score("fair", texts)
    model, tokenizer = load_scorer(runs / "judge", DEVICE)
    for messages, score in zip(conversations, found, strict=True):
        ids = encode_chat(tokenizer, messages).ids
        last = max(i for i, token in enumerate(ids) if token == tokenizer.end_of_turn_id)
        with torch.no_grad():
            assert score == pytest.approx(float(model(torch.tensor([ids]))[0, last]), abs=1e-4)
    registry.load(f"{runs}/base")
    with pytest.raises(InputError, match="not a reward model"):
        registry.score("base", texts)
    with pytest.raises(KeyError):
        registry.score("nobody", texts)


def test_a_run_that_cannot_be_read_leaves_nothing_behind(registry: Registry, runs: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "adapter"
    broken.mkdir(parents=True)
    for path in (runs / "red" / "adapter").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "adapter_config.json").write_text(
        (broken / "adapter_config.json").read_text().replace("../../base", str(runs / "base"))
    )
    (broken / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="adapter_model.safetensors"):
        registry.load(str(tmp_path / "broken"))
    assert not registry.engines and not registry.names()
