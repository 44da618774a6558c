"""Readers: valid records round-trip, and invalid ones give a one-line error with file, line and the next move."""

import json
from pathlib import Path

import pytest

from tutelage.data import jsonl, records
from tutelage.errors import InputError

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
DEMONSTRATION = {"messages": [USER, ASSISTANT], "source": "here", "conversation": "c1"}
COMPARISON = {"prompt": [USER], "responses": ["a", "b", "c"], "ranks": [1, 2, 2], "annotator": "me", "source": "here"}
FEEDBACK = {"prompt": [USER], "response": "a", "thumb": -1, "annotator": "me", "source": "here"}
PROMPT = {"prompt": [USER], "source": "here", "split": "train"}
DOCUMENT = {"text": "一行", "source": "here", "lang": "zh"}

READERS = {
    "documents": (records.read_documents, DOCUMENT),
    "demonstrations": (records.read_demonstrations, DEMONSTRATION),
    "comparisons": (records.read_comparisons, COMPARISON),
    "feedback": (records.read_feedback, FEEDBACK),
    "prompts": (records.read_prompts, PROMPT),
}


@pytest.mark.parametrize("kind", READERS)
def test_round_trip(kind, tmp_path: Path):
    read, record = READERS[kind]
    path = tmp_path / "x.jsonl"
    assert jsonl.write_jsonl(path, [record, record]) == 2
    assert [r.to_record() for r in read([path])] == [record, record]


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"", None, "empty"),
        (b"\n  \n", None, "empty"),
        (b"GOOD\n\xff\xfe\n", 2, "UTF-8"),
        (b"GOOD\n{oops\n", 2, "not JSON"),
        (b"GOOD\n\n[1, 2]\n", 3, "object"),
        (b"GOOD\n" + b"[" * 100_000 + b"\n", 2, "not JSON"),
        (b"GOOD\n{}\n", 2, "missing"),
    ],
)
def test_bad_files(kind, content: bytes, line: int | None, says: str, tmp_path: Path):
    read, record = READERS[kind]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content.replace(b"GOOD", json.dumps(record).encode()))
    with pytest.raises(InputError) as caught:
        read([path])
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    assert says in message or (kind == "documents" and '"text" or "messages"' in message)
    assert line is None or f"line {line}" in message


def test_missing_file_and_folder(tmp_path: Path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            records.read_prompts([path])


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [ASSISTANT]}, "no assistant turn"),
        ({"messages": [USER, {"role": "assistant", "content": "  "}]}, "no assistant turn"),
        ({"messages": []}, "an empty list"),
        ({"messages": "hi"}, "a string"),
        ({"messages": [USER, "hi"]}, "message 2: must be an object"),
        ({"messages": [USER, {"role": "bot", "content": "x"}]}, 'message 2: "role" must be one of'),
        ({"messages": [{"role": ["user"], "content": "x"}]}, '"role" must be one of'),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, 'message 2: "content" must be a string'),
        ({"messages": [USER, {"role": "assistant"}]}, "it is missing"),
        ({"messages": [USER, {"role": "assistant", "content": "\ud83d"}]}, "half a surrogate pair"),
        ({"messages": [USER, ASSISTANT], "source": 7}, '"source" must be a string'),
        ({"messages": [USER, ASSISTANT], "ratings": [1]}, '"ratings"'),
    ],
)
def test_bad_demonstrations(record, says: str):
    with pytest.raises(InputError, match="^f, line 7") as caught:
        records.demonstration_from(record, "f, line 7")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ranks": [1, 2]}, "3 responses but 2 ranks"),
        ({"ranks": [1, 2, 2.5]}, "whole numbers"),
        ({"ranks": [1, 2, True]}, "whole numbers"),
        ({"ranks": [0, 1, 2]}, "whole numbers"),
        ({"ranks": None}, "whole numbers"),
        ({"responses": ["a"], "ranks": [1]}, "2 to 9"),
        ({"responses": ["a"] * 10, "ranks": [1] * 10}, "2 to 9"),
        ({"responses": ["a", "b", 3]}, "list of strings"),
        ({"responses": ["a", "b", "\udc00"]}, "surrogate"),
        ({"prompt": [USER, ASSISTANT]}, "ends with a turn of role assistant"),
        ({"prompt": 3}, "list of at least one message"),
    ],
)
def test_bad_comparisons(change, says: str):
    with pytest.raises(InputError, match="line 2") as caught:
        records.comparison_from({**COMPARISON, **change}, "f, line 2")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"thumb": 0}, '"thumb" must be 1 (up) or -1 (down), but it is 0'),
        ({"thumb": 1.0}, "it is 1.0"),
        ({"thumb": True}, "it is true"),
        ({"thumb": "up"}, 'it is "up"'),
        ({"thumb": [1]}, "it is [1]"),
        ({"thumb": None}, "it is null"),
        ({"response": ["a"]}, '"response" must be a string, but it is a list'),
        ({"response": "\udc00"}, "surrogate"),
        ({"prompt": [USER, ASSISTANT]}, "ends with a turn of role assistant"),
        ({"annotator": 3}, '"annotator" must be a string'),
    ],
)
def test_bad_feedback(change, says: str):
    with pytest.raises(InputError, match="^f, line 2") as caught:
        records.feedback_from({**FEEDBACK, **change}, "f, line 2")
    assert says in str(caught.value)


def test_feedback_may_omit_annotator_and_source():
    (feedback,) = records.feedback_from({"prompt": [USER], "response": "", "thumb": 1}, "f, line 2")
    assert feedback == records.Feedback([USER], "", 1, "unknown", "unknown")
    assert feedback.where == "f, line 2" and "where" not in feedback.to_record()


def test_a_byte_order_mark_is_ignored(tmp_path: Path):
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(PROMPT).encode() + b"\r\n")
    assert records.read_prompts([path])[0].prompt == [USER]


def test_line_separators_inside_a_text_do_not_split_a_record(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    jsonl.write_jsonl(path, [{**DOCUMENT, "text": "a\u2028b\x85c"}])
    assert records.read_documents([path])[0].text == "a\u2028b\x85c"


def test_a_failing_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    jsonl.write_jsonl(path, [{"a": 1}])

    def broken():
        yield {"a": 2}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        jsonl.write_jsonl(path, broken())
    assert path.read_text() == '{"a": 1}\n' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("context, question", [("", "Add."), (None, "Add."), ("1, 2", "Add.\n\n1, 2")])
def test_instruction_records_are_demonstrations(context: str | None, question: str) -> None:
    demonstration = records.demonstration_from({"instruction": "Add.", "input": context, "output": "3"}, "f, line 1")
    assert demonstration.messages == [{"role": "user", "content": question}, {"role": "assistant", "content": "3"}]
    for broken in (
        {"instruction": "Add."},
        {"instruction": 1, "output": "3"},
        {"instruction": "a", "input": 2, "output": "b"},
    ):
        with pytest.raises(InputError, match="f, line 1.*must be a string"):
            records.demonstration_from(broken, "f, line 1")


ARRAYS = [
    ("[{0}, {0}]", [1, 1]),
    ("\n\n [\n{0},\n\n{0}]\n\n", [4, 6]),
    ("[\r\n{0}\r\n,\r\n{0}\r\n]", [2, 4]),
    ("{0}\n{0}", [1, 2]),
    ("\n{0}\r\n\r\n{0}\n", [2, 4]),
]


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(("form", "lines"), ARRAYS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_arrays_and_lines_are_one(kind, form: str, lines: list[int], mark: bytes, tmp_path: Path):
    """Under any file name, with or without a byte order mark; each record has the line on which it starts."""
    read, record = READERS[kind]
    path = tmp_path / "x.json"
    path.write_bytes(mark + form.replace("{0}", json.dumps(record)).encode())
    assert [r.to_record() for r in read([path])] == [record, record]
    assert [number for number, _ in jsonl.read_jsonl(path)] == lines


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "the array is empty"),
        (" [ \n ] ", "the array is empty"),
        ('[{"text": "a"}', "line 1: not JSON"),
        ('[{"text": "a"}\n\n,', "line 3: not JSON"),
        ('[{"text": "a"},\n]', "line 2: not JSON"),
        ('[{"text": "a"}\n{"text": "b"}]', "line 2: not JSON"),
        ('[{"text": "a"},\n{"text": }]', "line 2: not JSON"),
        ('[{"text": "a"},\n\n{"text":\n"b"}, 3]', "line 4: must be a JSON object, but it is a number"),
        ('[{"text": "a"},\n\n{"txt":\n"b"}]', 'line 3: a document needs "text"'),
        ('[{"text": "a"}]\n[{"text": "b"}]', "line 2: there is more text after the array"),
        ('[{"text": "a"},\nnull]', "line 2: must be a JSON object, but it is null"),
        ('[{"text": "a"},\n1' + "0" * 5_000 + "]", "line 2: not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_bad_arrays(text: str, says: str, tmp_path: Path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        records.read_documents([path])
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def test_text_parts_are_joined_as_the_api_joins_them():
    user, assistant = {"role": "user", "content": parts("h", "i")}, {"role": "assistant", "content": parts("hello")}
    developer = {"role": "developer", "content": "be kind"}
    system = {"role": "system", "content": "be kind"}
    assert records.demonstration_from({"messages": [developer, user, assistant]}, "f").messages == [
        system, USER, ASSISTANT,
    ]  # fmt: skip
    assert records.prompt_from({"prompt": [user]}, "f").prompt == [USER]
    assert records.prompt_from({"prompt": "hi", "source": None}, "f").prompt == [USER]
    assert records.document_from({"messages": [user, assistant]}, "f").plain_text() == "user: hi\nassistant: hello"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            [*parts("see"), {"type": "image_url", "image_url": {"url": "x"}}],
            'part 2: content of type "image_url" cannot',
        ),
        ([{"type": "image"}], 'part 1: content of type "image" cannot be read'),
        ([{"type": "text"}], 'part 1: "text" must be a string, but it is missing'),
        ([*parts("a"), "b"], "part 2: must be an object"),
        ([], '"content" must be a string, but it is an empty list'),
        (["a"], '"content" must be a string, but it is a list'),
        (parts("\udc00"), "part 1: the text has half a surrogate pair"),
    ],
)
def test_parts_that_are_no_text(content, says: str):
    with pytest.raises(InputError, match="^f, line 7, message 1") as caught:
        records.demonstration_from({"messages": [{"role": "user", "content": content}, ASSISTANT]}, "f, line 7")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {"prompt": "hi", "completion": "hello"},
        {"prompt": [USER], "completion": [ASSISTANT], "messages": None},
        {"instruction": "hi", "input": None, "output": "hello"},
    ],
)
def test_other_shapes_of_demonstrations(record):
    assert records.demonstration_from(record, "f").messages == [USER, ASSISTANT]
    system = {"role": "system", "content": "be kind"}
    assert records.demonstration_from({**record, "system": "be kind"}, "f").messages == [system, USER, ASSISTANT]
