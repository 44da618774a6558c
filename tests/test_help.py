"""The help of a verb as people read it: three groups in the order of need, one entry an option, nothing too wide."""

import importlib
import io
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import pytest
import tyro

from tutelage.cli import VERBS
from tutelage.help import Page, copyable, help_text, terminal_page
from tutelage.options import Advanced, Option, documentation_of, options_of

PLAIN = Page(80, colours=False)


@dataclass(frozen=True, kw_only=True)
class FarmConfig:
    """What all verbs of a farm share."""

    seed: int = 0
    """Seeds the weather."""
    fence: float = 1e-7
    """Height of the fence."""
    plough: str = "horse"
    """This text is replaced below."""


@dataclass(frozen=True, kw_only=True)
class SowConfig(FarmConfig):
    """One sowing."""

    depth: Advanced[float] = 0.05
    """How deep a seed lies, in metres."""
    months: tuple[int, ...] = (3, 4)
    """Months to sow in."""
    moon: Literal["new", "full"] = "new"
    """The moon to sow under."""
    water: bool = True
    """Water the field."""
    dry_run: bool = False
    """Sow nothing."""
    plough: str = "a tractor"
    """What pulls the plough."""
    tools: Advanced[tuple[str, ...]] = field(default_factory=tuple)
    """Tools to take along. The text of this
    option has two lines."""


def sow(
    field: tyro.conf.Positional[Path],
    seeds: tuple[Path, ...],
    barn: Annotated[Path | None, tyro.conf.arg(name="to")] = None,
    config: SowConfig = SowConfig(depth=0.1),
) -> None:
    """Sow a field
    in rows.

    It takes a day.

    field: folder of the field
    seeds: files with seeds; this text goes on
      in a second line
    barn: where the rest goes

    Example: tutelage sow north --seeds a.txt b.txt
    --depth 0.02
    """


EXPECTED = """\
usage: tutelage sow FIELD --seeds PATH... [OPTIONS]

Sow a field in rows.

It takes a day.

Example:
  tutelage sow north --seeds a.txt b.txt --depth 0.02

What you must give:
  FIELD                   folder of the field
  --seeds PATH...         files with seeds; this text goes on in a second line

What people change:
  --to PATH               where the rest goes
  --months INT...         Months to sow in. (default: 3 4)
  --moon new|full         The moon to sow under. (default: new)
  --water / --no-water    Water the field. (default: --water)
  --dry-run               Sow nothing.
  --plough TEXT           What pulls the plough. (default: 'a tractor')
  --fence FLOAT           Height of the fence. (default: 1e-07)
  --seed INT              Seeds the weather. (default: 0)
"""
ADVANCED = """
Advanced:
  --depth FLOAT           How deep a seed lies, in metres. (default: 0.1)
  --tools TEXT...         Tools to take along. The text of this option has two
                          lines."""


def test_the_help_of_a_made_up_verb() -> None:
    assert help_text("sow", sow, PLAIN) == EXPECTED + "\n2 advanced options: tutelage sow --help-all"
    assert help_text("sow", sow, PLAIN, everything=True) == EXPECTED + ADVANCED


def test_a_required_option_is_never_hidden() -> None:
    def reap(sickle: Advanced[Path], scythe: Advanced[int] = 2) -> None:
        """Reap."""

    assert [(option.required, option.advanced) for option in options_of(reap)] == [(True, True), (False, True)]
    text = help_text("reap", reap, PLAIN)
    assert "What you must give:\n  --sickle PATH" in text
    assert "--scythe" not in text
    assert text.endswith("1 advanced option: tutelage reap --help-all")


def test_the_mark_changes_nothing_else() -> None:
    """tyro parses a marked field, and asdict, which run.json is written with, does not see the mark."""
    parsed = tyro.cli(SowConfig, args=["--depth", "2", "--tools", "hoe", "rake", "--no-water"])
    assert parsed == SowConfig(depth=2.0, tools=("hoe", "rake"), water=False)
    assert asdict(SowConfig())["depth"] == 0.05
    assert [f.name for f in fields(SowConfig)][:3] == ["seed", "fence", "plough"]


def test_a_narrow_terminal_wraps_and_keeps_flags_whole() -> None:
    text = help_text("sow", sow, Page(50, colours=False), everything=True)
    assert max(map(len, text.splitlines())) <= 50
    assert text.startswith("usage: tutelage sow FIELD OPTIONS\n")
    assert "  tutelage sow north --seeds a.txt b.txt \\\n    --depth 0.02\n" in text


def test_a_long_example_ends_its_lines_in_backslashes() -> None:
    command = "tutelage sow north south --seeds a.txt b.txt --depth 0.02 --no-water"
    pieces = copyable(command, 40).splitlines()
    assert [piece.strip(" \\") for piece in pieces] == [
        "tutelage sow north south", "--seeds a.txt b.txt --depth 0.02", "--no-water"
    ]  # fmt: skip
    assert [piece.endswith(" \\") for piece in pieces] == [True, True, False]
    assert max(map(len, pieces)) <= 40


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_and_width_follow_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for columns, width in [("20", 40), ("80", 80), ("90", 90), ("250", 100)]:
        monkeypatch.setenv("COLUMNS", columns)
        assert terminal_page() == Page(width, colours=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert terminal_page().colours
    text = help_text("sow", sow, terminal_page())
    assert re.sub(r"\033\[\d+m", "", text) == help_text("sow", sow, Page(100, colours=False))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not terminal_page().colours


# --- the verbs


def function_of(verb: str) -> Callable[..., None]:
    return getattr(importlib.import_module(VERBS[verb].module), VERBS[verb].function)


def entries(verb: str, *, everything: bool = False) -> dict[str, list[str]]:
    """{group: what is typed for each option listed in it}."""
    text = help_text(verb, function_of(verb), Page(100, colours=False), everything=everything)
    parts = re.split(r"^(What you must give|What people change|Advanced):$", text, flags=re.MULTILINE)
    return {
        name: re.findall(r"^  (\S+)", body, re.MULTILINE) for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


SPECIAL = {"POLICIES": "POLICIES...", "RUNS": "RUNS..."}


def typed(option: Option) -> str:
    choices = "|".join(get_args(option.kind)) if option.positional and get_origin(option.kind) is Literal else ""
    return choices or SPECIAL.get(option.flags[0], option.flags[0])


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_listed_once_and_fits(verb: str) -> None:
    listed = [name for group in entries(verb, everything=True).values() for name in group]
    assert sorted(listed) == sorted(typed(option) for option in options_of(function_of(verb)))
    for width in (80, 100):
        text = help_text(verb, function_of(verb), Page(width, colours=False), everything=True)
        assert max(map(len, text.splitlines())) <= width
        assert f"\nExample:\n  tutelage {verb}" in text
        assert not re.search("None|MISSING", text)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_says_what_it_does(verb: str) -> None:
    for option in options_of(function_of(verb)):
        assert re.fullmatch(r"\S.+[^.]\.", option.text), option


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_gives_what_must_be_given_and_knows_its_flags(verb: str) -> None:
    words = documentation_of(function_of(verb)).example.split()
    options = [option for option in options_of(function_of(verb)) if not option.positional]
    known = {flag for option in options for flag in option.flags}
    assert {word for word in words if word.startswith("--")} <= known
    assert {option.flags[0] for option in options if option.required} <= set(words)


@pytest.mark.parametrize(
    ("verb", "required"),
    [
        ("demo", ""),
        ("sft", "--base --demos --out"),
        ("ppo", "--policy --reward --prompts --out"),
        ("grpo", "--policy --reward --prompts --out"),
        ("interpolate", "SFT RL --out"),
        ("rank", "--out"),
        ("keys", "list|make|revoke"),
        ("serve", "RUNS..."),
    ],
)
def test_what_must_be_given(verb: str, required: str) -> None:
    assert entries(verb).get("What you must give", []) == required.split()


@pytest.mark.parametrize(
    ("verb", "usual", "advanced"),
    [
        (
            "sft",
            "--heldout --epochs --batch --lr --min-answer --max-answer --row --lora-rank --seed --device --overwrite",
            "--tokens --warmup --evaluate-every --max-pieces --heldout-rows --weight-decay --floor --clip --lora-alpha "
            "--lora-targets --lora-layers --lora-dropout --adapter-only --dtype --checkpoint-seconds",
        ),
        (
            "ppo",
            "--corpus --judge --update --ptx --iterations --batch --max-tokens --max-prompt --lr --kl-coef --kl-budget "
            "--lora-rank --seed --device --overwrite",
            "--minibatch --epochs --value-epochs --value-lr --gamma --lam --update-kl --clip --value-clip "
            "--temperature --warmup --kl-target --kl-gain --missing-end --min-answer --grad-clip --ema --ptx-windows "
            "--ptx-window --ptx-breaks --ptx-share --ptx-calibration --snapshot-every --lora-alpha --lora-targets "
            "--lora-layers --lora-dropout --adapter-only --ensemble --uwo-lambda --reward-key-file --dtype "
            "--checkpoint-seconds",
        ),
        (
            "serve",
            "--host --port --data --recording --slots --context --memory --moderate --terms --classifier --device",
            "--database --access-log --trusted-proxy --piece --queue --blocked --threshold --builtin-terms --dtype",
        ),
    ],
)
def test_the_usual_and_the_advanced_options(verb: str, usual: str, advanced: str) -> None:
    assert entries(verb)["What people change"] == usual.split()
    assert "Advanced" not in entries(verb)
    everything = entries(verb, everything=True)
    assert everything["What people change"] == usual.split()
    assert everything["Advanced"] == advanced.split()


@pytest.mark.parametrize("verb", VERBS)
def test_the_usual_options_are_few(verb: str) -> None:
    assert len(entries(verb).get("What people change", [])) <= 15
