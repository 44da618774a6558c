"""JSONL and JSON arrays: read piece by piece as Python's json reads them whole, and refused within seconds."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tutelage import json_file
from tutelage.data import jsonl
from tutelage.data.jsonl import read_jsonl
from tutelage.errors import InputError

LEAVES = (None, True, 0, -12, 1.5e300, 10**20, "", "x", 'a "b" \\ \n', "[{", "你好", "\U0001f600", "\u2028")


def value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.random()
    if depth > 3 or kind < 0.5:
        return chance.choice(LEAVES)
    inner = [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return (
        inner if kind < 0.7 else {chance.choice(("", "a", "},", "键")) + str(i): item for i, item in enumerate(inner)}
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 7 bytes, which cut every kind of token, and an element of at most 300."""
    monkeypatch.setattr(jsonl, "CHUNK", 7)
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 300)
    monkeypatch.setattr(json_file, "LONGEST_LINE", 300)


@pytest.mark.parametrize("seed", range(40))
def test_an_array_is_what_json_reads(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its line breaks and escapes; a line number is that of the element's first character."""
    chance = random.Random(seed)
    records = [{"id": i, "value": value(chance)} for i in range(chance.randint(1, 6))]
    text, expected = chance.choice(["", "\ufeff", "\n \n", "\t"]) + "[", []
    for i, record in enumerate(records):
        text += "," * bool(i) + chance.choice(["", "\n", " \r\n\n"])
        expected.append((text.count("\n") + 1, record))
        indent, ascii = chance.choice([None, 1]), chance.random() < 0.5
        text += json.dumps(record, indent=indent, ensure_ascii=ascii) + chance.choice(["", "\n"])
    (tmp_path / "array").write_bytes((text + "]" + chance.choice(["", "\n\n"])).encode())
    monkeypatch.setattr(jsonl, "CHUNK", chance.choice((1, 2, 7, 64)))
    assert list(read_jsonl(tmp_path / "array")) == expected
    assert [record for _, record in expected] == json.loads(text.removeprefix("\ufeff") + "]")


BROKEN = [
    (b"[", "not JSON"),
    (b"[{}", "after an element"),
    (b"[{},", "line 1: not JSON"),
    (b'[{"a": "x', "not JSON .Unterminated string"),
    (b'[{"a": tru', "line 1: not JSON"),
    (b'[\n{},\n{"a" 1},\n{}]', "line 3: not JSON .Expecting ':'"),
    (b'[{"a": 1, "b": [2, 3]},\n\n{"a": 1,\n"b": tru', "line 4: not JSON"),
    (b"[\n{}\n{}]", 'line 3: not JSON .no "," or "]"'),
    (b"[{}]\n\nx", "line 3: there is more text after the array"),
    (b"[{}] " + b" " * 400 + b"\xff", "line 1: not UTF-8; convert"),
    (b'[{"a": "\n\xe4\xbd', "not UTF-8"),
    (b"[{}, 12]", "must be a JSON object, but it is a number"),
    (b"[ \n ]", "the array is empty"),
    (b'[{},\n{"a": "' + b"x" * 3000 + b'"}]', "line 2: longer than"),
    (b'[{},\n{"a": "' + b"x" * 3000, "line 2: longer than"),
    (b"[{},\n" + b"[" * 10_000 + b"]", "line 2: .*nested more than 64|longer than"),
    (b"[{},\n" + b"[" * 70 + b"]" * 70 + b"]", "line 2: .*nested more than 64"),
    (b'{"a": 1}\n' + b" " * 400 + b"{}\n", "line 2: longer than"),
]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("content", "said"), BROKEN, ids=[said for _, said in BROKEN])
def test_broken_files_are_refused_by_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as refused:
        list(read_jsonl(path))
    assert str(refused.value).startswith(f"{path}") and "\n" not in str(refused.value)


def test_an_array_larger_than_one_element_may_be_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is one of elements: an array of 3 MB in a single line, where an element has at most 100 kB."""
    monkeypatch.setattr(jsonl, "CHUNK", 10_000)
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 100_000)
    records = [{"text": "x" * 30_000, "i": i} for i in range(100)]
    (tmp_path / "array.json").write_text(json.dumps(records))
    assert list(read_jsonl(tmp_path / "array.json")) == [(1, record) for record in records]


MEASURED = """
import resource, sys
from pathlib import Path
from tutelage.data.records import read_documents
from tutelage.errors import InputError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_documents([Path(sys.argv[1])])
except InputError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("begin", ['{"text": "', '[{"text": "', "[" * 10**6, '{"a":' * 10**6, "[1,"])
def test_a_line_of_50_megabytes_is_refused_at_once(tmp_path: Path, begin: str) -> None:
    path = tmp_path / "large.jsonl"
    path.write_text(begin + "x" * (50_000_000 - len(begin)))
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, check=True)
    line, more = done.stdout.splitlines()
    assert str(path) in line and time.monotonic() - begun < 3
    assert int(more) < 150 * 1024  # KiB, beside the interpreter and its modules
