"""The command line: one verb per thing a person does.

    tutelage <verb> [options]   ->   the verb's function, called with what its signature asks for

A verb is a row of `VERBS`: module, function, one line. Its options are the function's keyword parameters and the fields
of its frozen config dataclass, flags without prefix; its help ends with the `Example:` line of its docstring. Modules
are imported only when their verb is used: `tutelage --help` must not wait for torch.

Exit codes: 0 done; 2 the user's mistake, in one line; 130 Ctrl-C; 1 our bug, with its traceback.
"""

import contextlib
import dataclasses
import difflib
import errno
import functools
import importlib
import importlib.metadata
import inspect
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tutelage.errors import InputError


class Verb(NamedTuple):
    """Where a verb's function lives, and what the list of verbs says about it."""

    module: str
    function: str
    line: str


VERBS = {
    "demo": Verb("tutelage.recipe.demo", "demo", "run the whole recipe on real dialogues; resumable"),
    "collect": Verb("tutelage.stages.collect", "collect", "gather, clean, redact and split the demo's dialogues"),
    "tokenizer": Verb("tutelage.stages.tokenizer", "tokenizer", "train a byte-level BPE tokenizer"),
    "import-model": Verb("tutelage.stages.import_model", "import_model", "take over a model from elsewhere as a run"),
    "pretrain": Verb("tutelage.stages.pretrain", "pretrain", "train a GPT on plain text: predict the next token"),
    "sft": Verb("tutelage.stages.sft", "sft", "fine-tune on demonstrations (InstructGPT's step 1)"),
    "rank": Verb("tutelage.stages.rank", "rank", "sample answers and have them ranked, or import rankings"),
    "reward": Verb("tutelage.stages.reward", "reward", "train a reward model on rankings (step 2)"),
    "ppo": Verb("tutelage.stages.ppo", "ppo", "optimise against the reward with PPO-ptx (step 3)"),
    "rloo": Verb("tutelage.stages.rloo", "rloo", "optimise against the reward with RLOO: no value network"),
    "grpo": Verb("tutelage.stages.grpo", "grpo", "optimise against the reward with GRPO or Dr. GRPO"),
    "best-of-n": Verb("tutelage.stages.best_of_n", "best_of_n", "keep the reward's favourite of n answers, for sft"),
    "interpolate": Verb(
        "tutelage.stages.interpolate", "interpolate", "mix the weights of two runs: between SFT and RL"
    ),
    "dpo": Verb("tutelage.stages.dpo", "dpo", "train on rankings without a reward model (DPO and its family)"),
    "kto": Verb("tutelage.stages.kto", "kto", "train on thumbs up and down (KTO)"),
    "moderation": Verb("tutelage.moderation.training", "moderation", "train the moderation filter on people's flags"),
    "score": Verb("tutelage.rewards.score", "score", "what a reward gives the answers in a file"),
    "evaluate": Verb("tutelage.evals.evaluate", "evaluate", "put runs side by side on held-out prompts"),
    "tasks": Verb("tutelage.evals.tasks", "tasks", "zero-, one- and few-shot accuracy on small tasks"),
    "report": Verb("tutelage.recipe.report", "report", "write the one-page report of a finished recipe"),
    "export": Verb("tutelage.runs.export", "export", "hand a model over: Hugging Face folder or GGUF file"),
    "chat": Verb("tutelage.terminal.chat", "chat", "talk to a run in this terminal"),
    "serve": Verb("tutelage.server.serve", "serve", "an OpenAI-compatible API and a chat page on runs"),
    "keys": Verb("tutelage.web.key_command", "keys", "make, list and revoke the API's keys"),
    "doctor": Verb("tutelage.recipe.doctor", "doctor", "say what this machine is, and what is missing"),
}


# Read by torch's libraries when it is imported; what was measured: LOG.md. Threads that spin only briefly before they
# sleep lose nothing on a quiet machine, and should not hold up each other where something else runs beside us. A kernel
# is made and kept for each shape of a product, and sequences have many lengths: PPO grew by 80 MiB an iteration.
TORCH_SETTINGS = {"GOMP_SPINCOUNT": "20000", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line and leave with its exit code (see the top of this file)."""
    words = list(sys.argv[1:] if argv is None else argv)
    for name, value in TORCH_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        run(words)
    except InputError as error:
        fail(str(error))
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = users_fault(error)
        if line is None:
            raise
        fail(line)


def run(words: list[str]) -> None:
    """Find the verb, parse its options, call its function."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return
    if words[0] in ("-V", "--version"):
        print(f"tutelage {importlib.metadata.version('tutelage')}")
        return
    verb, options = words[0], words[1:]
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else "see tutelage --help"
        raise InputError(f"tutelage has no verb {verb!r}; {hint}")
    function = load(verb)
    arguments = parse(verb, function, options)
    function(*arguments.args, **arguments.kwargs)


def overview() -> str:
    """The list of verbs, each with its one line."""
    rows = "\n".join(f"  {name:<12} {verb.line}" for name, verb in VERBS.items())
    return (
        "tutelage: raise your own ChatGPT, from raw dialogue to a preference-aligned chat model\n\n"
        f"usage: tutelage <verb> [options]\n\n{rows}\n\n"
        "tutelage <verb> --help shows a verb's options and an example. Start with: tutelage demo"
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


def parse(verb: str, function: Callable[..., None], options: list[str]) -> inspect.BoundArguments:
    """Turn the options into the function's arguments; help ends here, and so do mistakes, in one line."""
    import tyro  # here, because the list of verbs does without it

    signature = inspect.signature(function)

    @functools.wraps(function)  # tyro reads the signature through the wrapper; calling it runs nothing yet
    def bind(*args: Any, **kwargs: Any) -> inspect.BoundArguments:
        return signature.bind(*args, **kwargs)

    ask = functools.partial(
        tyro.cli,
        bind,
        prog=f"tutelage {verb}",
        description=description(function),
        args=options,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if {"-h", "--help"} & set(options):
        return ask()  # prints the help and exits
    complaint = io.StringIO()
    try:
        # stdout too: by what it can show, tyro draws frames around what it writes to stderr.
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
            arguments = ask()
    except SystemExit:
        raise InputError(f"tutelage {verb}: {one_line(complaint.getvalue())}; see tutelage {verb} --help") from None
    refuse_empty_lists(verb, signature, arguments)
    return arguments


def description(function: Callable[..., None]) -> str:
    """The docstring as the help shows it: each paragraph on one line, the example last."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(textwrap.dedent(paragraph).split()) for paragraph in paragraphs)


def one_line(complaint: str) -> str:
    """What tyro's complaint says, and the flag it proposes, without its title, its rules and the rest of the help.

    "Value error / ---- / Error parsing --lr: no float / ---- / For full helptext ..." -> "Error parsing --lr: no float"
    """
    sections = [" ".join(section.split()) for section in re.split(r"^\s*-{8,}\s*$", complaint, flags=re.MULTILINE)]
    told = [sections[1]] + [section for section in sections[2:] if section.startswith("Unrecognized")]
    proposed = re.search(r"Perhaps you meant: (--[\w-]+)", " ".join(sections))
    return "; ".join(told).replace(" (required)", "").rstrip(".") + (f" (perhaps {proposed[1]}?)" if proposed else "")


def refuse_empty_lists(verb: str, signature: inspect.Signature, arguments: inspect.BoundArguments) -> None:
    """A list the verb cannot do without must name something: `--corpus` alone is a mistake, not an empty corpus."""
    required = {
        name: value
        for name, value in arguments.arguments.items()
        if signature.parameters[name].default is inspect.Parameter.empty
    }
    for group in [value for value in required.values() if dataclasses.is_dataclass(value)]:
        fields = [field for field in dataclasses.fields(group) if field.default is dataclasses.MISSING]
        required |= {field.name: getattr(group, field.name) for field in fields}
    for name, value in required.items():
        if isinstance(value, (list, tuple)) and not value:
            raise InputError(
                f"tutelage {verb}: {name} names nothing; give at least one path (see tutelage {verb} --help)"
            )


def users_fault(error: Exception) -> str | None:
    """One line for what the machine or the paths given are to blame for; None for our own bugs."""
    # safetensors writes through Rust and reports a full disk in words, not as an OSError.
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: a limit on the size of one file
    full = isinstance(error, OSError) and error.errno in numbers or any(f"os error {n})" in str(error) for n in numbers)
    if full:
        where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"the disk is full{where}: nothing half-written was kept; free some space and run the same command again"
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)):
        path: Any = error.filename
        return f"{path}: {error.strerror}; check the path" if path else str(error)
    return None


def fail(line: str) -> None:
    """Say one line and leave with the exit code of a user's mistake."""
    print(" ".join(line.split()), file=sys.stderr)
    sys.exit(2)
