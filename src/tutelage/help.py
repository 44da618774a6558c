"""The help of one verb: usage, description, example, and its options in three groups.

    function  ->  options_of  ->  what you must give, what people change, advanced  ->  text

`--help` counts the advanced options; `--help-all` lists them.
"""

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

from tutelage.options import Option, documentation_of, options_of

WIDEST, NARROWEST = 100, 40  # columns
LEFT = 26  # columns for an option's flag; a longer one has a line to itself
KEPT_WHOLE = 24  # characters of a default that is not broken between lines
NO_BREAK = "\u00a0"  # textwrap does not break lines here
METAVARS = {int: "INT", float: "FLOAT", str: "TEXT"}


class Page(NamedTuple):
    """What the help is written on."""

    width: int
    colours: bool


def terminal_page() -> Page:
    """Standard output: as wide as the terminal, and in colours if it is one."""
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    columns = shutil.get_terminal_size((80, 24)).columns
    return Page(max(NARROWEST, min(WIDEST, columns)), colours)


def help_text(verb: str, function: Callable[..., Any], page: Page, *, everything: bool = False) -> str:
    """The help of a verb; the advanced options only if `everything` is asked for."""
    options, documentation = options_of(function), documentation_of(function)
    advanced = [option for option in options if option.advanced and not option.required]
    usual = [option for option in options if option not in advanced]
    parts = [
        usage(verb, options, page.width),
        *(wrapped(paragraph, page.width) for paragraph in documentation.paragraphs),
    ]
    if documentation.example:
        parts.append(title("Example", page) + copyable(documentation.example, page.width))
    parts += group("What you must give", [option for option in usual if option.required], page)
    parts += group("What people change", [option for option in usual if not option.required], page)
    parts += group("Advanced", advanced, page) if everything else []
    if advanced and not everything:
        count = "1 advanced option" if len(advanced) == 1 else f"{len(advanced)} advanced options"
        parts.append(f"{count}: tutelage {verb} --help-all")
    return "\n\n".join(parts)


def usage(verb: str, options: Sequence[Option], width: int) -> str:
    """One line: what must be given, or OPTIONS for it where that is too long."""
    positional = [placeholder(option) for option in options if option.positional and option.required]
    positional += [f"[{placeholder(option)}]" for option in options if option.positional and not option.required]
    flags = [left_side(option) for option in options if option.required and not option.positional]
    line = " ".join(["usage: tutelage", verb, *positional, *flags, "[OPTIONS]"])
    return line if len(line) <= width else " ".join(["usage: tutelage", verb, *positional, "OPTIONS"])


def group(name: str, options: Sequence[Option], page: Page) -> list[str]:
    """A titled group of options; nothing if it has none."""
    return [title(name, page) + "\n".join(entry(option, page) for option in options)] if options else []


def title(name: str, page: Page) -> str:
    return ("\033[1m" + name + ":\033[0m\n") if page.colours else f"{name}:\n"


def entry(option: Option, page: Page) -> str:
    """An option's flag on the left, its text and its default on the right."""
    left, default = left_side(option), shown_default(option)
    if default and len(default) <= KEPT_WHOLE:
        default = default.replace(" ", NO_BREAK)
    text = f"{option.text} (default:{NO_BREAK}{default})".lstrip() if default else option.text
    right = wrapped(text, page.width, " " * LEFT)
    coloured = f"\033[36m{left}\033[0m" if page.colours else left
    if len(left) + 4 > LEFT:
        return f"  {coloured}\n{right}".rstrip()
    return f"  {coloured}{right[2 + len(left) :]}".rstrip()


def left_side(option: Option) -> str:
    """How the option is typed: `--lr FLOAT`, `--ptx / --no-ptx`, `RUN`."""
    if option.positional:
        return placeholder(option)
    if option.kind is bool:
        return " / ".join(option.flags) if option.default else option.flags[0]
    return f"{option.flags[0]} {placeholder(option)}"


def placeholder(option: Option) -> str:
    """What stands for the option's value: its choices, its type, or the name of a positional argument."""
    several = get_origin(option.kind) is tuple
    kind = get_args(option.kind)[0] if several else option.kind
    if get_origin(kind) is Literal:
        one = "|".join(map(str, get_args(kind)))
    else:
        one = option.flags[0] if option.positional else METAVARS.get(kind, "PATH")
    return one + "..." * several


def shown_default(option: Option) -> str:
    """The default as a user would type it; empty for a default of nothing and for a switch that is off."""
    value = option.default
    if option.required or value is None or value is False or value in ("", ()):
        return ""
    if value is True:
        return option.flags[0]
    return " ".join(written(one) for one in (value if isinstance(value, tuple) else [value]))


def written(value: Any) -> str:
    """One value as a word for the shell."""
    word = f"{value:.12g}" if isinstance(value, float) else str(value)
    return f"'{word}'" if " " in word else word


def wrapped(text: str, width: int, indent: str = "") -> str:
    """Lines of at most `width` columns; flags, paths and other long words stay whole."""
    lines = textwrap.wrap(text, width - len(indent), break_on_hyphens=False, break_long_words=False)
    return "\n".join(indent + line.replace(NO_BREAK, " ") for line in lines)


def copyable(command: str, width: int) -> str:
    """The command for a shell: where it is too long, a line ends in a backslash, and an option keeps its values."""
    lines: list[str] = []
    for piece in re.split(r" (?=--)", command):
        if lines and len(lines[-1]) + 1 + len(piece) <= width - 2:
            lines[-1] += f" {piece}"
        else:
            lines.append(f"{'    ' if lines else '  '}{piece}")
    return " \\\n".join(lines)
