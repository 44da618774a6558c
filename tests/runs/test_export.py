"""Export writes exactly the run's model, or nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tutelage.errors import InputError
from tutelage.runs import export as stage
from tutelage.runs.export import export
from tutelage.runs.folder import load_policy, save_policy
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
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="already exists"):
        export(run, tmp_path / "out")


def test_what_only_we_can_read_is_not_handed_over(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_policy(tmp_path / "run", make_gpt("gpt3"), tokenizer)
    with pytest.raises(InputError, match="lacks this bias"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
