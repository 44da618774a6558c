"""Import a model made elsewhere as a run directory: weights as safetensors, the tokenizer with its chat template.

    Hugging Face folder, GGUF file, adapter, the name smollm2 or a hub id -> load -> a run for every stage

Special tokens can be added to the vocabulary, and unused rows of the embedding dropped. Nothing else changes.
"""

from dataclasses import dataclass
from pathlib import Path

from tutelage.model.hf_config import family_of
from tutelage.model.parameters import parameter_count
from tutelage.model.vocabulary import resize_vocabulary
from tutelage.options import Advanced
from tutelage.runs.adapter import EXACT
from tutelage.runs.base import find_base
from tutelage.runs.ending import Ending, command
from tutelage.runs.folder import load_policy, save_policy
from tutelage.runs.run import Run, RunConfig


@dataclass(frozen=True, kw_only=True)
class ImportConfig(RunConfig):
    """Changes to the vocabulary."""

    add_tokens: tuple[str, ...] = ()
    """Special tokens to add. Their embedding rows are set to the mean of the others."""
    make_chat: bool = False
    """Give a base model without a chat template ours, and add its role markers as new tokens."""
    drop_spare: Advanced[bool] = False
    """Drop embedding rows that belong to no token; many models round their vocabulary up."""


def import_model(base: Path, out: Path, config: ImportConfig = ImportConfig()) -> None:
    """Import a model: a Hugging Face folder, a GGUF file, the name smollm2, or a hub id.

    base: Model to import: a Hugging Face folder, a GGUF file, the name smollm2, or a hub id.
    out: Run directory to write.

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
            # Cut the spare rows off first: untrained, they do not belong in the mean.
            tokenizer = tokenizer.with_specials(config.add_tokens)
            model = resize_vocabulary(resize_vocabulary(model, known), max(rows, tokenizer.vocab_size))
            added = tokenizer.vocab_size - known
            run.progress.say(f"{out}: {added} tokens added; their embedding rows are the mean of the others")
        spare = model.config.vocab_size - tokenizer.vocab_size
        if config.drop_spare:
            model = resize_vocabulary(model, tokenizer.vocab_size)
        elif spare:
            run.progress.say(f"{out}: {spare} rows of the embedding belong to no token; --drop-spare drops them")
        if model.config.vocab_size != rows:
            run.progress.say(f"{out}: the embedding now has {model.config.vocab_size} rows instead of {rows}")
        save_policy(out, model, tokenizer)
        parameters, context, vocabulary = parameter_count(model), model.config.context, tokenizer.vocab_size
        family = family_of(model.config)
        ending = Ending(
            f"imported a {family} model of {parameters:,} parameters, with a context of {context:,} tokens and a "
            f"vocabulary of {vocabulary:,}",
            next=[
                command("chat", out),
                command("sft", "--base", out, "--demos", "DEMONSTRATIONS.jsonl", "--out", "..."),
            ],
        )
        results = {"parameters": parameters, "context": context, "vocabulary": vocabulary, "family": family}
        run.finish(results, ending)
