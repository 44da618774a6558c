"""Hand a model over: a Hugging Face folder or a GGUF file, held against the run before anybody sees it.

    run -> write under another name -> read back -> same logits? same prompt? -> rename

What is written is read again the way a stranger would and must give the run's logits (to the rounding of its precision)
and render a conversation to the same ids. Otherwise nothing is left behind but the reason.
"""

import contextlib
import shutil
from pathlib import Path
from typing import Literal

import torch
import tyro

from tutelage.errors import InputError
from tutelage.model.families import to_hf_weights
from tutelage.model.gpt import GPT
from tutelage.model.hf_config import to_hf_config
from tutelage.runs.adapter import EXACT
from tutelage.runs.base import find_base
from tutelage.runs.folder import load_policy, save_policy
from tutelage.runs.gguf_file import Kind, write_gguf
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

# Largest difference of a logit, relative to the largest logit: fp32 is exact, the others round the weights.
ROUNDING = {"hf": 1e-5, "f16": 5e-3, "bf16": 5e-2, "q8_0": 1e-1}
SYSTEM = {"role": "system", "content": "Be brief."}  # left out where the template takes none
CONVERSATION = [
    {"role": "user", "content": "Hello! 你好。 <|end|>\n\nAnd: 42?"},
    {"role": "assistant", "content": "Fine."},
    {"role": "user", "content": "Good."},
]


def export(
    run: tyro.conf.Positional[Path],
    out: Path,
    format: Literal["hf", "gguf"] = "hf",
    kind: Kind = "f16",
) -> None:
    """Write a run's model for other programs: a folder for transformers, vLLM and others, or a file for llama.cpp.

    format: hf writes a folder, gguf one file.
    kind: precision of the matrices in a GGUF file; hf is always fp32.

    Example: tutelage export runs/demo/ppo-ptx --format gguf --kind q8_0 --out chat.gguf
    """
    if out.exists():
        raise InputError(f"{out}: is there already; choose another --out")
    model, tokenizer = load_policy(find_base(run), EXACT)
    partial = out.with_name(f".{out.name}.partial")
    try:
        if format == "hf":
            to_hf_config(model.config), to_hf_weights(model)  # refuses what only we can read
            save_policy(partial, model, tokenizer)
        else:
            exact = write_gguf(partial, model, tokenizer, kind)
        hold_against(partial, model, tokenizer, ROUNDING["hf" if format == "hf" else kind])
        partial.rename(out)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
    print(f"{out}: the run's logits and prompts, read back")
    if format == "gguf" and not exact:
        print("llama.cpp has no name for this tokenizer's rule and cuts some texts otherwise; the nearest one is named")


@torch.no_grad()
def hold_against(written: Path, model: GPT, tokenizer: Tokenizer, rounding: float) -> None:
    """Raises InputError unless what was written is the same model with the same prompts."""
    again, their_words = load_policy(written, EXACT)
    prompts = rendered(tokenizer)
    if prompts != rendered(their_words):
        raise InputError(f"{written}: a conversation is rendered otherwise than by the run; nothing was written")
    probe = torch.tensor([prompts[-1]])[:, : model.config.context]
    expected, found = model.eval()(probe), again.eval()(probe)
    gap = float((found - expected).abs().max() / expected.abs().max())
    if not gap <= rounding:
        raise InputError(
            f"{written}: logits are off by {gap:.1e} of the largest, {rounding:g} is rounding; not written"
        )


def rendered(tokenizer: Tokenizer) -> list[list[int]]:
    """The conversation as the template writes it, alone and after a system turn if it takes one."""
    prompts = [encode_chat(tokenizer, CONVERSATION, add_generation_prompt=True).ids]
    with contextlib.suppress(InputError):
        prompts.append(encode_chat(tokenizer, [SYSTEM, *CONVERSATION], add_generation_prompt=True).ids)
    return prompts
