"""The tokenizer stage: its folder, its report recounted by hand, and what it does to a small language."""

import json
from pathlib import Path

import pytest
from world import World, results, write_lines

from tutelage.errors import InputError
from tutelage.stages.tokenizer import TokenizerConfig, tokenizer

transformers = pytest.importorskip("transformers")


def test_the_report_is_what_transformers_counts(world: World) -> None:
    """Bytes per token, recounted with the tokenizer that transformers loads from the folder."""
    theirs = transformers.AutoTokenizer.from_pretrained(world.tokenizer)
    texts = [json.loads(line)["text"] for line in world.corpus.read_text().splitlines()]
    size = sum(len(text.encode()) for text in texts)
    tokens = sum(len(theirs(text).input_ids) for text in texts)
    assert results(world.tokenizer) == {
        "vocab_size": 300,
        "languages": {
            "unknown": {
                "documents": len(texts), "bytes": size, "tokens": tokens, "bytes_per_token": round(size / tokens, 3)
            }
        },
    }  # fmt: skip
    assert theirs.pad_token_id != theirs.eos_token_id
    assert len(theirs) == 300


def test_a_small_language_counts_more_than_once(tmp_path: Path) -> None:
    """Chinese documents are upsampled for the tokenizer: with ten copies it fits them better than with one."""
    english = [{"text": f"the cat and {n} dogs are here, {'very ' * (n % 9)}happy", "lang": "en"} for n in range(40)]
    chinese = [{"text": "今天天气很好，你好吗？", "lang": "zh"}]
    corpus = write_lines(tmp_path / "corpus.jsonl", english + chinese)
    fits = {}
    for copies in (1, 60):
        out = tmp_path / str(copies)
        tokenizer((corpus,), out, TokenizerConfig(vocab_size=300, copies_zh=copies))
        languages = results(out)["languages"]
        assert languages["zh"]["documents"] == 1  # the report counts what is there, not the copies
        assert languages["zh"]["bytes"] == 33
        fits[copies] = languages["zh"]["bytes_per_token"]
    assert fits[60] > fits[1]


def test_too_little_text_for_the_vocabulary(tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "corpus.jsonl", [{"text": "hi"}])
    with pytest.raises(InputError, match="fill .* of 4096 tokens"):
        tokenizer((corpus,), tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.json").exists()
