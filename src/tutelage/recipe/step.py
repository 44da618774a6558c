"""One stage of the recipe: the command a person would type, and whether its result is already on disk."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from tutelage.runs.identity import Inputs, difference, fingerprint, hash_inputs
from tutelage.runs.record import missing_file, read_run
from tutelage.runs.run import RunConfig

NOT_RUN = "not run yet"


@dataclass(frozen=True)
class Step:
    """One stage of the recipe: a subcommand of `tutelage`, its files and its config."""

    name: str
    verb: str
    inputs: dict[str, Path | tuple[Path, ...]]
    out: Path
    record: Path  # the folder of run.json
    config: RunConfig | None
    found: Inputs = field(default_factory=dict)  # inputs that the subcommand finds by itself

    def command(self) -> list[str]:
        """The arguments after `tutelage`."""
        if self.verb == "report":
            return [self.verb, str(self.out)]
        arguments = [self.verb]
        for name, value in self.inputs.items():
            paths = [value] if isinstance(value, Path) else list(value)
            arguments += [*([] if name == "policies" else [f"--{name}"]), *map(str, paths)]
        return [*arguments, "--out", str(self.out), *flags(self.config)]

    def reason_to_run(self) -> str | None:
        """None if the run on disk has this config and these inputs; otherwise why the step has to run."""
        finished = read_run(self.record)
        if finished is None or self.config is None:
            return NOT_RUN
        inputs = hash_inputs({**self.inputs, **self.found})
        if finished["fingerprint"] != fingerprint(self.verb, self.config, inputs):
            return difference(finished, self.verb, self.config, inputs)
        return missing_file(self.record, finished) if self.out.exists() else f"{self.out} is missing"


def flags(config: RunConfig | None) -> list[str]:
    """A config as command-line options: only those that differ from the stage's defaults."""
    arguments: list[str] = []
    for option in fields(config) if config else ():
        value, name = getattr(config, option.name), option.name.replace("_", "-")
        if value == option.default:
            continue
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no-{name}")
        else:
            arguments += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return arguments
