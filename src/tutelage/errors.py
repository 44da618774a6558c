"""The exceptions a user should ever see.

Any room may import this file. The command line prints an `InputError` as a single line and exits with 2;
every other exception is our bug and keeps its traceback (exit 1).
"""


class InputError(Exception):
    """Something the user gave does not fit: the thing, the facts that disagree, the next move, in one line."""


class TrainingError(InputError):
    """A step that cannot be taken: whoever has something worth keeping by then may end with it instead."""
