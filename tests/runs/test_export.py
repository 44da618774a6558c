"""Export writes exactly the run's model, or nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import normalizers

from tutelage.errors import InputError
from tutelage.runs import export as stage
from tutelage.runs.export import export
from tutelage.runs.folder import load_policy, save_policy
from tutelage.text.gguf_vocabulary import RULES
from tutelage.text.tokenizer import Tokenizer

IDS = torch.tensor([[15, 17, 260, 33, 8, 120, 77, 201, 9, 45]])


@pytest.fixture
def run(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save_policy(tmp_path / "run", make_gpt("llama"), tokenizer)
    return tmp_path / "run"


def test_a_folder_is_what_transformers_reads(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(run, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ours, _ = load_policy(run, stage.EXACT)
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)
    assert "read back" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_a_gguf_file_is_the_model_to_its_rounding(run: Path, tmp_path: Path, kind: Any) -> None:
    export(run, tmp_path / "chat.gguf", "gguf", kind)
    ours, again = (load_policy(place, stage.EXACT)[0](IDS) for place in (run, tmp_path / "chat.gguf"))
    assert 0 < (ours - again).abs().max() <= stage.ROUNDING[kind] * ours.abs().max()


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_other_logits_are_not_handed_over(
    run: Path, tmp_path: Path, format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(write: Any) -> Any:
        def spoilt(place: Path, model: Any, *more: Any) -> Any:
            with torch.no_grad():
                model.blocks[0].mlp.down.weight[0] += 1
            result = write(place, model, *more)
            with torch.no_grad():
                model.blocks[0].mlp.down.weight[0] -= 1
            return result

        return spoilt

    for name in ("save_policy", "write_gguf"):
        monkeypatch.setattr(stage, name, spoil(getattr(stage, name)))
    before = set(tmp_path.iterdir())
    with pytest.raises(InputError, match="its logits differ from the run"):
        export(run, tmp_path / "out", format)
    assert set(tmp_path.iterdir()) == before


def test_another_prompt_is_not_handed_over(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(place: Path, model: Any, tokenizer: Tokenizer) -> None:
        template = tokenizer.chat_template.replace("<|end|>", "<|end|>\n")
        save_policy(place, model, Tokenizer(tokenizer._backend, tokenizer.settings | {"chat_template": template}))

    monkeypatch.setattr(stage, "save_policy", save)
    with pytest.raises(InputError, match="renders a conversation to different token ids"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"


def test_a_system_turn_is_part_of_the_prompt(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that differs only for system turns is refused; one without system turns is compared on the rest."""
    model, tokenizer = load_policy(run, stage.EXACT)
    other = tokenizer.chat_template.replace(
        "message['content']", "('' if message['role'] == 'system' else message['content'])"
    )
    without = Tokenizer(
        tokenizer._backend, tokenizer.settings | {"chat_template": REFUSES_SYSTEM + tokenizer.chat_template}
    )
    save_policy(tmp_path / "without", model, without)
    export(tmp_path / "without", tmp_path / "handed over")
    for spoilt in (other, REFUSES_SYSTEM + tokenizer.chat_template):

        def save(place: Path, model: Any, tokenizer: Tokenizer, spoilt: str = spoilt) -> None:
            save_policy(place, model, Tokenizer(tokenizer._backend, tokenizer.settings | {"chat_template": spoilt}))

        monkeypatch.setattr(stage, "save_policy", save)
        with pytest.raises(InputError, match="renders a conversation to different token ids"):
            export(run, tmp_path / "out")


def test_nothing_is_overwritten(run: Path, tmp_path: Path) -> None:
    for name, format in (("full", "hf"), ("full", "gguf"), ("empty", "gguf")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / "full/chat_template.jinja").parent.mkdir(exist_ok=True)
        (tmp_path / "full/chat_template.jinja").write_text("stale")
        with pytest.raises(InputError, match="already exists"):
            export(run, tmp_path / name, format)  # type: ignore[arg-type]
    export(run, tmp_path / "empty")


def test_no_template_of_another_export_survives(run: Path, tmp_path: Path) -> None:
    """Both readers prefer chat_template.jinja to the settings. One may lie in what a killed export has left."""
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    for name in ("chat_template.jinja", "model.safetensors.index.json"):
        (partial / name).write_text("stale")
    export(run, tmp_path / "out")
    assert not (tmp_path / "out/model.safetensors.index.json").exists()
    chat = [{"role": "user", "content": "hello"}]
    (tmp_path / "out/chat_template.jinja").write_text("stale")
    load_policy(run, stage.EXACT)[1].save(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(chat, tokenize=False)
    assert theirs == "<|user|>hello<|end|>"


DECOMPOSED = "cafe\u0301 \uf900"


def test_a_tokenizer_that_normalises_is_exported_and_that_is_said(
    run: Path, make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Qwen's: transformers' reader of GGUF files, like llama.cpp, splits decomposed text differently."""
    backend = BackendTokenizer.from_str(tokenizer.to_json())
    backend.pre_tokenizer, backend.normalizer = RULES["qwen2"](), normalizers.NFC()
    composing = Tokenizer(backend, tokenizer.settings)
    save_policy(tmp_path / "qwen", make_gpt("qwen2"), composing)
    export(tmp_path / "qwen", tmp_path / "qwen.gguf", "gguf")
    assert "does not apply this tokenizer's Unicode normalisation (NFC)" in capsys.readouterr().out
    again = load_policy(tmp_path / "qwen.gguf", stage.EXACT)[1]
    assert again.encode(DECOMPOSED) == composing.encode(DECOMPOSED) != tokenizer.encode(DECOMPOSED)
    export(run, tmp_path / "plain.gguf", "gguf")
    assert "normalisation" not in capsys.readouterr().out


def test_a_reading_without_the_normalisation_is_not_handed_over(
    run: Path, make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate holds such text: what loses NFC on the way gives the same ids for all other texts."""
    backend = BackendTokenizer.from_str(tokenizer.to_json())
    backend.normalizer = normalizers.NFC()
    save_policy(tmp_path / "nfc", make_gpt("llama"), Tokenizer(backend, tokenizer.settings))
    monkeypatch.setattr(stage, "save_policy", lambda place, model, _: save_policy(place, model, tokenizer))
    with pytest.raises(InputError, match="renders a conversation to different token ids"):
        export(tmp_path / "nfc", tmp_path / "out")


def test_what_only_we_can_read_is_not_handed_over(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_policy(tmp_path / "run", make_gpt("gpt3"), tokenizer)
    with pytest.raises(InputError, match="lacks this bias"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
