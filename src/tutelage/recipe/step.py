"""One stage of the recipe as the command a person would type, and whether what it leaves is there already."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from tutelage.runs.identity import Inputs, difference, fingerprint, hash_inputs
from tutelage.runs.run import RunConfig, read_run


@dataclass(frozen=True)
class Step:
    """One stage of the recipe: a verb of the command line, its files and its config."""

    name: str
    verb: str
    inputs: dict[str, Path | tuple[Path, ...]]
    out: Path
    record: Path  # where run.json lies
    config: RunConfig | None
    found: Inputs = field(default_factory=dict)  # inputs that the verb finds by itself

    def command(self) -> list[str]:
        """The arguments after `tutelage`."""
        words = [self.verb]
        if self.verb == "report":
            return [*words, str(self.out)]
        for name, given in self.inputs.items():
            paths = [given] if isinstance(given, Path) else list(given)
            words += [*([] if name == "policies" else [f"--{name}"]), *map(str, paths)]
        return [*words, "--out", str(self.out), *flags(self.config)]

    def reason_to_run(self) -> str | None:
        """None if the run on disk is this one, else why it is not."""
        found = read_run(self.record)
        if found is None or self.config is None:
            return "not made yet"
        inputs = hash_inputs({**self.inputs, **self.found})
        same = found["fingerprint"] == fingerprint(self.verb, self.config, inputs) and self.out.exists()
        return None if same else difference(found, self.verb, self.config, inputs)


def flags(config: RunConfig | None) -> list[str]:
    """A config as options: only what differs from the stage's own defaults."""
    words: list[str] = []
    for option in fields(config) if config else ():
        value, name = getattr(config, option.name), option.name.replace("_", "-")
        if value == option.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words
