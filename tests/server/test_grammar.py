"""Answers under a grammar by a model with random weights: they end in time, and are what `jsonschema` accepts."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import chat_ids  # noqa: E402
import json_schemas  # noqa: E402

from tutelage.engine.engine import Engine, EngineConfig  # noqa: E402
from tutelage.engine.requests import Done, Event, Request, Token  # noqa: E402
from tutelage.model.gpt import GPT  # noqa: E402
from tutelage.sampling.distribution import DistributionConfig  # noqa: E402
from tutelage.server.detokenizer import Detokenizer  # noqa: E402
from tutelage.server.grammar import json_schema_grammar, lark_grammar, opening_rule, token_rule  # noqa: E402
from tutelage.server.vocabulary import Vocabulary  # noqa: E402
from tutelage.text.tokenizer import Tokenizer  # noqa: E402

SPARE = 7  # rows of the embedding without a token


class Kind:
    """A kind of tokenizer, and an engine whose model writes anything that it may."""

    def __init__(self, tokenizer: Tokenizer, make_gpt: Any, many: bool):
        self.tokenizer = tokenizer
        self.many = 20 if many else 4  # schemas in a quick test
        self.ends = tuple(dict.fromkeys((*tokenizer.end_ids, tokenizer.end_of_text_id)))
        self.table = tokenizer.token_bytes()
        vocabulary = Vocabulary(tokenizer, self.table, self.ends)
        self.served: Any = SimpleNamespace(tokenizer=tokenizer, vocabulary=vocabulary)
        model: GPT = make_gpt("modern", vocab_size=tokenizer.vocab_size + SPARE, context=600)
        model.tokens = tokenizer.vocab_size
        self.engine = Engine(model, EngineConfig(slots=16))

    def answers(self, grammars: list[Any], limits: list[int], temperature: float = 1.0) -> list[tuple[str, list[int]]]:
        """(text as a chat shows it, ids) of an answer to each grammar; the text ends with ... if it was cut."""
        heard: list[list[Event]] = [[] for _ in grammars]
        how = DistributionConfig(temperature=temperature)
        for seed, (grammar, limit) in enumerate(zip(grammars, limits, strict=True)):
            request = Request((5, 6, 7), limit, how, seed, frozenset(self.ends), constraint=grammar.begin())
            self.engine.submit(request, heard[seed].append)
        while self.engine.step():
            pass
        return [self.shown(events) for events in heard]

    def shown(self, events: list[Event]) -> tuple[str, list[int]]:
        *tokens, last = events
        assert isinstance(last, Done) and last.reason in ("stop", "length"), last
        detokenizer = Detokenizer(self.table, strip_first=not self.tokenizer.byte_level)
        text = "".join(detokenizer.feed(token).text for token in tokens if isinstance(token, Token))
        text += detokenizer.finish().text
        return text + "..." * (last.reason == "length"), [token.id for token in tokens if isinstance(token, Token)]


QUICK = "ours", "SentencePiece-style with byte fallback"
PARAMS = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ("ours", *chat_ids.KINDS)]


@pytest.fixture(scope="module", params=PARAMS)
def kind(request: pytest.FixtureRequest, tokenizer: Tokenizer, make_gpt: Any) -> Iterator[Kind]:
    ours = request.param == "ours"
    if not ours:
        tokenizer = Tokenizer(chat_ids.KINDS[request.param](), chat_ids.settings("R1-Distill"))
    made = Kind(tokenizer, make_gpt, ours)
    yield made
    made.engine.close()
    made.served.vocabulary.close()


def size(kind: Kind, value: Any) -> int:
    return len(kind.tokenizer.encode(json.dumps(value, separators=(",", ":"), ensure_ascii=False)))


def check(schema: Any, text: str) -> None:
    checker = Draft202012Validator.FORMAT_CHECKER
    Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))


NAMES = {"type": "string", "minLength": 2, "maxLength": 40}
UNICODE = {
    "type": "object",
    "properties": {"café 名": {"enum": ["cafe\u0301", "天气", 'a "b" \\ \n']}, "<|user|> ": NAMES, "free": {}},
    "required": ["café 名", "<|user|> ", "free"],
    "additionalProperties": False,
}


def test_any_tokenizer_writes_json_without_control_tokens(kind: Kind) -> None:
    """Names and values in decomposed and Chinese text, and some that look like a control token."""
    grammar = json_schema_grammar(kind.served, UNICODE)
    limit = 3 * size(kind, {"café 名": "天气", "<|user|> ": "aa", "free": 0})
    for text, ids in kind.answers([grammar] * 3, [limit] * 3):
        check(UNICODE, text)
        assert not kind.tokenizer.control_tokens.keys() & {kind.tokenizer.tokens()[i] for i in ids}
        assert all(kind.table[i] for i in ids)


def test_an_answer_ends_within_three_times_its_shortest_value(kind: Kind) -> None:
    cases = json_schemas.schemas(kind.many, seed=3)
    grammars = [json_schema_grammar(kind.served, schema) for _, schema, _ in cases]
    limits = [3 * size(kind, value) for _, _, value in cases]
    for (_, schema, _), (text, _) in zip(cases, kind.answers(grammars, limits), strict=True):
        check(schema, text)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_answers_to_many_schemas_end_in_time(kind: Kind, temperature: float) -> None:
    cases = json_schemas.schemas(72, seed=4)
    grammars = [json_schema_grammar(kind.served, schema) for _, schema, _ in cases]
    limits = [3 * size(kind, value) for _, _, value in cases]
    found = kind.answers(grammars, limits, temperature)
    ended = [(schema, text) for (_, schema, _), (text, _) in zip(cases, found) if not text.endswith("...")]
    assert len(ended) >= 0.95 * len(cases)
    for schema, text in ended:
        check(schema, text)


def test_the_shortest_answer_is_close_to_the_shortest_value(kind: Kind) -> None:
    for name, schema, value in json_schemas.schemas(kind.many, seed=6):
        shortest = json_schema_grammar(kind.served, schema).shortest
        assert shortest and len(shortest) <= 1.2 * size(kind, value) + 2, name


def test_an_answer_may_begin_with_the_space_that_is_not_shown(kind: Kind) -> None:
    """SentencePiece writes a first word with a space before it, as models of such tokenizers have learned."""
    bits = np.zeros(-(-len(kind.table) // 32), dtype=np.int32)
    json_schema_grammar(kind.served, {"type": "object"}).begin().fill(bits)
    allowed = np.unpackbits(bits.view(np.uint8), bitorder="little").nonzero()[0]
    assert (b" " in {kind.table[i] for i in allowed}) == (not kind.tokenizer.byte_level)


def test_without_room_an_answer_is_cut(kind: Kind) -> None:
    grammar = json_schema_grammar(kind.served, UNICODE)
    ((text, ids),) = kind.answers([grammar], [3])
    assert text.endswith("...") and len(ids) == 3


def test_free_text_may_end_anywhere_and_control_tokens_only_stand_where_a_rule_has_them(kind: Kind) -> None:
    marks = [token for token in kind.tokenizer.control_tokens if kind.tokenizer.control_tokens[token] not in kind.ends]
    mark = token_rule(kind.served, marks[0])
    rules = f"start: {opening_rule(kind.served)}/[a-z]{{3,5}}/ {mark} @value {token_rule(kind.served, '</answer>')}"
    grammar = lark_grammar(kind.served, rules, {"value": {"type": "integer", "minimum": 0, "maximum": 9}})
    for text, ids in kind.answers([grammar] * 4, [30] * 4):
        assert kind.tokenizer.control_tokens[marks[0]] in ids
        shown = text.replace(marks[0], "")  # a mark that is no special token is text
        assert shown.endswith("</answer>") and shown[-10].isdigit() and shown[:-10].isalpha()


def test_the_same_seed_gives_the_same_answer(kind: Kind) -> None:
    grammar = json_schema_grammar(kind.served, UNICODE)
    first = kind.answers([grammar] * 2, [90] * 2)
    assert kind.answers([grammar] * 2, [90] * 2) == first and len({text for text, _ in first}) == 2


def test_a_string_may_be_long_where_there_is_room(kind: Kind) -> None:
    """The end comes early only when the limit is near."""
    grammar = json_schema_grammar(kind.served, {"type": "string"})
    assert max(len(ids) for _, ids in kind.answers([grammar] * 3, [100] * 3)) > 60
