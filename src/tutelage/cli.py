"""The command line: a verb for each thing that a person does.

    tutelage VERB [OPTIONS]   ->   the verb's function, called with the parameters that its signature names

Each verb is a row of `VERBS`: module, function, one line, group. Its options are the function's parameters and the
fields of its frozen config dataclasses, as flags without a prefix (`options.py`). Its help ends with an example.
A verb's module is imported only when the verb is used, so `tutelage --help` does not wait for torch.

Exit codes: 0 done; 2 a mistake of the user, in one line; 130 Ctrl-C; 141 nobody reads the output any more;
1 a bug of ours, with its traceback.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.errors import InputError
from tutelage.help import help_text, terminal_page
from tutelage.mistakes import HELP, empty_list, no_such_verb, users_fault, what_is_wrong
from tutelage.options import options_of


class Verb(NamedTuple):
    """Where a verb's function is, and what the overview says about it."""

    module: str
    function: str
    line: str
    group: str = ""


START, DATA, TRAIN, ALIGN = "Start here", "Data", "Train", "Reinforcement learning and preferences"
MEASURE, USE, MACHINE = "Measure", "Use", "This machine"
GROUPS = (START, DATA, TRAIN, ALIGN, MEASURE, USE, MACHINE)

VERBS = {
    "demo": Verb("tutelage.recipe.demo", "demo", "run the whole recipe on real dialogues; resumable", START),
    "collect": Verb("tutelage.stages.collect", "collect", "gather, clean, redact and split the demo's dialogues", DATA),
    "tokenizer": Verb("tutelage.stages.tokenizer", "tokenizer", "train a byte-level BPE tokenizer", DATA),
    "import-model": Verb(
        "tutelage.stages.import_model",
        "import_model",
        "import a Hugging Face folder, a GGUF file or a hub model",
        TRAIN,
    ),
    "pretrain": Verb("tutelage.stages.pretrain", "pretrain", "train a GPT on plain text", TRAIN),
    "sft": Verb("tutelage.stages.sft", "sft", "fine-tune on demonstrations (step 1 of InstructGPT)", TRAIN),
    "rank": Verb("tutelage.stages.rank", "rank", "sample responses and rank them, or import rankings", ALIGN),
    "reward": Verb("tutelage.stages.reward", "reward", "train a reward model on rankings (step 2)", ALIGN),
    "ppo": Verb("tutelage.stages.ppo", "ppo", "optimise against a reward with PPO-ptx (step 3)", ALIGN),
    "rloo": Verb("tutelage.stages.rloo", "rloo", "optimise against a reward with RLOO, without a value network", ALIGN),
    "grpo": Verb("tutelage.stages.grpo", "grpo", "optimise against a reward with GRPO or Dr. GRPO", ALIGN),
    "best-of-n": Verb(
        "tutelage.stages.best_of_n", "best_of_n", "keep the best of n responses by reward, as data for sft", ALIGN
    ),
    "interpolate": Verb(
        "tutelage.stages.interpolate", "interpolate", "mix the weights of two runs, such as SFT and RL", ALIGN
    ),
    "dpo": Verb("tutelage.stages.dpo", "dpo", "train on rankings without a reward model: DPO, IPO, SimPO", ALIGN),
    "kto": Verb("tutelage.stages.kto", "kto", "train on thumbs up and down", ALIGN),
    "moderation": Verb(
        "tutelage.moderation.training", "moderation", "train the server's moderation classifier on flagged texts", USE
    ),
    "score": Verb("tutelage.rewards.score", "score", "score the responses in a file with a reward", MEASURE),
    "evaluate": Verb("tutelage.evals.evaluate", "evaluate", "compare runs on prompts and rankings", MEASURE),
    "tasks": Verb("tutelage.evals.tasks", "tasks", "zero-, one- and few-shot accuracy on small tasks", MEASURE),
    "report": Verb("tutelage.recipe.report", "report", "write the one-page report of a recipe", MEASURE),
    "export": Verb("tutelage.runs.export", "export", "export a model as a Hugging Face folder or a GGUF file", USE),
    "chat": Verb("tutelage.terminal.chat", "chat", "talk to a run in this terminal", USE),
    "serve": Verb("tutelage.server.serve", "serve", "serve an OpenAI-compatible API and a chat page", USE),
    "keys": Verb("tutelage.web.key_command", "keys", "make, list and revoke the API's keys", USE),
    "feedback": Verb("tutelage.store.feedback_command", "feedback", "export people's feedback as training data", USE),
    "doctor": Verb("tutelage.recipe.doctor", "doctor", "describe this machine and what is missing", MACHINE),
}


# Options that take a server's data folder or database URL in place of files, and what is exported for them.
TAKE_FEEDBACK: dict[str, dict[str, Any]] = {
    "sft": {"demos": "demonstrations"},
    "reward": {"comparisons": "comparisons", "demos": "demonstrations"},
    "dpo": {"comparisons": "comparisons"},
    "kto": {"feedback": "kto"},
}

# Libraries read these when torch is imported; LOG.md has the measurements. Threads that spin only briefly before they
# sleep lose nothing on a quiet machine, and do not slow down other programs. Both caches keep a kernel for each shape
# of a product, and sequences have many lengths: without a limit PPO grew by 80 MiB an iteration.
TORCH_SETTINGS = {"GOMP_SPINCOUNT": "20000", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "512", "LRU_CACHE_CAPACITY": "64"}


ERASE = "\r\x1b[2K"  # what stands on the terminal's current line


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line and exit with its code (see the top of this file)."""
    words = list(sys.argv[1:] if argv is None else argv)
    for name, value in TORCH_SETTINGS.items():
        os.environ.setdefault(name, value)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for paths that are no UTF-8
    try:
        run(words)
        sys.stdout.flush()
    except InputError as error:
        fail(str(error))
    except KeyboardInterrupt as interrupt:
        # A terminal shows ^C where the cursor is; the message gets a line without it.
        print(ERASE * sys.stderr.isatty() + (str(interrupt) or "interrupted"), file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and output_is_closed():
            sys.exit(141)
        line = users_fault(error)
        if line is None:
            raise
        fail(line)


def output_is_closed() -> bool:
    """Whether standard output is a pipe that nobody reads, as under `| head`; if so, later output goes nowhere."""
    try:
        print(end="\n", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def run(words: list[str]) -> None:
    """Find the verb, parse its options, call its function."""
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in HELP:
        print(overview())
        return
    if words[0] in ("-V", "--version"):
        print(f"tutelage {importlib.metadata.version('tutelage')}")
        return
    verb, options = words[0], words[1:]
    if verb not in VERBS:
        raise InputError(no_such_verb(verb, VERBS))
    function = load(verb)
    if set(HELP) & set(options):
        print(help_text(verb, function, terminal_page(), everything="--help-all" in options))
        return
    arguments = parse(verb, function, options)
    with exported_feedback(verb, options, arguments):
        function(*arguments.args, **arguments.kwargs)


@contextlib.contextmanager
def exported_feedback(verb: str, words: Sequence[str], arguments: inspect.BoundArguments) -> Iterator[None]:
    """In the arguments, replace a server's data folder or database URL by a file with what its people said."""
    typed = {Path(text): text for word in words for text in (word, word.partition("=")[2])}  # Path drops a URL's slash
    kinds = TAKE_FEEDBACK.get(verb, {})
    given = {name: [typed.get(path, str(path)) for path in arguments.arguments.get(name, ())] for name in kinds}
    if not any("://" in text or os.path.isdir(text) for texts in given.values() for text in texts):
        yield
        return
    from tutelage.runs.run_folder import KEPT_INPUTS, held_in
    from tutelage.store.kept_exports import KeptExports, kept_exports

    out = arguments.arguments["out"]
    exports = KeptExports(out / KEPT_INPUTS, lambda: held_in(out), overwrite=flat(arguments)["overwrite"])
    with kept_exports(given, kinds, exports) as files:
        arguments.arguments.update(files)
        yield


def overview() -> str:
    """The verbs in groups, each with its one line."""
    rows = {name: f"  {name:<12} {verb.line}" for name, verb in VERBS.items()}
    groups = ["\n".join([f"{group}:", *(rows[n] for n in VERBS if VERBS[n].group == group)]) for group in GROUPS]
    return "\n\n".join(
        [
            "tutelage: raise your own ChatGPT, from raw dialogue to an aligned chat model",
            "usage: tutelage VERB [OPTIONS]",
            *groups,
            "tutelage help VERB shows a verb's options and an example.\n"
            "New here? tutelage doctor checks this machine; tutelage demo runs everything.",
        ]
    )


def load(verb: str) -> Callable[..., None]:
    """Import the verb's module and take its function out of it."""
    row = VERBS[verb]
    try:
        return getattr(importlib.import_module(row.module), row.function)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "tutelage":
            raise
        raise InputError(
            f"tutelage {verb} needs the package {package}; tutelage doctor names what to install"
        ) from error


def parse(verb: str, function: Callable[..., None], words: list[str]) -> inspect.BoundArguments:
    """Turn the words after the verb into the function's arguments. Raises InputError with one line for a mistake."""
    import tyro  # here, because the overview does without it

    signature = inspect.signature(function)

    @functools.wraps(function)  # tyro reads the signature through the wrapper; calling it runs nothing yet
    def bind(*args: Any, **kwargs: Any) -> inspect.BoundArguments:
        return signature.bind(*args, **kwargs)

    complaint = io.StringIO()
    try:
        # stdout too: whether tyro draws frames around its complaint depends on stdout.
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
            arguments = tyro.cli(bind, prog=f"tutelage {verb}", args=words, config=(tyro.conf.OmitArgPrefixes,))
        wrong = empty_list(options_of(function), flat(arguments))
    except SystemExit:
        wrong = what_is_wrong(complaint.getvalue(), words, options_of(function))
    if wrong:
        raise InputError(f"tutelage {verb}: {wrong}; see tutelage help {verb}")
    return arguments


def flat(arguments: inspect.BoundArguments) -> dict[str, Any]:
    """The arguments by name, those in a config dataclass by the names of its fields."""
    values: dict[str, Any] = {}
    for name, value in arguments.arguments.items():
        values |= vars(value) if dataclasses.is_dataclass(value) else {name: value}
    return values


def fail(line: str) -> None:
    """Print one line and exit with the code of a user's mistake."""
    print(" ".join(line.split()), file=sys.stderr)
    sys.exit(2)
