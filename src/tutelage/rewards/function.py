"""A reward that is a Python function of the user's: `module:function` or `file.py:function`.

    list of conversations (lists of messages) -> list of numbers, checked: as many, and finite

It is code that somebody wrote and named on the command line, and it is run as such, in this process. A module is found
as Python finds it from the current folder.
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tutelage.data.records import Messages
from tutelage.errors import InputError
from tutelage.rewards.reward import is_score
from tutelage.runs.identity import Named


class FunctionReward:
    """Calls the function and checks what comes back."""

    def __init__(self, named: str):
        self.named = named
        self.function = load_function(named)

    def __call__(self, conversations: Sequence[Messages]) -> list[float]:
        copies = [[dict(message) for message in messages] for messages in conversations]  # it may change them
        try:
            returned = self.function(copies)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}, line {place.lineno}"
            raise InputError(f"reward {self.named}: {type(error).__name__}: {error} ({where})") from error
        return self.checked(returned, len(conversations))

    def checked(self, returned: Any, count: int) -> list[float]:
        """As many finite numbers as there are conversations. Raises InputError for anything else."""
        try:
            scores = [float(score) for score in returned]
        except (TypeError, ValueError, OverflowError) as error:
            line = f"must return a list of numbers, one per conversation ({error})"
            raise InputError(f"reward {self.named}: {line}") from None
        if len(scores) != count:
            line = f"returned {len(scores)} scores for {count} conversations; return one for each, in their order"
            raise InputError(f"reward {self.named}: {line}")
        if bad := [i for i, score in enumerate(scores) if not is_score(score)]:
            raise InputError(f"reward {self.named}: score {bad[0]} is {scores[bad[0]]}; return finite numbers")
        return scores


def load_function(named: str) -> Callable[[list[Messages]], Any]:
    """Import the module or the file and take the function out of it. Raises InputError where there is none."""
    place, _, name = named.rpartition(":")
    module = load_file(Path(place)) if place.endswith(".py") else load_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"reward {named}: {place} has no function {name!r}; name one as {place}:FUNCTION")
    return function


def load_module(name: str) -> ModuleType:
    look_here()
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the user's module does while it is imported
        raise not_importable(name, error) from error


def load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise not_importable(path, error) from error
    return module


def not_importable(place: str | Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(
        f"reward {place}: cannot be imported ({type(error).__name__}: {reason}); mend it or what it needs"
    )


def look_here() -> None:
    """Modules are found from the current folder, as with python -m."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def function_identity(named: str) -> Named:
    """Its name and the text of its file: another function, or a changed file, makes another run.

    The file itself is not run for it, only the packages that a module lies in, and what it imports from elsewhere is
    not looked at.
    """
    place, _, name = named.rpartition(":")
    file = Path(place) if place.endswith(".py") else module_file(place)
    if not file.is_file():
        raise InputError(f"reward {named}: {file} is no file; check what stands before the colon")
    return Named(named, f"{name}\n{file.read_text(encoding='utf-8', errors='replace')}")


def module_file(name: str) -> Path:
    """Where a module's source lies; the packages around it are imported. Raises InputError where python finds none."""
    look_here()
    try:
        spec = importlib.util.find_spec(name) if all(name.split(".")) else None
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):  # another one, which a package around it asks for
            raise not_importable(name, error) from error
        spec = None
    except Exception as error:
        raise not_importable(name, error) from error
    if spec is None or not spec.origin:
        line = "is neither a run nor a module that python finds from here; give FILE.py:FUNCTION"
        raise InputError(f"reward {name}: {line}")
    return Path(spec.origin)
