"""A model from elsewhere as a run directory: weights unpacked once into safetensors, the tokenizer with its template.

Hugging Face folder, GGUF file, adapter, smollm2 or hub id -> load -> a run that every stage starts from
"""

from dataclasses import dataclass
from pathlib import Path

from tutelage.model.gpt import parameter_count
from tutelage.model.hf_config import family_of
from tutelage.runs.adapter import EXACT
from tutelage.runs.base import find_base
from tutelage.runs.folder import load_policy, save_policy
from tutelage.runs.run import Run, RunConfig


@dataclass(frozen=True, kw_only=True)
class ImportConfig(RunConfig):
    """Nothing is to be chosen: a model is taken over as it is."""


def import_model(base: Path, out: Path, config: ImportConfig = ImportConfig()) -> None:
    """Take over a model from elsewhere: a Hugging Face folder, a GGUF file, the name smollm2, or an id on the hub.

    Example: tutelage import-model --base smollm2 --out runs/smollm2
    """
    base = find_base(base)
    with Run(out, stage="import-model", config=config, inputs={"base": base}) as run:
        if run.finished:
            return
        model, words = load_policy(base, EXACT)
        if words.chosen:
            run.progress.say(f"{out}: {words.chosen}")
        save_policy(out, model, words)
        run.finish(
            {"parameters": parameter_count(model), "context": model.config.context, "vocabulary": words.vocab_size}
            | {"family": family_of(model.config)}
        )
