"""A reward that is a Python function of the user's: `module:function` or `file.py:function`.

    list of conversations (lists of messages) -> list of numbers, checked: one per conversation, all finite

    def reward(conversations: list[list[dict[str, str]]]) -> list[float]

The function is code that the user names on the command line, and it runs in this process. Modules are found as
`python -m` finds them, starting from the current folder.
"""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import ModuleType
from typing import Any

from tutelage.data.messages import Messages
from tutelage.errors import InputError
from tutelage.rewards.reward import is_score
from tutelage.runs.identity import NamedInput

SIGNATURE = (
    "it must be def NAME(conversations) -> list[float], where each conversation is a list of role and content messages "
    "that ends with the response"
)
NOT_SCORES = (str, bytes, Mapping, Set)  # these can be iterated over, but are no list of scores


class FunctionReward:
    """Calls the function and checks what it returns."""

    def __init__(self, name: str):
        self.name = name
        self.function = load_function(name)

    def __call__(self, conversations: Sequence[Messages]) -> list[float]:
        # Copies, because the function may change its argument.
        copies = [[dict(message) for message in messages] for messages in conversations]
        try:
            returned = self.function(copies)
            returned = list(returned) if isinstance(returned, Iterator) else returned  # a generator runs only now
        except (Exception, SystemExit) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}, line {frame.lineno}"
            raise InputError(f"reward {self.name}: {type(error).__name__}: {error} ({where})") from error
        return self.checked(returned, len(conversations))

    def checked(self, returned: Any, count: int) -> list[float]:
        """The scores as floats. Raises InputError unless they are `count` finite numbers."""
        try:
            if isinstance(returned, NOT_SCORES):
                raise TypeError(f"it returned a {type(returned).__name__}")
            scores = [float(score) for score in returned]
        except (TypeError, ValueError, OverflowError) as error:
            problem = f"must return a list of numbers, one per conversation ({error})"
            raise InputError(f"reward {self.name}: {problem}") from None
        if len(scores) != count:
            problem = f"returned {len(scores)} scores for {count} conversations; return one per conversation, in order"
            raise InputError(f"reward {self.name}: {problem}")
        if bad := [i for i, score in enumerate(scores) if not is_score(score)]:
            raise InputError(f"reward {self.name}: score {bad[0]} is {scores[bad[0]]}; return finite numbers")
        return scores


def load_function(name: str) -> Callable[[list[Messages]], Any]:
    """Import the module or file and return the function. Raises InputError if there is no such function."""
    place, _, attribute = name.rpartition(":")
    module = load_file(Path(place)) if place.endswith(".py") else load_module(place)
    function = getattr(module, attribute, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        known = f" (it has {', '.join(own[:5])})" if own else ""
        raise InputError(f"reward {name}: {place} has no function {attribute!r}{known}; name one as {place}:FUNCTION")
    check_signature(name, function)
    return function


def check_signature(name: str, function: Callable[..., Any]) -> None:
    """Raises InputError unless the function can be called with the conversations alone and returns at once."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions in C do not tell
        return
    if inspect.iscoroutinefunction(function):
        raise InputError(f"reward {name}: is an async function; {SIGNATURE}")
    try:
        signature.bind([])
    except TypeError as error:
        raise InputError(
            f"reward {name}: takes {signature}, and is called with one argument ({error}); {SIGNATURE}"
        ) from None


def load_module(name: str) -> ModuleType:
    search_current_folder()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # importing runs the user's code, which may raise anything
        raise not_importable(name, error) from error


def load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise not_importable(path, error) from error
    return module


def not_importable(place: str | Path, error: BaseException) -> InputError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return InputError(f"reward {place}: cannot be imported ({reason}); fix it, or install what it imports")


def search_current_folder() -> None:
    """Put the current folder on sys.path, as `python -m` does."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def function_identity(name: str) -> NamedInput:
    """The function's name and the text of its file: if either changes, the run is a different one.

    What the file imports is not part of the identity. The file itself is not executed; the parent packages of a module
    are imported to find it. Raises InputError if there is no such file or module.
    """
    place, _, attribute = name.rpartition(":")
    file = Path(place) if place.endswith(".py") else module_file(place)
    if not file.is_file():
        raise InputError(f"reward {name}: {file} is not a file; check the part before the colon")
    return NamedInput(name, f"{attribute}\n{file.read_text(encoding='utf-8', errors='replace')}")


def module_file(name: str) -> Path:
    """A module's source file; its parent packages are imported. Raises InputError if Python finds no such module."""
    search_current_folder()
    try:
        spec = importlib.util.find_spec(name) if all(name.split(".")) else None
    except ModuleNotFoundError as error:
        # The missing module may be one that a parent package imports, rather than the one named here.
        if not f"{name}.".startswith(f"{error.name}."):
            raise not_importable(name, error) from error
        spec = None
    except Exception as error:
        raise not_importable(name, error) from error
    if spec is None or not spec.origin:
        problem = "is neither a run nor a module that Python finds from this folder; give FILE.py:FUNCTION"
        raise InputError(f"reward {name}: {problem}")
    return Path(spec.origin)
