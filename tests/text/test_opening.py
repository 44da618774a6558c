"""What a tokenizer's post-processor puts before a text, such as BOS: as transformers' tokenizers do it."""

import asyncio
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from local_worker import local_encoder
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import processors
from transformers import AutoTokenizer

from tutelage.data.packing import encode_documents, stream
from tutelage.evals.perplexity import bits_per_byte
from tutelage.evals.tasks import choice_scores
from tutelage.server.api.requests import prompts_of
from tutelage.server.api.schemas import CompletionRequest
from tutelage.text.tokenizer import Tokenizer

TEXTS = ["", "hello there", " the cat", "你好\n", "<|system|> the <|endoftext|>"]
BOS = "<|system|>"  # a special token that is not the separator of documents
ADDED = {
    "BOS": [BOS, "$A"],
    "BOS twice": [BOS, BOS, "$A"],
    "BOS and EOS": [BOS, "$A", "<|end|>"],
    "EOS": ["$A", "<|end|>"],
}


def with_added(tokenizer: Tokenizer, single: list[str]) -> Tokenizer:
    backend = BackendTokenizer.from_str(tokenizer.to_json())
    tokens = [(token, tokenizer.special[token]) for token in dict.fromkeys(single) if token != "$A"]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=tokens)
    return Tokenizer(backend, tokenizer.settings | {"bos_token": BOS})


@pytest.mark.parametrize("kind", ADDED)
def test_a_text_gets_what_transformers_adds(tokenizer: Tokenizer, tmp_path: Path, kind: str) -> None:
    """Its own special tokens, typed in a text, are still ordinary text."""
    ours = with_added(tokenizer, ADDED[kind])
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert ours.encode_text(text) == theirs(text, split_special_tokens=True)["input_ids"]
    assert ours.opening == [tokenizer.special[BOS]] * ADDED[kind].index("$A")
    assert tokenizer.encode_text("the cat") == tokenizer.encode("the cat") and tokenizer.opening == []


def prompts(tokenizer: Tokenizer, given: Any) -> list[Any]:
    """The ids of the prompts of a completion."""
    served: Any = SimpleNamespace(tokenizer=tokenizer, encoder=local_encoder(tokenizer), context=99)
    encoded = asyncio.run(prompts_of(served, CompletionRequest(model="m", prompt=given), "a"))
    return [each.ids for each in encoded]


def test_a_completion_begins_as_in_transformers(tokenizer: Tokenizer) -> None:
    """Texts get BOS, ids are taken as they are, and an empty text is BOS alone."""
    ours, bos = with_added(tokenizer, ADDED["BOS"]), tokenizer.special[BOS]
    ids = tokenizer.encode("the cat")
    for prompt, expected in (
        ("the cat", [(bos, *ids)]),
        (["the cat", ""], [(bos, *ids), (bos,)]),
        (ids, [tuple(ids)]),
        ([[bos, *ids]], [(bos, *ids)]),
        (BOS + "the cat", [(bos, *tokenizer.encode(BOS + "the cat"))]),  # typed: ordinary text, so BOS comes once
    ):
        assert prompts(ours, prompt) == expected
    assert prompts(tokenizer, "the cat") == [tuple(ids)]


def test_documents_begin_with_it_unless_it_is_the_separator(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the cat")
    assert encode_documents(with_added(tokenizer, ADDED["BOS and EOS"]), ["the cat"]) == [
        [tokenizer.special[BOS], *ids]
    ]
    assert encode_documents(with_added(tokenizer, ["<|endoftext|>", "$A"]), ["the cat"]) == [ids]


def test_held_out_text_is_read_after_bos_and_bos_is_not_scored(make_gpt: object, tokenizer: Tokenizer) -> None:
    """By hand from the model's log-probabilities, as lm-evaluation-harness counts: BOS is context, never a target."""
    model = make_gpt("llama")  # type: ignore[operator]
    ours = with_added(tokenizer, ADDED["BOS"])
    ids = stream(encode_documents(ours, ["the cat sat", "the dog"]), ours.end_of_text_id)
    length = len(ids) - 1
    with torch.no_grad():
        logprobs = model(torch.tensor(ids[None, :-1].astype("int64")))[0].log_softmax(-1)
    bos = ours.special[BOS]
    assert ids[0] == bos and list(ids).count(bos) == 2
    bits = -sum(float(logprobs[i - 1, ids[i]]) for i in range(1, len(ids)) if ids[i] != bos) / math.log(2)
    size = len("the cat sat") + len("the dog")
    measured = bits_per_byte(model, ids, ours.token_byte_counts(), 9, length, ours.opening)
    assert measured == pytest.approx(bits / size, rel=1e-5)


def test_questions_of_the_tasks_begin_with_it(make_gpt: object, tokenizer: Tokenizer) -> None:
    model = make_gpt("llama")  # type: ignore[operator]
    ours = with_added(tokenizer, ADDED["BOS"])
    start, choice = ours.encode_text("Q: the cat?\nA:"), ours.encode(" mat")
    with torch.no_grad():
        logprobs = model(torch.tensor([[*start, *choice]]))[0].log_softmax(-1)
    own = [float(logprobs[len(start) + i - 1, token]) for i, token in enumerate(choice)]
    score = float(choice_scores(model, ours, "Q: the cat?\nA:", [" mat".strip()])[0])
    assert score == pytest.approx(sum(own) / len(own), abs=1e-5)
