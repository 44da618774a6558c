"""Who may import whom: the table in docs/architecture.md, checked against every import statement of the package."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "tutelage"
GROUND_FLOOR = {"errors", "atomic", "options", "bounded", "json_file", "kinds"}  # any room may import these


def documented_rooms() -> dict[str, set[str]]:
    """{room: rooms it may import}, parsed from the table, so that the page cannot lie."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("| Room | May import |\n|---|---|\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    return {room: set() if allowed == "nothing of ours" else set(allowed.split(", ")) for room, allowed in rows}


ROOMS = documented_rooms()
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The room a file lies in; a file at the top is its own room (cli, errors, ...)."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path: Path) -> set[str]:
    """Dotted names of ours that a file imports, anywhere in it, without the package's own name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("tutelage.") for name in names if name.startswith("tutelage.")}


def test_the_table_names_the_rooms_that_exist() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ROOMS)
    assert set().union(*ROOMS.values()) <= set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_the_documented_way(path: Path) -> None:
    room = room_of(path)
    if room == "cli":
        return
    allowed = ROOMS.get(room, set()) | GROUND_FLOOR | {room}
    if room in GROUND_FLOOR:
        allowed = {"errors"} - {room}
    if room == "__main__":
        allowed = {"cli"}
    for module in imported_modules(path):
        assert module.partition(".")[0] in allowed, f"{path}: room {room} may not import tutelage.{module}"


def test_stages_meet_only_on_disk() -> None:
    for path in (PACKAGE / "stages").glob("*.py"):
        others = {module for module in imported_modules(path) if re.match(r"stages\b", module)}
        assert not others, f"{path} imports another stage: {others}"


def test_the_wings_of_the_server_meet_only_in_its_application() -> None:
    """server/api and server/chat never import each other; of the rest of server/, only app.py imports either."""
    for path in (PACKAGE / "server").rglob("*.py"):
        wing = path.relative_to(PACKAGE / "server").parts[0]
        allowed = {"api", "chat"} if wing == "app.py" else {wing}
        imported = {match[1] for name in imported_modules(path) if (match := re.match(r"server\.(api|chat)\b", name))}
        assert imported <= allowed, f"{path} imports {imported - allowed}"


def test_init_files_are_empty() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert not path.read_text(encoding="utf-8").strip(), path


def test_no_import_circle_between_rooms() -> None:
    """Rooms can be put in one order in which each imports only earlier ones."""
    placed: set[str] = set()
    while ready := {room for room, needs in ROOMS.items() if room not in placed and needs <= placed}:
        placed |= ready
    assert placed == set(ROOMS)


def test_training_the_moderation_classifier_loads_no_engine() -> None:
    """In a separate process: the modules of ours that the import loads, rooms not counted twice."""
    code = "import sys, tutelage.moderation.training; print(*(m for m in sys.modules if m.startswith('tutelage')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "tutelage.moderation.training" in loaded
    assert len(loaded) <= 30, loaded
    assert not [name for name in loaded if re.match(r"tutelage\.(engine|sampling|server|rewards)\b", name)]
