"""The collect stage on the first conversations of the real packages: every file, and their consistency."""

import importlib.util
import json
from pathlib import Path

import pytest

from tutelage.data import jsonl, records, sources
from tutelage.data.panel import Panel
from tutelage.errors import InputError
from tutelage.stages.collect import CollectConfig, write_data


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("data")
    return out, write_data(out, CollectConfig(limit=250, train_prompts=300))


def read(out: Path, name: str) -> list[dict]:
    return [record for _, record in jsonl.read_jsonl(out / f"{name}.jsonl")]


def test_every_file_is_there_and_readable(collected):
    out, report = collected
    assert len(records.read_documents([out / "corpus.train.jsonl", out / "corpus.valid.jsonl"])) > 250
    for split in ("train", "valid", "test"):
        assert records.read_demonstrations([out / f"demonstrations.{split}.jsonl"])
        assert all(p.split == split for p in records.read_prompts([out / f"prompts.{split}.jsonl"]))
    assert Panel.load(out / "panel.json").utility([{"role": "user", "content": "hi"}], "hello") != 0
    assert json.loads((out / "report.json").read_text()) == report
    for name, count in report["written"].items():
        assert count == len(read(out, name))
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_nobody_and_no_conversation_is_in_two_splits(collected):
    out, report = collected
    conversations, _ = sources.read_chitchat(250)
    people = {c.id: set(c.people) for c in conversations}
    ids = {
        split: {r["conversation"] for kind in ("demonstrations", "prompts") for r in read(out, f"{kind}.{split}")
                if "conversation" in r}
        for split in ("train", "valid", "test")
    }  # fmt: skip
    who = {split: set().union(*(people[i] for i in ids[split])) for split in ids}
    assert all(ids.values())
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not ids[a] & ids[b] and not who[a] & who[b]
    assert not {r.get("conversation") for r in read(out, "corpus.train")} & (ids["valid"] | ids["test"])
    assert sum(report["conversations"].values()) == 250


def test_no_prompt_twice_and_none_of_another_split(collected):
    out, _ = collected
    seen = [json.dumps(r["prompt"]) for split in ("train", "valid", "test") for r in read(out, f"prompts.{split}")]
    own = [{json.dumps(r["prompt"]) for r in read(out, f"prompts.{split}")} for split in ("train", "valid", "test")]
    assert len(seen) == sum(map(len, own))


def test_questions_keep_to_their_split(collected):
    out, _ = collected
    asked = [
        {
            r["messages"][0]["content"].casefold()
            for r in read(out, f"demonstrations.{split}")
            if "conversation" not in r
        }
        for split in ("train", "valid", "test")
    ]
    assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]
    assert {r["lang"] for r in read(out, "corpus.train")} == {"en", "zh"}


def test_the_same_twice_whatever_the_seed(collected, tmp_path: Path):
    out, _ = collected
    write_data(tmp_path / "again", CollectConfig(limit=250, train_prompts=300))
    write_data(tmp_path / "other", CollectConfig(limit=250, train_prompts=300, seed=1))
    for path in out.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
        assert (tmp_path / "other" / path.name).read_bytes() == path.read_bytes()


def test_turns_alternate_and_runs_of_one_sender_are_one_turn():
    conversations, counts = sources.read_chitchat(100)
    assert counts["kept"] == len(conversations) == 100
    assert counts["conversations"] == 100 + counts["dropped_not_two_speakers"]
    for conversation in conversations:
        assert [m["role"] for m in conversation.messages[:2]] == ["user", "assistant"]
        assert all(
            a["role"] != b["role"] for a, b in zip(conversation.messages, conversation.messages[1:], strict=False)
        )


def test_sources_by_hand():
    messages = [("a", "hi"), ("a", " you "), ("b", " "), ("b", "yo"), ("a", "so")]
    people, turns = sources._turns({"sender": s, "text": t} for s, t in messages)
    assert people == ["a", "b"]
    assert [(m["role"], m["content"]) for m in turns] == [("user", "hi you"), ("assistant", "yo"), ("user", "so")]
    counts = sources.Counter()
    assert sources._entry(["Really?", True, 1984, {"a": "b"}, [1]], "en", counts) == ["Really?", "Yes", "1984", "a: b"]
    assert sources._entry(["alone"], "en", counts) == [] == sources._entry("text", "en", counts)
    assert counts == {"en.entries": 3, "en.coerced_items": 3, "en.dropped_items": 1, "en.dropped_entries": 2}
    merged = sources._merged([["Why?", "A", "B"], [], ["why", "B", "C"]], "en", counts)
    assert merged == [sources.QuestionAnswers("Why?", ("A", "B", "C"), "en")]
    assert counts["en.duplicate_pairs"] == 1


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'chitchat-dataset is not installed; run: pip install "tutelage\[demo\]"'):
        write_data(tmp_path, CollectConfig(limit=10))


def test_too_few_conversations(tmp_path: Path):
    with pytest.raises(InputError, match="split"):
        write_data(tmp_path, CollectConfig(limit=1))
    assert not list(tmp_path.iterdir())
