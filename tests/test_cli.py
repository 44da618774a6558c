"""The command line as people meet it: help without torch, options without prefix, mistakes in one line."""

import errno
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from tutelage import cli
from tutelage.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SowConfig:
    """One sowing."""

    rate: float = 1e-3
    """Seeds per step."""
    rows: int = 2
    """Rows to sow."""
    moon: Literal["new", "full"] = "new"
    """When to sow."""
    dry_run: bool = False
    """Sow nothing."""


def sow(field: Path, seeds: tuple[Path, ...], config: SowConfig = SowConfig()) -> None:
    """Sow a field.

    Example: tutelage sow --field north --seeds a b --rate 2
    """
    cli.heard = (field, seeds, config)  # type: ignore[attr-defined]


@pytest.fixture
def tutelage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command line in this process, with a verb `sow` of our own; returns (exit code, stdout, stderr)."""
    monkeypatch.setitem(sys.modules, "tests_sow", SimpleNamespace(sow=sow))
    monkeypatch.setitem(cli.VERBS, "sow", cli.Verb("tests_sow", "sow", "sow a field"))

    def run(*words: str) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_help_imports_no_torch() -> None:
    program = "import sys; from tutelage.cli import main; main(['--help']); print({'torch', 'tyro'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
    for verb, row in cli.VERBS.items():
        assert done.stdout.count(f"  {verb:<12} {row.line}\n") == 1
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_python_m_tutelage_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "tutelage", "nosuch"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_options_carry_no_prefix(tutelage) -> None:
    assert tutelage("sow", "--field", "north", "--seeds", "a", "b", "--rate", "2")[0] == 0
    assert cli.heard == (Path("north"), (Path("a"), Path("b")), SowConfig(rate=2.0))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sow", "tutelage sow: --field and --seeds are missing; see tutelage help sow\n"),
        ("sow --field north", "tutelage sow: --seeds is missing; see tutelage help sow\n"),
        ("sow --field n --seeds", "tutelage sow: --seeds is empty; give at least one;"),
        ("sow --field n --seeds a --rat 2", "tutelage sow: there is no option --rat; did you mean --rate?;"),
        ("sow --feild n --seeds a", "tutelage sow: there is no option --feild; did you mean --field?;"),
        ("sow --field n --seeds a --se 2", "there is no option --se; did you mean --seeds?;"),
        ("sow --field n --seeds a --dry 2", "there is no option --dry; did you mean --dry-run?;"),
        ("sow --field n --seeds a --no-dry-ruN", "there is no option --no-dry-ruN; did you mean --no-dry-run?;"),
        ("sow --field n --seeds a --hlep", "there is no option --hlep; did you mean --help?;"),
        ("sow --field n --seeds a --zzz", "there is no option --zzz; see tutelage help sow\n"),
        ("sow --field n --seeds a -rate 3", "there is no option -rate; did you mean --rate?;"),
        ("sow --field n --seeds a --rate x", "tutelage sow: --rate: 'x' is not a number;"),
        ("sow --field n --seeds a --rows 1.5", "tutelage sow: --rows: '1.5' is not a whole number;"),
        ("sow --field n --seeds a --rate", "tutelage sow: --rate needs a value;"),
        ("sow --field n --seeds a --moon old", "tutelage sow: --moon: 'old' is not one of 'new', 'full';"),
        ("sow --field n m --seeds a", "tutelage sow: unexpected argument: m;"),
        ("export", "tutelage export: RUN and --out are missing; see tutelage help export\n"),
        ("export a --out", "tutelage export: --out needs a value;"),
        ("serve", "tutelage serve: RUNS is empty; give at least one;"),
        ("ppo --policy a --reward b --prompts c --kl-buget 3 --out d", "did you mean --kl-budget?;"),
        ("sew", "there is no verb 'sew'; did you mean sow?\n"),
        ("help sew", "there is no verb 'sew'; did you mean sow?\n"),
        ("train", "there is no verb 'train'; did you mean pretrain?\n"),
        ("zzz --help", "there is no verb 'zzz'; tutelage help lists the verbs\n"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(words: str, said: str, tutelage) -> None:
    code, out, err = tutelage(*words.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize("words", ["--help", "ppo --help", "sow --help-all"])
def test_a_reader_who_leaves_is_no_error(words: str) -> None:
    """As under `| head`: the pipe's reading end is closed before the help is printed."""
    program = f"""
import os, sys
from types import SimpleNamespace
from typing import Literal
from tests.test_cli import sow
from tutelage import cli
sys.modules["tests_sow"] = SimpleNamespace(sow=sow)
cli.VERBS["sow"] = cli.Verb("tests_sow", "sow", "sow a field")
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
cli.main({words.split()!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert (done.returncode, done.stderr) == (141, "")


def full_disk() -> None:
    with open("/dev/full", "w") as file:  # a device that is always full: the kernel's own error, not a made-up one
        file.write("x" * 100_000)


def stop_with(error: BaseException):
    """A stand-in for `sow` that fails."""

    def sow(field: Path) -> None:
        """Sow. Example: tutelage sow"""
        raise error

    return sow


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("d.jsonl:3: not an object;\n  mend the line"), 2, "d.jsonl:3: not an object; mend the line\n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "north"), 2, "north: No such file or directory"),
        (PermissionError(errno.EACCES, "Permission denied", "north"), 2, "north: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "north"), 2, "north: Is a directory"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "the disk is full"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), 2, "xxx: File name too long; check the path"),
        (OSError(errno.EROFS, "Read-only file system", "out"), 2, "out: Read-only file system; check the path"),
        (RuntimeError("Symlink loop from 'out'"), 2, "Symlink loop from 'out'; check the path"),
        (MemoryError(), 2, "not enough memory; give smaller sizes"),
        (
            RuntimeError("can't allocate memory: you tried to allocate 4000000000000 bytes. Error code 12"),
            2,
            "not enough memory for 3,725.3 GiB at once",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0"), 2, "memory for 20.00 GiB at once"),
        (InputError("a\nb"), 2, "a b"),
        (KeyboardInterrupt("saved at step 3; run it again to go on"), 130, "saved at step 3; run it again to go on\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_a_failing_verb_says(error, code: int, said: str, tutelage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tests_sow", SimpleNamespace(sow=stop_with(error)))
    got, _, err = tutelage("sow", "--field", "north")
    assert (got, err.count("\n")) == (code, 1)
    assert said in err


def test_the_message_of_ctrl_c_has_its_own_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal ^C stands where the cursor is; on a pipe there is nothing to erase."""
    monkeypatch.setitem(cli.VERBS, "sow", cli.Verb("tests_sow", "sow", "sow a field"))
    monkeypatch.setitem(sys.modules, "tests_sow", SimpleNamespace(sow=stop_with(KeyboardInterrupt())))
    for terminal, said in ((True, "\r\x1b[2Kinterrupted\n"), (False, "interrupted\n")):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with pytest.raises(SystemExit):
            cli.main(["sow", "--field", "north"])
        assert capsys.readouterr().err == said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line(tutelage, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError) as caught:
        full_disk()
    monkeypatch.setitem(sys.modules, "tests_sow", SimpleNamespace(sow=stop_with(caught.value)))
    code, _, err = tutelage("sow", "--field", "north")
    assert (code, err.count("\n")) == (2, 1)
    assert "the disk is full" in err


@pytest.mark.parametrize("bug", [ZeroDivisionError("ours"), OSError(errno.EBADF, "Bad file descriptor")])
def test_our_own_bugs_keep_their_traceback(bug, tutelage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tests_sow", SimpleNamespace(sow=stop_with(bug)))
    with pytest.raises(type(bug)):
        tutelage("sow", "--field", "north")


def test_a_missing_package_is_named(tutelage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "needs_absent.py").write_text("import absent_package.part\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.VERBS, "sow", cli.Verb("needs_absent", "sow", "sow a field"))
    code, _, err = tutelage("sow")
    assert (code, err.count("\n")) == (2, 1)
    assert "needs the package absent_package" in err
