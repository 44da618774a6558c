"""Docs that cannot lie: metrics, options, commands and paths named in the documentation are those of the code."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tutelage.cli import VERBS
from tutelage.options import options_of

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "tutelage").rglob("*.py"))
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
ROLLOUT = ROOT / "src" / "tutelage" / "sampling" / "rollout.py"  # what one says of its policy
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


TREES = {path: tree_of(path) for path in SOURCES}


# --- metrics.jsonl and docs/metrics.md


def documented_keys() -> set[str]:
    """First column of every table in docs/metrics.md."""
    return set(
        re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE)
    )


def dict_keys(node: ast.AST, scope: FUNCTION, module: ast.Module) -> set[str]:
    """String keys that an expression after ** can contribute, followed through names and functions of the module."""
    if isinstance(node, ast.Dict):
        return {key.value for key in node.keys if isinstance(key, ast.Constant)}
    if isinstance(node, ast.IfExp):
        return dict_keys(node.body, scope, module) | dict_keys(node.orelse, scope, module)
    if isinstance(node, ast.BinOp):
        return dict_keys(node.left, scope, module) | dict_keys(node.right, scope, module)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return returned_keys(node.func.id, module, set())
    keys: set[str] = set()
    if isinstance(node, ast.Name) and f"{node.id}: Metrics" in ast.unparse(scope.args):
        return measured_keys()
    if isinstance(node, ast.Name):
        for step in ast.walk(scope):
            targets = step.targets if isinstance(step, ast.Assign) else [getattr(step, "target", None)]
            for target in targets if isinstance(step, ast.Assign | ast.AnnAssign | ast.AugAssign) else []:
                if isinstance(target, ast.Name) and target.id == node.id and not isinstance(step.value, ast.Name):
                    keys |= dict_keys(step.value, scope, module) if step.value else set()
                if isinstance(target, ast.Subscript) and ast.unparse(target.value) == node.id:
                    keys |= {target.slice.value} if isinstance(target.slice, ast.Constant) else set()
    return keys


def returned_keys(name: str, module: ast.Module, seen: set[str]) -> set[str]:
    """Every key written out in a function of the module that returns a dict, and in those that it calls."""
    keys: set[str] = set()
    for function in (node for node in module.body if isinstance(node, FUNCTION) and node.name == name):
        if name in seen or "dict" not in ast.unparse(function.returns or ast.Constant("")):
            continue
        keys |= written_keys(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                keys |= returned_keys(node.func.id, module, seen | {name})
    return keys


def written_keys(function: FUNCTION) -> set[str]:
    """Of the dicts that are written out in it, and those put into one."""
    keys: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Dict):
            keys |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            keys |= {node.slice.value} if isinstance(node.slice, ast.Constant) else set()
    return keys


def measured_keys() -> set[str]:
    """What reinforcement learning hands to `TrainingLoop` to log: the keys of functions that call it or give a Metrics.

    And of those that they call by their names.
    """
    functions = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, FUNCTION)]
    givers = [
        f
        for f in functions
        if "Metrics" in ast.unparse(f.returns or ast.Constant("")) or ".should_learn(" in ast.unparse(f)
    ]
    called = {getattr(node.func, "id", "") for f in givers for node in ast.walk(f) if isinstance(node, ast.Call)}
    modules = [tree for tree in TREES.values() if any(f in tree.body for f in givers)] + [tree_of(ROLLOUT)]
    keys = {key for tree in modules for name in called for key in returned_keys(name, tree, set())}
    return keys | {key for f in givers for key in written_keys(f)}


def logged_keys(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(key, line) of every call of a method `log` with keywords, `**` resolved to its keys; "" where it cannot be."""
    for scope in (node for node in ast.walk(tree) if isinstance(node, FUNCTION)):
        for call in ast.walk(scope):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "log":
                for keyword in call.keywords:
                    found = {keyword.arg} if keyword.arg else dict_keys(keyword.value, scope, tree)
                    yield from ((key, call.lineno) for key in found or {""})


def test_every_logged_metric_is_defined() -> None:
    defined = documented_keys()
    for path, tree in TREES.items():
        for key, line in logged_keys(tree):
            assert key, f"{path}:{line}: write the logged keys out in this function, so that a reader can look them up"
            assert key in defined, f"{path}:{line}: metric {key!r} is not in docs/metrics.md"


def test_what_reinforcement_learning_measures_is_seen() -> None:
    """Keys of the loop, of a rollout, of a method's loss, of the policy's step and of the value network's."""
    seen = {
        "tied_groups", "judge_score", "score", "kl_loss", "clip_fraction", "approx_kl", "ratio_error", "grad_norm",
        "value_loss",
    }  # fmt: skip
    assert seen <= measured_keys() <= documented_keys()


def test_every_defined_metric_exists() -> None:
    words = {
        name
        for tree in TREES.values()
        for node in ast.walk(tree)
        for name in (
            getattr(node, "arg", None),
            getattr(node, "value", None),
            getattr(getattr(node, "target", None), "id", None),
        )
        if isinstance(name, str)
    }
    assert not documented_keys() - words


# --- config dataclasses: each field has a line of help and is read


def config_classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                yield path, node


def fields_of(cls: ast.ClassDef) -> Iterator[tuple[str, bool]]:
    """(field, whether a docstring stands under it)."""
    for here, below in zip(cls.body, [*cls.body[1:], None], strict=True):
        if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name):
            documented = isinstance(below, ast.Expr) and isinstance(getattr(below.value, "value", None), str)
            yield here.target.id, documented


def read_attributes() -> set[str]:
    """Fields read as `config.field` or `c.field`, or by a config's own methods as `self.field`."""
    loads = {node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    reads = {node.attr for node in loads if re.search(r"(config|\bc)$", ast.unparse(node.value))}
    own = {node for _, cls in config_classes() for node in ast.walk(cls) if isinstance(node, ast.Attribute)}
    return reads | {node.attr for node in own if ast.unparse(node.value) == "self"}


def test_every_option_has_help_and_is_read() -> None:
    read = read_attributes()
    for path, cls in config_classes():
        for field, documented in fields_of(cls):
            assert documented, f"{path}: {cls.name}.{field} has no docstring line, which is its help text"
            assert field in read, f"{path}: {cls.name}.{field} is read nowhere"


# --- README


def blocks(page: Path) -> list[str]:
    """The commands of the page: its ```bash blocks."""
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Each command of the page in words, without leading NAME=value settings."""
    joined = [block.replace("\\\n", " ") for block in blocks(page)]  # a line that ends in a backslash goes on
    lines = [shlex.split(line, comments=True) for block in joined for line in block.splitlines()]
    return [[word for i, word in enumerate(words) if i or "=" not in word] for words in lines if words]


def flags_of(verb: str) -> set[str]:
    """The flags that the verb's help lists."""
    function = getattr(importlib.import_module(VERBS[verb].module), VERBS[verb].function)
    return {flag for option in options_of(function) for flag in option.flags} | {"--help", "--help-all"}


GUIDES = [page for page in sorted((ROOT / "docs").glob("*.md")) if blocks(page)]


@pytest.mark.parametrize("page", [*READMES, ROOT / "CONTRIBUTING.md", *GUIDES], ids=lambda page: page.name)
def test_documented_commands_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert commands(page)
    for program, *words in commands(page):
        if program == "make":
            assert words[0] in targets, f"{page.name}: make {words[0]}"
        elif program == "tutelage":
            named = {word.partition("=")[0] for word in words[1:] if word.startswith("--")}
            assert named <= flags_of(words[0]), f"{page.name}: tutelage {' '.join(words)}"
        elif program == "python":
            assert (ROOT / words[0]).is_file(), f"{page.name}: python {words[0]}"
        else:
            assert (program, words) == ("source", [".venv/bin/activate"]), f"{page.name}: {program}"


def link_targets(text: str) -> list[str]:
    """Sorted. docs/zh/X.md counts as docs/X.md, and anchors into docs are left out, as the headings are translated."""
    targets = re.findall(r"\]\(([^)]+)\)", text)
    return sorted(re.sub(r"^docs/(?:zh/)?([\w-]+\.md)(?:#.*)?$", r"docs/\1", target) for target in targets)


def test_both_readmes_say_the_same_commands_and_links() -> None:
    english, chinese = (page.read_text(encoding="utf-8") for page in READMES)
    assert blocks(READMES[0]) == blocks(READMES[1])
    assert link_targets(english.replace("README.zh.md", "")) == link_targets(chinese.replace("README.md", ""))
    translated = {page.name for page in (ROOT / "docs" / "zh").glob("*.md")}
    assert not translated & set(re.findall(r"\]\(docs/([\w-]+\.md)", chinese)), "link the Chinese page"
    assert re.findall(r"^#+ ", english, re.MULTILINE) == re.findall(r"^#+ ", chinese, re.MULTILINE)
    assert sorted(re.findall(r"`[^`\n]+`", english)) == sorted(re.findall(r"`[^`\n]+`", chinese))


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_the_table_of_verbs_is_complete(page: Path) -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [verb for verb, _ in rows] == list(VERBS)


# --- links and code places


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "zh").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "LOG.md"], ids=lambda page: page.name)
def test_code_places_exist(page: Path) -> None:
    """`room/file.py:name` is a definition in src/tutelage, `tests/file.py[:name]` one in tests.

    LOG.md is left out: its old entries keep the paths of their time.
    """
    for path, name in re.findall(r"`([\w/]+/\w+\.py)(?::(\w+))?`", page.read_text(encoding="utf-8")):
        file = ROOT / path if path.startswith(("tests/", "benchmarks/")) else ROOT / "src" / "tutelage" / path
        assert file.exists(), f"{page.name}: {path}"
        defined = {getattr(node, "name", None) for node in ast.walk(tree_of(file))}
        assert not name or name in defined, f"{page.name}: {path} defines no {name}"
