"""The options of a verb, read from its signature, its config dataclasses and their docstrings.

    Advanced[float]           marks an option that only --help-all shows
    Count, Share, ...         numbers with a range, declared with the option's type
    out_of_range(config)      the first number outside its range, in words
    options_of(function)      every option of a verb, in order of need

The help text of a parameter is a line `name: text` in the function's docstring, and that of a field the docstring
under the field. Parsing is tyro's; this module describes the same options for the help and for error messages.
"""

import ast
import dataclasses
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
LARGEST = 2**63 - 1  # whole numbers beyond this fit neither tensors nor databases
ADVANCED = "advanced"
Advanced = Annotated[T, ADVANCED]


@dataclass(frozen=True)
class Range:
    """The finite numbers that an option takes. It is a note on the option's type: Annotated[float, Range(above=0)]."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    why: str = ""  # what is wrong with a number beyond the range

    def complaint(self, value: float) -> str:
        """What is wrong with the number; empty if it is inside."""
        whole = isinstance(value, int)
        ends = [
            (
                abs(value) <= LARGEST if whole else math.isfinite(value),
                "a whole number of 64 bits" if whole else "a finite number",
            ),
            (value >= self.least, f"at least {self.least:.12g}"),
            (value > self.above, f"above {self.above:.12g}"),
            (value <= self.most, f"at most {self.most:.12g}"),
            (value < self.below, f"below {self.below:.12g}"),
        ]
        wrong = next((end for inside, end in ends if not inside), "")
        return wrong and f"must be {wrong}" + (f"; {self.why}" if self.why else "")


Count = Annotated[int, Range(least=1, most=10**12)]
Count64 = Annotated[int, Range(least=1, most=LARGEST)]  # that a database can store
Natural = Annotated[int, Range(least=0, most=10**12)]  # options where 0 stands for none, for all or for a default
Size = Annotated[int, Range(least=1, most=2**20)]  # of a tensor's axis, such as a batch
Seed = Annotated[int, Range(least=0, most=LARGEST)]
Finite = Annotated[float, Range(least=-1e30, most=1e30)]  # within fp32
Positive = Annotated[float, Range(above=0, most=1e30)]
NonNegative = Annotated[float, Range(least=0, most=1e30)]
Share = Annotated[float, Range(least=0, most=1)]
PartialShare = Annotated[float, Range(least=0, below=1)]


def out_of_range(config: Any) -> str | None:
    """The first number of a config dataclass that is outside its range, in words; None if all are inside."""
    for name, allowed in ranges_of(type(config)).items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and (wrong := allowed.complaint(number)):
                return f"--{name.replace('_', '-')} {shown(number)}: {wrong}"
    return None


def shown(number: float) -> str:
    """A number in an error message, with at most 20 digits."""
    if isinstance(number, int):
        text = str(number)
        return text if len(text) <= 20 else f"{text[:8]}... ({len(text)} digits)"
    return f"{number:.12g}"


def ranges_of(cls: type[Any]) -> dict[str, Range]:
    """{field: its range}, for the numbers of a config dataclass. The range of a tuple holds for each member."""
    found: dict[str, Range] = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        for part in (hint, *get_args(hint)):
            found.update((name, note) for note in (part, *get_args(part)) if isinstance(note, Range))
    return found


LAST = ("seed", "device", "dtype", "overwrite", "checkpoint_seconds")  # shared by most verbs, so listed last


@dataclass(frozen=True)
class Option:
    """One option of a verb."""

    name: str
    kind: Any  # its type, without annotations and without None
    default: Any  # MISSING if it must be given
    text: str
    positional: bool = False
    advanced: bool = False

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def flags(self) -> tuple[str, ...]:
        """What a user types for it; a positional argument has no flag but a name in capitals."""
        if self.positional:
            return (self.name.upper(),)
        name = self.name.replace("_", "-")
        return (f"--{name}", f"--no-{name}") if self.kind is bool else (f"--{name}",)


class Documentation(NamedTuple):
    """The parts of a function's docstring."""

    paragraphs: list[str]
    parameters: dict[str, str]  # {parameter: help text}
    example: str  # the command after "Example:"


def documentation_of(function: Callable[..., Any]) -> Documentation:
    """The docstring in parts: running text, lines `name: text` about parameters, and the example."""
    names = "|".join(inspect.signature(function).parameters)
    found = Documentation([], {}, "")
    for paragraph in inspect.cleandoc(function.__doc__ or "").split("\n\n"):
        if re.match(rf"({names}): ", paragraph):
            entries = re.split(rf"^({names}): ", paragraph, flags=re.MULTILINE)[1:]
            texts = [" ".join(text.split()) for text in entries[1::2]]
            found.parameters.update(zip(entries[::2], texts, strict=True))
        elif paragraph.startswith("Example:"):
            found = found._replace(example=" ".join(paragraph.removeprefix("Example:").split()))
        else:
            found.paragraphs.append(" ".join(paragraph.split()))
    return found


def options_of(function: Callable[..., Any]) -> list[Option]:
    """A verb's options in order of need: its inputs, its own settings, inherited settings, and last those of LAST."""
    hints, texts = get_type_hints(function, include_extras=True), documentation_of(function).parameters
    found: list[Option] = []
    for parameter in inspect.signature(function).parameters.values():
        default = MISSING if parameter.default is inspect.Parameter.empty else parameter.default
        if dataclasses.is_dataclass(hints[parameter.name]):
            found += fields_of(hints[parameter.name], default)
        else:
            found.append(described(parameter.name, hints[parameter.name], default, texts.get(parameter.name, "")))
    return sorted(found, key=lambda option: LAST.index(option.name) if option.name in LAST else -1)


def fields_of(cls: type[Any], instance: Any) -> Iterator[Option]:
    """The fields of a config dataclass: those that the class itself names first, then those of its bases."""
    hints = get_type_hints(cls, include_extras=True)
    defaults = {field.name: default_of(field) for field in dataclasses.fields(cls)}
    lineage = [base for base in cls.__mro__ if dataclasses.is_dataclass(base)]
    texts = {name: text for base in reversed(lineage) for name, text in field_texts(base).items()}
    for name in dict.fromkeys(name for base in lineage for name in inspect.get_annotations(base)):
        if name in defaults:
            default = defaults[name] if instance is MISSING else getattr(instance, name)
            yield described(name, hints[name], default, texts.get(name, ""))


def default_of(field: dataclasses.Field[Any]) -> Any:
    """MISSING if the field has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def field_texts(cls: type[Any]) -> dict[str, str]:
    """{field: the docstring under it}, for the fields written in this class."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, below in zip(definition.body, definition.body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            texts[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return texts


def described(name: str, hint: Any, default: Any, text: str) -> Option:
    """An option from its annotated type."""
    import tyro  # here, because configs import this module for Advanced alone

    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if get_origin(kind) in (Union, UnionType):
        kind = next(member for member in get_args(kind) if member is not NoneType)
    renamed = [note.name for note in notes if getattr(note, "name", None)]  # tyro.conf.arg(name=...)
    positional = get_args(tyro.conf.Positional[int])[1] in notes
    return Option((renamed or [name])[0], kind, default, text, positional, ADVANCED in notes)
