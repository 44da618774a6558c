"""Mistakes on the command line, each in one line of plain English: the thing, the facts, the next move."""

import difflib
import errno
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tutelage.options import Option

UNUSABLE = (errno.ENAMETOOLONG, errno.EROFS, errno.ELOOP, errno.EIO)  # a path too long; a disk that cannot be written
HELP = ("--help", "--help-all", "-h")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like this one, dashes aside; None if none is like it."""
    bare = {name.lstrip("-"): name for name in known}
    word = word.lstrip("-").replace("_", "-")
    close = difflib.get_close_matches(word, bare, n=1) or [name for name in bare if word and name.startswith(word)]
    return bare[close[0]] if close else None


def no_such_verb(verb: str, verbs: Iterable[str]) -> str:
    """A mistyped verb."""
    close = nearest(verb, verbs)
    return f"there is no verb {verb!r}; " + (f"did you mean {close}?" if close else "tutelage help lists the verbs")


def what_is_wrong(complaint: str, words: Sequence[str], options: Sequence[Option]) -> str:
    """tyro's complaint about these words, in one line.

    "Value error / ---- / Error parsing --lr: could not convert string to float: 'x' / ---- / ..." -> "--lr: 'x' is
    not a number"
    """
    if unknown := unknown_flag(words, options):
        close = nearest(unknown, known_flags(options))
        return f"there is no option {unknown}" + (f"; did you mean {close}?" if close else "")
    sections = [" ".join(section.split()) for section in re.split(r"^\s*-{8,}\s*$", complaint, flags=re.MULTILINE)]
    message = sections[1].rstrip(".") if len(sections) > 1 else " ".join(complaint.split())
    if message.startswith("Missing from"):
        return missing(complaint, options)
    for pattern, plain in PLAIN:
        if found := re.fullmatch(pattern, message):
            return plain.format(*found.groups())
    return message


PLAIN = [  # tyro's sentences, and ours
    (r"Unrecognized options: (.*)", "unexpected argument: {}"),
    (r"Error parsing (\S+): could not convert string to float: (.*)", "{}: {} is not a number"),
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", "{}: {} is not a whole number"),
    (r"Error parsing (\S+): (.*)", "{}: {}"),
    (r"Missing value for argument '(\S+)'.*", "{} needs a value"),
    (r"invalid choice '(.*)' for argument '(\S+)'\. Expected one of \((.*?),?\)", "{1}: {0!r} is not one of {2}"),
]


def unknown_flag(words: Sequence[str], options: Sequence[Option]) -> str | None:
    """The first word that looks like an option and is none."""
    known = known_flags(options)
    for word in words:
        flag = word.partition("=")[0]
        if re.match(r"--?[A-Za-z]", flag) and flag.replace("_", "-") not in known:
            return flag
    return None


def known_flags(options: Sequence[Option]) -> list[str]:
    """Every flag that the verb takes."""
    return [flag for option in options if not option.positional for flag in option.flags] + list(HELP)


def missing(complaint: str, options: Sequence[Option]) -> str:
    """Names what tyro calls required: flags by themselves, positional arguments by their parameter."""
    flags = [re.escape(option.name if option.positional else option.flags[0]) for option in options]
    found = [re.search(rf"^\s+{name}\b(?!-)", complaint, re.MULTILINE) for name in flags]
    names = [option.flags[0] for option, where in zip(options, found, strict=True) if option.required and where]
    return f"{listed(names)} {'is' if len(names) == 1 else 'are'} missing"


def listed(names: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def empty_list(options: Sequence[Option], values: dict[str, Any]) -> str | None:
    """A required list without a member: `--corpus` alone is a mistake, not an empty corpus."""
    for option in options:
        if option.required and values.get(option.name) == ():
            return f"{option.flags[0]} is empty; give at least one"
    return None


def users_fault(error: Exception) -> str | None:
    """One line for an error of the machine or of the paths given; None for our own bugs."""
    # safetensors writes through Rust and reports a full disk in its message, not as an OSError.
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: a limit on the size of one file
    full = isinstance(error, OSError) and error.errno in numbers or any(f"os error {n})" in str(error) for n in numbers)
    if full:
        where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"the disk is full{where}: no partial file was kept; free some space and run the same command again"
    if (wanted := out_of_memory(error)) is not None:
        return f"not enough memory{wanted}; give smaller sizes, or use a machine with more"
    if isinstance(error, OSError) and error.filename:  # too long a path, a read-only disk, no permission, ...
        return f"{shortened(str(error.filename))}: {error.strerror}; check the path"
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from"):  # Python 3.11's and 3.12's
        return f"{error}; check the path"
    kinds = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
    if isinstance(error, kinds) or (isinstance(error, OSError) and error.errno in UNUSABLE):
        return str(error)
    return None


def shortened(path: str) -> str:
    """A path of any length, in a line."""
    return path if len(path) <= 300 else f"{path[:100]}... ({len(path)} characters)"


def out_of_memory(error: Exception) -> str | None:
    """How much memory could not be had, in words, empty if unknown; None for another error."""
    if isinstance(error, RuntimeError) and (
        found := re.search(r"tried to allocate ([\d.]+) (bytes|\w?iB)", str(error), re.I)
    ):
        amount, unit = float(found[1]), found[2]
        return f" for {amount / 2**30:,.1f} GiB at once" if unit == "bytes" else f" for {found[1]} {unit} at once"
    return "" if isinstance(error, MemoryError) else None
