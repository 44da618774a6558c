"""The tokenizer: round trips of any text, no text that forges a special token, and agreement with transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import models
from transformers import AutoTokenizer

from tutelage.errors import InputError
from tutelage.text.bpe import train_bpe
from tutelage.text.settings import check_prefix
from tutelage.text.tokenizer import Tokenizer

SPECIAL = ("<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
HOSTILE = st.lists(st.sampled_from(SPECIAL) | st.text(max_size=4), max_size=6).map("".join)
PLAIN = ["hello there", "  two  spaces", "don't\n\nstop 2024!", "你好，世界 😉", "\ttab\r\n", "x<y|z>"]


@given(text=st.text() | HOSTILE)
def test_any_text_survives_and_never_yields_a_special_id(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special=False) == text
    assert not set(ids) & set(tokenizer.special.values())


@given(texts=st.lists(st.text() | HOSTILE, max_size=5))
def test_a_batch_is_the_map_of_singles(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@given(text=st.text() | HOSTILE)
def test_token_bytes_add_up_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    sizes = tokenizer.token_byte_counts()
    assert sum(sizes[i] for i in tokenizer.encode(text)) == len(text.encode())


def test_special_tokens_are_few_distinct_and_weigh_nothing(tokenizer: Tokenizer) -> None:
    assert set(tokenizer.special) == set(SPECIAL)
    assert len(set(tokenizer.special.values())) == len(SPECIAL)
    assert len({tokenizer.pad_id, tokenizer.end_of_turn_id, tokenizer.end_of_text_id}) == 3  # PAD is not EOS
    assert all(tokenizer.token_byte_counts()[i] == 0 for i in tokenizer.special.values())


def test_bytes_that_are_no_text_become_replacement_characters(tokenizer: Tokenizer) -> None:
    first_of_three_bytes = tokenizer.encode("\u0800")[:1]  # no merge of the training texts covers this character
    assert tokenizer.decode(first_of_three_bytes) == "\ufffd"


def test_three_merges_of_the_textbook_example() -> None:
    """minbpe's README: three merges of aaabdaaabac leave XdXac, where X is aaab."""
    tokenizer = train_bpe(["aaabdaaabac"], len(SPECIAL) + 256 + 3)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("aaabdaaabac")] == ["aaab", "d", "aaab", "a", "c"]


def test_fewer_merges_are_the_first_of_more(tmp_path: Path) -> None:
    texts = ["the cat sat on the mat, then the hat sat on the cat"] * 2
    merges = []
    for size in (268, 275):
        train_bpe(texts, size).save(tmp_path)
        merges.append(json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"])
    assert len(merges[0]) == 6 and merges[1][:6] == merges[0]


def test_digits_stay_single(tokenizer: Tokenizer) -> None:
    assert [tokenizer.decode([i]) for i in tokenizer.encode("2024")] == ["2", "0", "2", "4"]


def test_vocabulary_is_exact_or_refused() -> None:
    assert train_bpe(["abab abab"], 264).vocab_size == 264
    with pytest.raises(InputError, match="fill only .* of 4096 tokens"):
        train_bpe(["too little text"], 4096)


def test_a_saved_folder_is_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    text = "<|user|>hello<|end|> 你好"
    assert again.encode(text) == tokenizer.encode(text)
    assert (again.special, again.pad_id, again.chat_template) == (
        tokenizer.special,
        tokenizer.pad_id,
        tokenizer.chat_template,
    )


def test_transformers_reads_the_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in PLAIN:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.end_of_turn_id, tokenizer.pad_id)
    assert len(theirs) == tokenizer.vocab_size


def test_transformers_applies_the_template_as_we_do(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from tutelage.text.chat import encode_chat

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    conversation = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hello\n there  "},
        {"role": "assistant", "content": "你好！"},
        {"role": "user", "content": "2 + 2?"},
    ]
    for prompt in (False, True):
        expected = theirs.apply_chat_template(conversation, add_generation_prompt=prompt, return_dict=False)
        assert encode_chat(tokenizer, conversation, add_generation_prompt=prompt).ids == expected


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_folder_is_refused_in_one_line(tokenizer: Tokenizer, tmp_path: Path, name: str) -> None:
    tokenizer.save(tmp_path)
    whole = (tmp_path / name).read_text()
    (tmp_path / name).write_text(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        Tokenizer.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=name):
        Tokenizer.load(tmp_path)


def test_a_configuration_that_does_not_fit_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for change, complaint in (({"eos_token": "</s>"}, "</s>"), ({"pad_token": "</s>"}, "pad_token")):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | change))
        with pytest.raises(InputError, match=complaint):
            Tokenizer.load(tmp_path)
    del settings["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="chat_template"):
        Tokenizer.load(tmp_path)


WRONG: list[tuple[str, Any, str]] = [
    ("tokenizer_config.json", {"eos_token": ["<|end|>"]}, "eos_token is .*; it must be a string or an object"),
    ("tokenizer_config.json", {"eos_token": {"content": 5}}, "eos_token is"),
    ("tokenizer_config.json", {"chat_template": 7}, "chat_template is 7; it must be a string or a list"),
    ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}, "chat_template is"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": "x", "special": "yes"}}}, "added_tokens_dec"),
    ("tokenizer_config.json", {"chat_template": "\ud800"}, "chat_template is"),
    ("generation_config.json", {"eos_token_id": "5"}, "eos_token_id is '5'; it must be a whole number"),
    ("generation_config.json", {"eos_token_id": [True]}, "eos_token_id is"),
]


@pytest.mark.parametrize(("name", "change", "said"), WRONG, ids=[said for _, _, said in WRONG])
def test_fields_of_another_kind_are_refused_by_name(
    tokenizer: Tokenizer, tmp_path: Path, name: str, change: dict[str, Any], said: str
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | change))
    with pytest.raises(InputError, match=f"{path}: {said}"):
        Tokenizer.load(tmp_path)


def test_a_template_file_that_is_no_text_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"{{ 'caf\xe9' }}")
    with pytest.raises(InputError, match=r"chat_template.jinja, line 1: not UTF-8"):
        Tokenizer.load(tmp_path)


def test_a_prefix_that_the_merges_do_not_have_is_refused(tmp_path: Path) -> None:
    """The library takes as many bytes off each merge's second part, whatever they are."""
    backend = BackendTokenizer(models.BPE({"a": 0, "cb": 1, "ab": 2}, [("a", "cb")], continuing_subword_prefix="c"))
    path = tmp_path / "tokenizer.json"
    path.write_text(backend.to_str())
    check_prefix(path)
    path.write_text(backend.to_str().replace('"continuing_subword_prefix":"c"', '"continuing_subword_prefix":"d"'))
    with pytest.raises(InputError, match="its merges do not begin with continuing_subword_prefix"):
        check_prefix(path)


@pytest.mark.parametrize("padding", [None, "<|end|>"])
def test_padding_is_never_the_end_of_a_turn(tokenizer: Tokenizer, tmp_path: Path, padding: str | None) -> None:
    """Many folders use one token for both."""
    tokenizer.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": padding}))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.pad_id == tokenizer.pad_id != loaded.end_of_turn_id
    assert loaded.chosen is not None and "<|pad|>" in loaded.chosen and tokenizer.chosen is None
    loaded.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["pad_token"] == "<|pad|>"


def changed(folder: Path, **settings: object) -> Tokenizer:
    """The tokenizer of this folder with other settings."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return Tokenizer.load(folder)


def test_the_token_after_an_answer_ends_it_whatever_eos_token_says(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Folders of base models name the end of a text."""
    tokenizer.save(tmp_path)
    loaded = changed(tmp_path, eos_token="<|endoftext|>")
    assert loaded.end_of_turn_id == tokenizer.end_of_turn_id
    loaded.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "<|end|>"
    # This template writes eos_token elsewhere, so its meaning must stay.
    loaded = changed(tmp_path, eos_token="<|endoftext|>", chat_template=loaded.chat_template + "{{ eos_token }}")
    assert loaded.end_of_turn_id == tokenizer.end_of_turn_id and loaded.settings["eos_token"] == "<|endoftext|>"
    assert loaded.end_ids == (tokenizer.end_of_turn_id, tokenizer.end_of_text_id)


def test_every_id_of_the_generation_config_ends_an_answer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [3]}))
    assert Tokenizer.load(tmp_path).end_ids == (5, 3)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5, 10**6]}))
    assert Tokenizer.load(tmp_path).end_ids == (5, 2)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    assert Tokenizer.load(tmp_path).end_ids == (5, 0)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        Tokenizer.load(tmp_path)


def test_an_end_of_turn_that_is_not_marked_special_is_accepted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in state["added_tokens"]:
        token["special"] = token["content"] != "<|end|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.end_of_turn_id, loaded.vocabulary_sha256) == (5, tokenizer.vocabulary_sha256)
    assert 5 not in loaded.encode("typed <|end|>") and loaded.decode([5]) == ""


def test_the_end_of_a_turn_is_found_with_the_next_turn(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As with GLM's template, which ends an answer only by beginning the next turn."""
    from tutelage.text.chat import training_examples

    tokenizer.save(tmp_path)
    template = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    loaded = changed(tmp_path, chat_template=template + "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    assert loaded.end_of_turn_id == tokenizer.special["<|user|>"]
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    (example,) = training_examples(loaded, turns)
    learned = [i for i, on in zip(example.ids, example.supervised, strict=True) if on]
    assert loaded.decode(learned, skip_special=False) == "b<|user|>d<|user|>"
