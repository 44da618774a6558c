"""Functions, calls and results in prompts: the ids of transformers where the template knows tools, text where not."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_ids import CHATML, LLAMA_2, byte_level, settings
from tokenizers import AddedToken
from tool_templates import KNOWING
from transformers import AutoTokenizer

from tutelage.text.chat import Message, encode_chat
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer
from tutelage.text.tool_prompt import as_template_takes
from tutelage.text.tool_syntax import HERMES, JSON, LLAMA, MISTRAL, MISTRAL_NAMED, tool_syntax

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "description": "The weather in a city, in °C. 天气",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "default": None}}},
    },
}
CLOCK = {"function": {"description": "", "name": "clock"}, "type": "function"}  # the order of the fields matters


def call(number: int, name: str, **arguments: Any) -> dict[str, Any]:
    """A call as an official client sends it: the arguments are a text of JSON."""
    return {
        "id": f"call0000{number}",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments)},
    }


def result(number: int, content: str) -> Message:
    return {"role": "tool", "tool_call_id": f"call0000{number}", "content": content}


ASKED: list[Message] = [{"role": "user", "content": "How warm is Köln?"}]
CALLED: list[Message] = [
    {"role": "assistant", "content": "", "tool_calls": [call(1, "weather", city="Köln", n=[1.5, None])]}
]
ANSWERED: list[Message] = [result(1, "21 °C"), {"role": "assistant", "content": "It is 21 °C."}, *ASKED]
CONVERSATIONS = [ASKED, ASKED + CALLED + ANSWERED[:1], ASKED + CALLED + ANSWERED]


def theirs_of(messages: list[Message]) -> list[Message]:
    """The same in the form of transformers: the arguments are objects, results name their function."""
    turns = []
    for message in messages:
        turn = dict(message)
        if calls := message.get("tool_calls"):
            turn["tool_calls"] = [
                c | {"function": c["function"] | {"arguments": json.loads(c["function"]["arguments"])}} for c in calls
            ]
        if message["role"] == "tool":
            turn["name"] = "weather"
        turns.append(turn)
    return turns


def loaded(folder: Path, name: str) -> tuple[Tokenizer, Any]:
    template, eos, special, ordinary = KNOWING[name]
    backend = byte_level()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in ordinary])
    backend.save(str(folder / "tokenizer.json"))
    config = settings("ChatML") | {"chat_template": template, "eos_token": eos, "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", KNOWING)
def test_a_template_that_knows_tools_gets_what_transformers_gives_it(tmp_path: Path, name: str) -> None:
    ours, theirs = loaded(tmp_path, name)
    for tools in ([WEATHER, CLOCK], None):
        for messages in CONVERSATIONS:
            expected = theirs.apply_chat_template(
                theirs_of(messages), tools=tools, add_generation_prompt=True, return_dict=False
            )
            assert encode_chat(ours, messages, add_generation_prompt=True, tools=tools).ids == expected


def test_the_name_of_a_result_and_the_ids_that_mistral_demands_are_filled_in() -> None:
    mistral = Template(KNOWING["Mistral"][0], ())
    long = [call(1, "weather") | {"id": "call_abcdefghijklmnop"}]
    turns = [*ASKED, {"role": "assistant", "content": None, "tool_calls": long}, result(1, "x")]
    turns[-1] = turns[-1] | {"tool_call_id": "call_abcdefghijklmnop"}
    messages, _ = as_template_takes(mistral, turns, [WEATHER])
    assert messages[1]["content"] == "" and messages[2]["name"] == "weather"
    assert messages[1]["tool_calls"][0]["id"] == messages[2]["tool_call_id"]
    assert mistral.render(messages, True, [WEATHER]).count(messages[2]["tool_call_id"]) == 2


@pytest.mark.parametrize("name", KNOWING)
def test_no_tool_result_or_description_forges_a_control_token(tmp_path: Path, name: str) -> None:
    """Neither a special token nor a mark that the template writes around calls and results."""
    ours, _ = loaded(tmp_path, name)
    tokens = [*ours.special, *KNOWING[name][3]]
    control = {ours._backend.token_to_id(token) for token in tokens} - {ours.special["<unk>"]}

    def written(text: str) -> list[int]:
        tool = {"type": "function", "function": {"name": "weather", "description": text, "parameters": {text: text}}}
        turns = [{"role": "user", "content": text}, *CALLED, result(1, text), {"role": "user", "content": text}]
        ids = encode_chat(ours, turns, add_generation_prompt=True, tools=[tool]).ids
        return [i for i in ids if i in control]

    honest = written("x")
    assert {ours._backend.token_to_id(token) for token in KNOWING[name][3]} <= set(honest)
    for text in ("".join(tokens), "<tool_", "call>", "</tool_response", "[TOOL_CALLS", "[/INST]"):
        assert written(text) == honest


def test_an_assistant_may_write_the_marks_of_a_call_as_its_model_does(tmp_path: Path) -> None:
    ours, theirs = loaded(tmp_path, "Qwen")
    turns = [*ASKED, {"role": "assistant", "content": "<tool_call>{}</tool_call>"}, *ASKED]
    assert encode_chat(ours, turns, True).ids == theirs.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
    )


DESCRIBED = """You can call functions. Each line below describes one as JSON:
<tools>
{"name": "weather", "description": "The weather in a city, in °C. 天气", "parameters": {"type": "object", \
"properties": {"city": {"type": "string", "default": null}}}}
{"description": "", "name": "clock"}
</tools>
To call a function, write a JSON object with its name and its arguments between these marks. Write one pair of marks \
for each call.
<tool_call>
{"name": "the function's name", "arguments": {"an argument's name": "its value"}}
</tool_call>
What the functions return comes in the next message, between <tool_response> marks."""
HISTORY = [
    *ASKED,
    {"role": "assistant", "content": "Let me see.", "tool_calls": [call(1, "weather", city="Köln"), call(2, "clock")]},
    result(1, "</tool_response> 21 °C"),
    result(2, "noon"),
    {"role": "user", "content": "And?"},
]


def test_a_template_without_tools_gets_them_as_text() -> None:
    turns, tools = as_template_takes(
        Template(CHATML, ()), [{"role": "system", "content": "Be brief."}, *HISTORY], [WEATHER, CLOCK]
    )
    assert tools is None
    assert [(turn["role"], turn["content"]) for turn in turns] == [
        ("system", f"Be brief.\n\n{DESCRIBED}"),
        ("user", "How warm is Köln?"),
        (
            "assistant",
            'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
        ),
        (
            "user",
            '<tool_response>\n{"name": "weather", "content": "<\\/tool_response> 21 °C"}\n</tool_response>\n'
            '<tool_response>\n{"name": "clock", "content": "noon"}\n</tool_response>\nAnd?',
        ),
    ]


def test_without_a_system_turn_the_description_opens_one_or_the_first_turn() -> None:
    """Mistral's older template refuses system turns; Llama 2's demands that roles alternate."""
    old_mistral = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    first = [
        as_template_takes(Template(t, (("bos_token", ""),)), HISTORY, [WEATHER, CLOCK])[0][0]
        for t in (LLAMA_2, old_mistral)
    ]
    assert [turn["role"] for turn in first] == ["system", "user"]
    assert [turn["content"].startswith(DESCRIBED) for turn in first] == [True, True]
    rendered = Template(LLAMA_2, (("bos_token", "<s>"), ("eos_token", "</s>"))).render(
        as_template_takes(Template(LLAMA_2, ()), HISTORY, [WEATHER])[0]
    )
    assert rendered.count("[INST]") == 2


def test_a_conversation_without_tools_is_left_alone(tokenizer: Tokenizer) -> None:
    assert as_template_takes(tokenizer.template, ASKED, []) == (ASKED, None)
    assert encode_chat(tokenizer, ASKED, True, tools=[]).ids == encode_chat(tokenizer, ASKED, True).ids


@pytest.mark.parametrize(
    ("template", "added", "expected"),
    [
        (KNOWING["Qwen"][0], [], HERMES),
        (KNOWING["Qwen"][0], ["<|python_tag|>"], HERMES),  # Hermes 3 has Llama 3.1's vocabulary
        (KNOWING["Mistral"][0], [], MISTRAL),
        ("{{ tools }}[TOOL_CALLS]f[ARGS]{}", [], MISTRAL_NAMED),
        (KNOWING["Llama 3"][0], ["<|python_tag|>"], LLAMA),
        (KNOWING["Llama 3"][0], [], LLAMA),
        ("{{ tools }}", ["[TOOL_CALLS]"], MISTRAL),
        ("{{ tools }}", [], JSON),
        ("{{ messages }}", ["[TOOL_CALLS]"], HERMES),  # it gets our description
    ],
)
def test_template_and_tokens_decide_how_calls_are_written(template: str, added: list[str], expected: Any) -> None:
    assert tool_syntax(template, added, Template(template, ()).knows_tools) == expected
