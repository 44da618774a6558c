"""The recipe from an imported base model, on a toy size: adapters in every stage, the same report.

Needs the packages of the extra [demo]. The base is a random model saved by transformers.
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from tutelage.recipe.demo import Start, steps
from tutelage.recipe.preset import BASED
from tutelage.text.bpe import train_bpe

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("chitchat_dataset", "chatterbot_corpus", "networkx")),
    reason="the packages of the extra [demo] are not installed",
)
STAGES = ["data", "import", "sft", "rank", "reward", "ppo", "ppo-ptx", "evaluate", "report"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama folder that pads with its end-of-turn token, as many do."""
    folder = tmp_path_factory.mktemp("elsewhere") / "tiny"
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    train_bpe(
        ["hello there, how are you? I am fine, thank you. what do you do? I like music and my dog."] * 40, 300
    ).save(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": settings["eos_token"]}))
    return folder


def test_the_whole_recipe_from_a_base(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "tutelage", "demo", "--preset", "toy", "--base", str(base), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "set the padding token to <|pad|>" in done.stdout
    assert re.findall(r"^ ?\d/9 ([a-z-]+) +\d+:\d\d", done.stdout, re.MULTILINE) == STAGES
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["stages"]) == STAGES and summary["total_seconds"] > 0
    assert set(summary["models"]) == {"base", "sft", "best-of-4", "best-of-16", "ppo", "ppo-ptx"}
    assert all(row["nats_under_base"] > 0 for row in summary["models"].values())
    page = (out / "report.html").read_text()
    assert "was trained elsewhere: llama" in page and "Tokenizer</" not in page
    theirs, ours = load_file(base / "model.safetensors"), load_file(out / "imported" / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for stage, on in (("sft", "imported"), ("ppo-ptx", "sft")):  # PEFT combines base and adapter into the run's model
        parent = transformers.AutoModelForCausalLM.from_pretrained(out / on)
        adapted = peft.PeftModel.from_pretrained(parent, out / stage / "adapter").eval()
        expected = transformers.AutoModelForCausalLM.from_pretrained(out / stage)
        ids = torch.arange(20)[None]
        torch.testing.assert_close(adapted(ids).logits, expected(ids).logits, atol=1e-3, rtol=1e-3)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stdout.count("already done") == len(STAGES) - 1


def test_own_demonstrations_and_text_are_used(tmp_path: Path) -> None:
    mine, text = tmp_path / "mine.jsonl", tmp_path / "text.jsonl"
    plan = {s.name: s for s in steps(tmp_path / "out", BASED["demo"], 0, Start(tmp_path, (mine,), (text,)))}
    assert mine in plan["sft"].inputs["demos"] and len(plan["sft"].inputs["demos"]) == 2  # type: ignore[operator, arg-type]
    assert plan["ppo-ptx"].inputs["corpus"] == (text,)
    assert all(plan[name].config.lora_rank > 0 for name in ("sft", "reward", "ppo", "ppo-ptx"))  # type: ignore[union-attr]


def test_a_base_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    for name in ("runs/nosuch", "nosuch.gguf", str(tmp_path / "nosuch")):
        done = subprocess.run(
            [sys.executable, "-m", "tutelage", "demo", "--base", name, "--out", str(tmp_path / "out")],
            capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and name in done.stderr, done.stderr
