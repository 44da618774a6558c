"""The code stays readable: short functions, short files, formatted by the formatter."""

import ast
import subprocess
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "tutelage"
FILES = sorted(PACKAGE.rglob("*.py"))


def quantile(values: list[int], share: float) -> int:
    return sorted(values)[int(share * (len(values) - 1))]


def function_lengths() -> list[int]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in FILES]
    functions = [
        node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno]


def file_lengths() -> list[int]:
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in FILES]
    return [length for length in lengths if length]


def test_functions_are_short() -> None:
    lengths = function_lengths()
    assert len(lengths) > 1000
    assert quantile(lengths, 0.5) <= 8 and quantile(lengths, 0.9) <= 20


def test_files_are_short() -> None:
    assert quantile(file_lengths(), 0.9) <= 220


def test_hardly_a_line_escapes_the_formatter() -> None:
    assert sum(path.read_text(encoding="utf-8").count("# fmt: skip") for path in FILES) < 20


def test_a_config_is_passed_not_cast() -> None:
    """`config = run.config  # type: ignore` would hide from the type checker which config a stage has."""
    casts = [path for path in FILES if "run.config  # type: ignore" in path.read_text(encoding="utf-8")]
    assert not casts


def test_no_data_of_a_server_is_committed() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--full-name", ":/"], cwd=PACKAGE, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    private = [
        name for name in listed.stdout.splitlines() if Path(name).name == "pepper" or ".db" in Path(name).suffixes
    ]
    assert private == []
