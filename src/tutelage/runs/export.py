"""`tutelage export`: writes a model as a Hugging Face folder or a GGUF file, and verifies it before it appears.

    run -> write under a temporary name -> read back -> same logits? same prompt? -> rename

The export is read back like any model. It must give the run's logits, up to the rounding of its precision, and render
a conversation to the same token ids. Otherwise it is deleted and the error gives the reason.
"""

import contextlib
from pathlib import Path
from typing import Literal

import torch
import tyro

from tutelage.atomic import atomic_folder, atomic_path
from tutelage.errors import InputError
from tutelage.model.families import to_hf_weights
from tutelage.model.gpt import GPT
from tutelage.model.hf_config import to_hf_config
from tutelage.runs.adapter import EXACT
from tutelage.runs.base import find_base
from tutelage.runs.folder import load_policy, save_policy
from tutelage.runs.gguf_file import Kind, write_gguf
from tutelage.text.chat import encode_chat
from tutelage.text.gguf_vocabulary import normalises, writes_bos
from tutelage.text.tokenizer import Tokenizer

# Largest difference of a logit, relative to the largest logit: fp32 is exact, the others round the weights.
ROUNDING = {"hf": 1e-5, "f16": 5e-3, "bf16": 5e-2, "q8_0": 1e-1}
SYSTEM = {"role": "system", "content": "Be brief."}  # left out if the chat template refuses system turns
CONVERSATION = [
    {"role": "user", "content": "Hello! 你好。 <|end|>\n\nAnd: 42?"},
    {"role": "assistant", "content": "Fine."},
    {"role": "user", "content": "  cafe\u0301, \uac00 or \u1100\u1161, \uf900 or \u8c48, \ufb01?\t\n"},
    {"role": "assistant", "content": "\n A\u030angstro\u0308m \n"},
    {"role": "user", "content": "Good."},
]


def export(
    run: tyro.conf.Positional[Path],
    out: Path,
    format: Literal["hf", "gguf"] = "hf",
    kind: Kind = "f16",
) -> None:
    """Export a run's model: a folder for transformers, vLLM and other programs, or a file for llama.cpp.

    run: Run to export.
    out: Folder or file to write. An existing folder must be empty.
    format: hf writes a folder, gguf one file.
    kind: Precision of the matrices in a GGUF file; hf is always fp32.

    Example: tutelage export runs/demo/ppo-ptx --format gguf --kind q8_0 --out chat.gguf
    """
    if out.exists() and (format == "gguf" or not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already exists; choose another --out")
    model, tokenizer = load_policy(find_base(run), EXACT)
    with atomic_folder(out) if format == "hf" else atomic_path(out) as partial:
        if format == "hf":
            to_hf_config(model.config), to_hf_weights(model)  # both raise if transformers has no such model
            save_policy(partial, model, tokenizer)
        else:
            exact = write_gguf(partial, model, tokenizer, kind)
        verify(partial, model, tokenizer, ROUNDING["hf" if format == "hf" else kind])
    print(f"{out}: written and read back; logits and prompts are those of the run")
    if format == "gguf":
        for difference in differences(tokenizer, exact):
            print(difference)


def differences(tokenizer: Tokenizer, exact: bool) -> list[str]:
    """Where llama.cpp gives a text other tokens than the run does. The file is right; llama.cpp cannot do these."""
    said = []
    if not exact:
        rule = "llama.cpp has no name for this tokenizer's splitting rule; the file names the nearest one"
        said.append(f"{rule}, so llama.cpp splits some texts differently")
    if normalises(tokenizer):
        said.append(
            "llama.cpp does not apply this tokenizer's Unicode normalisation (NFC), so there decomposed letters and "
            "characters such as U+F900 become other tokens; normalise such text before you send it"
        )
    if tokenizer.opening and not writes_bos(tokenizer):
        said.append(
            "llama.cpp will not put the beginning-of-text token before plain texts, because it would then also put it "
            "before chats, where the chat template has none"
        )
    return said


@torch.no_grad()
def verify(written: Path, model: GPT, tokenizer: Tokenizer, rounding: float) -> None:
    """Raises InputError unless the written model gives the same logits, up to `rounding`, and the same prompts."""
    written_model, written_tokenizer = load_policy(written, EXACT)
    prompts = rendered(tokenizer)
    if prompts != rendered(written_tokenizer):
        raise InputError(
            f"{written}: it renders a conversation to different token ids than the run; nothing was written"
        )
    probe = torch.tensor([prompts[-1]])[:, : model.config.context]
    expected, actual = model.eval()(probe), written_model.eval()(probe)
    gap = float((actual - expected).abs().max() / expected.abs().max())
    if not gap <= rounding:
        sizes = f"{gap:.1e} of the largest logit, with at most {rounding:g} allowed for rounding"
        raise InputError(f"{written}: its logits differ from the run's by {sizes}; nothing was written")


def rendered(tokenizer: Tokenizer) -> list[list[int]]:
    """The token ids of CONVERSATION, alone and, if the template accepts it, after a system turn."""
    prompts = [encode_chat(tokenizer, CONVERSATION, add_generation_prompt=True).ids]
    with contextlib.suppress(InputError):
        prompts.append(encode_chat(tokenizer, [SYSTEM, *CONVERSATION], add_generation_prompt=True).ids)
    return prompts
