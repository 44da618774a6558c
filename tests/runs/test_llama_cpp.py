"""llama.cpp itself loads our GGUF files and writes the same greedy text (through the npm package node-llama-cpp).

`make test-slow` installs it where npm is; elsewhere these are skipped.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as BackendTokenizer

from tutelage.model.config import RopeScaling
from tutelage.model.gpt import GPT
from tutelage.recipe.preset import DEMO
from tutelage.runs.gguf_file import read_gguf, write_gguf
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.sampler import generate
from tutelage.text.gguf_vocabulary import RULES
from tutelage.text.tokenizer import Tokenizer

PLACE = Path(sys.prefix) / "llama-cpp"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PLACE / "node_modules").is_dir(), reason="node-llama-cpp is not installed (npm is needed)"),
]

# Reads {"file", "prompts", "count", "text"} from its input, prints the greedy tokens after each prompt, and how it
# cuts the text.
PROGRAM = """
import {getLlama} from "node-llama-cpp";
const asked = JSON.parse(await new Promise(done => {
  let text = ""; process.stdin.on("data", part => text += part).on("end", () => done(text));
}));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath: asked.file});
const context = await model.createContext({contextSize: 64, batchSize: 64});
const sequence = context.getSequence();
const written = [];
for (const prompt of asked.prompts) {
  await sequence.clearHistory();
  const tokens = [];
  for await (const token of sequence.evaluate(prompt, {temperature: 0})) {
    tokens.push(token);
    if (tokens.length >= asked.count) break;
  }
  written.push(tokens);
}
console.log(JSON.stringify({written, text: model.tokenize(asked.text, false)}));
process.exit(0);
"""

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", dict(norm_eps=1e-5)),
    "llama3": ("llama", dict(head_width=16, rope_scaling=RopeScaling(
        factor=8.0, low_frequency=1.0, high_frequency=4.0, original_context=64))),
    "smollm2": ("llama", dict(width=72, heads=9, kv_heads=3, norm_eps=1e-5, rope_theta=1e5)),
    "mistral": ("mistral", dict(band=64)),
    "qwen2": ("qwen2", {}),
    "qwen3": ("modern", dict(head_width=16)),
    "qwen3-untied": ("modern", dict(head_width=16, tied=False)),
    "gpt2": ("gpt2", {}),
}  # fmt: skip
PROMPTS = [[15, 17, 260, 33, 8, 120, 77], [61, 22, 290, 14], [99]]


def llama_cpp(file: Path, prompts: list[list[int]], count: int, text: str = "hello") -> dict[str, Any]:
    program = PLACE / "greedy.mjs"
    program.write_text(PROGRAM)
    asked = json.dumps({"file": str(file), "prompts": prompts, "count": count, "text": text})
    done = subprocess.run(["node", program], input=asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def our_greedy(model: GPT, prompts: list[list[int]], end: int, count: int) -> list[list[int]]:
    config = SamplingConfig(max_tokens=count, temperature=0.0)
    answers = generate(model.eval(), prompts, [0] * len(prompts), end, config)
    return [[token for token in a.ids if token != end] for (a,) in answers]


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("shape", SHAPES)
def test_llama_cpp_writes_our_greedy_text(
    make_gpt: Callable[..., GPT], tokenizer: Tokenizer, tmp_path: Path, shape: str, kind: Any
) -> None:
    """Compare token by token after our own text, with the file read back, so that both have the same rounded weights.

    llama.cpp rounds activations too, so the best two tokens of a random model are sometimes too close to agree on.
    """
    family, changes = SHAPES[shape]
    file = tmp_path / "model.gguf"
    write_gguf(file, make_gpt(family, **changes), tokenizer, kind)
    model, restored = read_gguf(file)
    ours = our_greedy(model, PROMPTS, restored.end_of_turn_id, 20)
    steps = [([*p, *text[:t]], text[t]) for p, text in zip(PROMPTS, ours, strict=True) for t in range(len(text))]
    theirs = llama_cpp(file, [prefix for prefix, _ in steps], 1)["written"]
    agreed = sum(written == [token] for written, (_, token) in zip(theirs, steps, strict=True))
    assert agreed >= (0.85 if kind == "q8_0" else 0.95) * len(steps)


def test_the_demos_own_shape(tokenizer: Tokenizer, tmp_path: Path) -> None:
    import torch

    _, pretrain = DEMO.base  # type: ignore[misc]
    model = GPT(pretrain.shape(300)).initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # of a fresh model all tokens are equally likely
    write_gguf(tmp_path / "demo.gguf", model, tokenizer, "f16")
    again, restored = read_gguf(tmp_path / "demo.gguf")
    assert llama_cpp(tmp_path / "demo.gguf", PROMPTS, 8)["written"] == our_greedy(
        again, PROMPTS, restored.end_of_turn_id, 8
    )


def with_rule(tokenizer: Tokenizer, rule: str) -> Tokenizer:
    """The same tokens with another family's splitting rule."""
    backend = BackendTokenizer.from_str(tokenizer.to_json())
    backend.pre_tokenizer = RULES[rule]()
    state = json.loads(backend.to_str())
    state["model"]["ignore_merges"] = rule == "llama-bpe"
    return Tokenizer(BackendTokenizer.from_str(json.dumps(state)), tokenizer.settings)


def test_smollm2s_own_shape_from_text_to_text(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Three groups of three query heads, tied embeddings, and the prompt split into tokens by llama.cpp."""
    family, changes = SHAPES["smollm2"]
    file, ruled = tmp_path / "smollm2.gguf", with_rule(tokenizer, "smollm")
    assert write_gguf(file, make_gpt(family, **changes), ruled, "f16")  # llama.cpp has this rule
    again, read = read_gguf(file)
    assert again.config.tied and (again.config.heads, again.config.kv_heads) == (9, 3)
    text = "hello there, 1234 dogs and 42 cats"
    cut = llama_cpp(file, [], 0, text)["text"]
    assert cut == ruled.encode(text) == read.encode(text)
    assert llama_cpp(file, [cut], 12)["written"] == our_greedy(again, [cut], read.end_of_turn_id, 12)


@pytest.mark.parametrize("rule", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_llama_cpp_cuts_text_as_we_do(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, rule: str) -> None:
    ruled = with_rule(tokenizer, rule)
    text = "Hello there, how are 42 you?\n\n\nFine: I'm ok...  the cat 今天天气很好 x\t1234"
    write_gguf(tmp_path / "model.gguf", make_gpt("llama"), ruled, "f16")
    assert llama_cpp(tmp_path / "model.gguf", [], 0, text)["text"] == ruled.encode(text)
