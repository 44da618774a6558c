"""The exceptions meant for the user.

Any package may import this module. The command line prints an `InputError` as one line and exits with status 2.
Any other exception is a bug in tutelage: it keeps its traceback and exits with status 1.
"""


class InputError(Exception):
    """Invalid user input. The message is one line: the thing, the facts that disagree, the next move."""


class TrainingError(InputError):
    """A training step failed. A stage that already has a model worth keeping may catch this and end with that model."""
