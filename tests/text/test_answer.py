"""Reasoning and function calls in answers, found the same however the text arrives."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from tutelage.text.answer import AnswerReader, visible_marks
from tutelage.text.pieces import CallArguments, CallBegin, Content, Piece, Reasoning
from tutelage.text.reasoning import thinking_after
from tutelage.text.tokenizer import Tokenizer
from tutelage.text.tool_calls import CallFinder
from tutelage.text.tool_syntax import HERMES, JSON, LLAMA, MISTRAL, MISTRAL_NAMED, ToolSyntax

NAMES = ("f", "now")
Read = tuple[str, str, list[tuple[str, Any]]]


def gathered(pieces: list[Piece]) -> Read:
    """Reasoning, content, and calls with their arguments read from JSON. A call begins once, and its index counts."""
    calls: list[list[str]] = []
    for piece in pieces:
        if isinstance(piece, CallBegin):
            assert piece.index == len(calls)
            calls.append([piece.name, ""])
        elif isinstance(piece, CallArguments):
            assert piece.index == len(calls) - 1
            calls[-1][1] += piece.text
    texts = ["".join(piece.text for piece in pieces if isinstance(piece, kind)) for kind in (Reasoning, Content)]
    return texts[0], texts[1], [(name, json.loads(arguments)) for name, arguments in calls]


def read(text: str, syntax: ToolSyntax | None = None, opened: bool = False, **settings: Any) -> Read:
    """The answer, which is the same for every size of the pieces in which its text comes."""
    results = []
    for size in (1, 2, 3, 7, len(text) or 1):
        reader = AnswerReader(opened, CallFinder(syntax, NAMES, **settings) if syntax else None)
        pieces = [piece for at in range(0, len(text), size) for piece in reader.feed(text[at : at + size])]
        results.append(gathered(pieces + reader.finish()))
    assert all(result == results[0] for result in results)
    return results[0]


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        ("<think>\nHm.\n\nSo: 2 < 3\n</think>\n\nYes.\n", False, "Hm.\n\nSo: 2 < 3", "Yes.\n"),
        (" \n<think>Hm.</think>Yes. <think>no</think>", False, "Hm.", "Yes. <think>no</think>"),
        ("Hm.\n</think>\n\nYes.", True, "Hm.", "Yes."),
        ("<think>\nHm. </thin", False, "Hm. </thin", ""),  # cut off at the maximum length
        ("Hm.", True, "Hm.", ""),
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("<think>a</think>\n<think>b</think>Yes.", False, "ab", "Yes."),
        ("Use <think> marks.", False, "", "Use <think> marks."),
        ("\n <thin", False, "", "\n <thin"),
        ("a </think> b", False, "", "a </think> b"),
        ("<think>a</think>", False, "a", ""),
        ("", False, "", ""),
    ],
)
def test_reasoning_stands_between_think_marks(text: str, opened: bool, reasoning: str, content: str) -> None:
    assert read(text, opened=opened) == (reasoning, content, [])
    assert read(text, HERMES, opened=opened) == (reasoning, content, [])


def test_reasoning_tokens_are_those_between_the_marks() -> None:
    reader = AnswerReader()
    text = "<think>Hm.\n</think>\nYes."
    reader.feed(text)
    assert reader.reasoning_tokens(range(len(text))) == len("Hm.\n")
    opened = AnswerReader(opened=True)
    opened.feed("Hm. no end")
    assert opened.reasoning_tokens([0, 4, 7]) == 3


F = ("f", {"a": 'x</tool_call>{"', "b": [1, {"c": None}]})
OBJECT = '{"name": "f", "arguments": {"a": "x</tool_call>{\\"", "b": [1, {"c": null}]}}'
HERMES_CALL = f"<tool_call>\n{OBJECT}\n</tool_call>"
NOW = ("now", {})

CALLS = [
    (HERMES, HERMES_CALL, "", [F]),
    (HERMES, f"Let me see.\n{HERMES_CALL}\n{HERMES_CALL}\n", "Let me see.", [F, F]),
    (HERMES, f"a {HERMES_CALL}\nb\n", "a\nb\n", [F]),
    (HERMES, HERMES_CALL.removesuffix("\n</tool_call>"), "", [F]),  # some models end the turn here
    (HERMES, '<tool_call>{"name": "now"}</tool_call>', "", [NOW]),
    (HERMES, f'<tool_call>\n{OBJECT}\n{{"name": "now"}}\n</tool_call>', "", [F, NOW]),
    (HERMES, '<tool_call>{"arguments": "{\\"a\\": 1}", "name": "f", "id": 7}</tool_call>', "", [("f", {"a": 1})]),
    (HERMES, '<tool_call>{"name": "f", "parameters": {"s": "\\ud800"}}</tool_call>', "", [("f", {"s": "\ud800"})]),
    (LLAMA, '{"name": "f", "parameters": {"a": 1}}', "", [("f", {"a": 1})]),
    (LLAMA, '\n{ "type": "function", "name": "f", "parameters": {"a": 1} }\n', "", [("f", {"a": 1})]),
    (LLAMA, '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "now", "parameters": {}}', "", [("f", {}), NOW]),
    (LLAMA, 'Sure:\n{"name": "now", "parameters": {}}\nDone.', "Sure:\nDone.", [NOW]),
    (MISTRAL, f'[TOOL_CALLS] [{OBJECT}, {{"name": "now", "arguments": {{}}, "id": "a1b2c3d4e"}}]', "", [F, NOW]),
    (MISTRAL, '[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{"a": 1}', "", [NOW, ("f", {"a": 1})]),
    (MISTRAL_NAMED, 'Well.[TOOL_CALLS]f{"a": 1}', "Well.", [("f", {"a": 1})]),
    (JSON, f'[{OBJECT},\n {{"name": "now", "arguments": {{}}}}]', "", [F, NOW]),
    (JSON, f"{OBJECT}\n", "", [F]),
]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(("syntax", "text", "content", "calls"), CALLS)
def test_calls_are_found(syntax: ToolSyntax, text: str, content: str, calls: list[Any], live: bool) -> None:
    if live and not text.startswith(("<tool_call>\n", "{")):
        assert read(text, syntax)[2] == calls  # no grammar of ours writes calls like this
    else:
        assert read(text, syntax, live=live) == ("", content, calls)
    thought = read(f"<think>\nHm. {HERMES_CALL}\n</think>\n\n{text}", syntax)
    assert thought == (f"Hm. {HERMES_CALL}", content, calls)


NO_CALLS = [
    (HERMES, '<tool_call>\n{"name": "f", "arguments": {}}}\n</tool_call>'),  # a brace too many
    (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": 1\n</tool_call>'),  # a brace too few
    (HERMES, '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
    (HERMES, "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>"),
    (HERMES, "<tool_call>f(1)</tool_call>  \n"),
    (HERMES, "Write <tool_call> and </tool_call>."),
    (HERMES, OBJECT),
    (HERMES, "a <tool_ca"),
    (LLAMA, "<|python_tag|>print({})"),
    (LLAMA, f"Sure: {OBJECT}"),
    (LLAMA, '{"name": "f"}'),  # an answer in JSON
    (LLAMA, '{"answer": 1, "name": "f", "parameters": {}}'),
    (LLAMA, '{\n  "f": [\n    {"x": "}"}\n  ]\n}\n\n[a](b)\n'),
    (LLAMA, '{"name": "f", "parameters": {"a": '),
    (MISTRAL, "[TOOL_CALLS] none"),
    (MISTRAL, '[TOOL_CALLS]g[ARGS]{"a": 1}'),
    (MISTRAL, '[TOOL_CALLS]f[ARGS]{"a": '),
    (JSON, "[1, 2]\n[[{}]]"),
    (JSON, '{"name": "f", "arguments": {"a": ' + "[" * 5_000 + "]" * 5_000 + "}}"),  # deeper than Python reads
]


@pytest.mark.parametrize(("syntax", "text"), NO_CALLS)
def test_an_answer_without_a_valid_call_stays_text(syntax: ToolSyntax, text: str) -> None:
    assert read(text, syntax) == ("", text, [])


@given(
    st.lists(
        st.sampled_from([*'ab {}[]"\\,:\n', "<tool_call>", "</tool_call>", '{"name": "f", "arguments": {', OBJECT])
    )
)
def test_nothing_that_is_not_a_call_is_lost(parts: list[str]) -> None:
    text = "".join(parts)
    for syntax in (HERMES, LLAMA, MISTRAL, JSON):
        reasoning, content, calls = read(text, syntax)
        if not calls:
            assert content == text
        rest = iter(text)
        assert all(character in rest for character in content)  # in order


def test_an_answer_with_all_its_calls_is_done() -> None:
    finder = CallFinder(HERMES, NAMES, most=1)
    reader = AnswerReader(finder=finder)
    assert gathered(reader.feed(f"{HERMES_CALL}\n")) == ("", "", [F]) and reader.done
    assert reader.feed(f"{HERMES_CALL} more") == reader.finish() == []


def test_arguments_that_a_grammar_holds_come_as_they_grow() -> None:
    reader = AnswerReader(finder=CallFinder(HERMES, NAMES, live=True))
    pieces = [
        reader.feed(part)
        for part in ('<tool_call>\n{"name": "f", "argu', 'ments": {"a": "x', 'y"', "}}\n", "</tool_call>")
    ]
    arguments = [CallBegin(0, "f"), CallArguments(0, '{"a": "x')], [CallArguments(0, 'y"')], [CallArguments(0, "}")]
    assert pieces == [[], *arguments, []]
    cut = AnswerReader(finder=CallFinder(LLAMA, NAMES, live=True))  # at the maximum length: a call cut off, as OpenAI's
    assert cut.feed('{"name": "f", "parameters": {"a": 1') == [CallBegin(0, "f"), CallArguments(0, '{"a": 1')]
    assert cut.finish() == []
    for rest in ("\n<tool", '\n<tool_call>\n{"na'):  # a further call that has hardly begun
        assert read(HERMES_CALL + rest, HERMES, live=True) == ("", "", [F])


def test_the_marks_that_are_special_tokens_are_seen(tokenizer: Tokenizer) -> None:
    special = tokenizer.with_specials(["<think>", "[TOOL_CALLS]", "<other>"])
    assert visible_marks(tokenizer, MISTRAL) == {}
    marks = visible_marks(special, MISTRAL)
    assert set(marks.values()) == {b"<think>", b"[TOOL_CALLS]"}
    assert {special.token_bytes()[i] for i in marks} == {b""}


def test_the_end_of_a_prompt_says_whether_reasoning_is_open(tokenizer: Tokenizer) -> None:
    backend = Backend.from_str(tokenizer.to_json())
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    knows = Tokenizer(backend, tokenizer.settings)
    for text, expected in (("x<think>\n", "opened"), ("<think>\n\n</think>\n\n", "none"), ("<think> x", "possible")):
        ids = knows._backend.encode(text, add_special_tokens=False).ids
        assert thinking_after(knows, ids) == expected
    assert thinking_after(tokenizer, tokenizer.encode("the cat")) == "none"
