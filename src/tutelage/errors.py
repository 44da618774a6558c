"""The exceptions meant for the user.

Any package may import this module. The command line prints an `InputError` as one line and exits with status 2.
Any other exception is a bug in tutelage: it keeps its traceback and exits with status 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 600  # characters; what a file holds may be of any length


class InputError(Exception):
    """Invalid user input. The message is one line: the thing, the facts that disagree, the next move."""

    def __init__(self, message: str):
        # A path, a field of a file and the message of a library can all have line breaks in them.
        line = " ".join(message.splitlines())
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 200]} ... {line[-190:]}")


class TrainingError(InputError):
    """A training step failed. A stage that already has a model worth keeping may catch this and end with that model."""


@contextmanager
def located(where: str) -> Iterator[None]:
    """Let an InputError from within begin with the place of the record that caused it: its file and line."""
    try:
        yield
    except InputError as error:
        if not where or str(error).startswith(where):
            raise
        raise InputError(f"{where}: {error}") from None
