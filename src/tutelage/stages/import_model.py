"""A model from elsewhere as a run directory: weights unpacked once into safetensors, the tokenizer with its template.

    Hugging Face folder, GGUF file, adapter, smollm2 or hub id -> load -> a run that every stage starts from

Its vocabulary may grow by special tokens, or shed the spare rows of its embedding; nothing else is changed.
"""

from dataclasses import dataclass
from pathlib import Path

from tutelage.model.hf_config import family_of
from tutelage.model.parameters import parameter_count
from tutelage.model.vocabulary import resized
from tutelage.runs.adapter import EXACT
from tutelage.runs.base import find_base
from tutelage.runs.folder import load_policy, save_policy
from tutelage.runs.run import Run, RunConfig


@dataclass(frozen=True, kw_only=True)
class ImportConfig(RunConfig):
    """What of the vocabulary is changed."""

    add_tokens: tuple[str, ...] = ()
    """Special tokens to add; their rows of the embedding are the mean of the others."""
    make_chat: bool = False
    """Give a base model without a chat template ours, with its role markers as new tokens."""
    drop_spare: bool = False
    """Drop rows of the embedding that no token has; many models round their vocabulary up."""


def import_model(base: Path, out: Path, config: ImportConfig = ImportConfig()) -> None:
    """Take over a model from elsewhere: a Hugging Face folder, a GGUF file, the name smollm2, or an id on the hub.

    Example: tutelage import-model --base smollm2 --out runs/smollm2
    """
    base = find_base(base)
    with Run(out, stage="import-model", config=config, inputs={"base": base}) as run:
        if run.finished:
            return
        model, tokenizer = load_policy(base, EXACT, config.make_chat)
        if tokenizer.chosen:
            run.progress.say(f"{out}: {tokenizer.chosen}")
        rows, known = model.config.vocab_size, tokenizer.vocab_size
        if config.add_tokens:
            tokenizer = tokenizer.with_specials(config.add_tokens)
            model = resized(resized(model, known), max(rows, tokenizer.vocab_size))  # spare rows are not the mean
            run.progress.say(
                f"{out}: {tokenizer.vocab_size - known} tokens added; their rows are the mean of the others"
            )
        if config.drop_spare:
            model = resized(model, tokenizer.vocab_size)
        if model.config.vocab_size != rows:
            run.progress.say(f"{out}: the embedding had {rows} rows and has {model.config.vocab_size} now")
        save_policy(out, model, tokenizer)
        run.finish(
            {"parameters": parameter_count(model), "context": model.config.context, "vocabulary": tokenizer.vocab_size}
            | {"family": family_of(model.config)}
        )
