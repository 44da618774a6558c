"""Who takes part in an evaluation, and by which names the table shows them.

runs, --base, --sft -> language models and reward models, by name
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import InputError
from tutelage.runs.base import find_base
from tutelage.runs.folder import holds_scorer

SFT = "sft"  # the name of --sft in the table


@dataclass(frozen=True)
class Contest:
    """Who is compared: folders by the names of the table."""

    policies: dict[str, Path]  # the language models among the given runs
    scorers: dict[str, Path]  # the reward models among them
    fixed: dict[str, Path]  # base and sft, where they are given

    @property
    def reference(self) -> str:
        """The model that the others are compared with: --sft, or else the first language model."""
        return SFT if SFT in self.fixed else next(iter(self.policies), "")

    @property
    def responding(self) -> dict[str, Path]:
        """Every language model, in the order of the table."""
        return self.fixed | self.policies


def enter(runs: Sequence[Path], fixed: dict[str, Path]) -> Contest:
    """Name each run after its folder; where two would have one name, after as many folders as tell them apart."""
    folders = [find_base(path) for path in runs]
    names = distinct_names(folders, fixed)
    scorers = {name: folder for name, folder in names.items() if holds_scorer(folder)}
    return Contest({name: folder for name, folder in names.items() if name not in scorers}, scorers, fixed)


def distinct_names(folders: Sequence[Path], taken: dict[str, Path]) -> dict[str, Path]:
    """{name: folder}. Raises InputError if a folder is given twice."""
    if len({folder.absolute() for folder in folders}) < len(folders):
        raise InputError("evaluate: a run is given twice; leave one of them out")
    names = {}
    for folder in folders:
        parts = folder.absolute().parts
        for depth in range(1, len(parts) + 1):
            others = [other for other in folders if other.absolute().parts[-depth:] == parts[-depth:]]
            if len(others) == 1 and (name := "/".join(parts[-depth:])) not in taken:
                names[name] = folder
                break
    return names


def check(contest: Contest, prompts: bool, comparisons: bool) -> None:
    """Raises InputError where there is nothing to compare the runs by."""
    if not (prompts or comparisons):
        raise InputError(
            "evaluate: give --prompts to compare responses, --comparisons to compare how rankings are ordered, or both"
        )
    if contest.scorers and not comparisons:
        scorer = next(iter(contest.scorers.values()))
        raise InputError(
            f"{scorer}: holds a reward model, which does not respond to prompts; give --comparisons to measure it, or "
            "pass it as --reward to judge the others"
        )
    if prompts and not contest.reference:
        raise InputError("evaluate: there is no language model to respond to --prompts; give one as a run or as --sft")
