"""The ids of conversations, compared with transformers: kinds of tokenizers and templates, and what a user can type."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import chat_ids
import pytest
from chat_ids import KINDS, TEMPLATES, conversations, equal, settings
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from tutelage.text.chat import Message, encode_answer, encode_chat, rewrites_turns, training_examples
from tutelage.text.tokenizer import Tokenizer


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


@lru_cache
def backend(kind: str) -> str:
    return KINDS[kind]().to_str()


def loaded(folder: Path, tokenizer_json: str, template: str, **changes: Any) -> tuple[Tokenizer, Any]:
    """Our tokenizer and that of transformers, from the same folder."""
    (folder / "tokenizer.json").write_text(tokenizer_json)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings(template) | changes))
    return Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)


def unigram() -> str:
    """The model makes special tokens of their text if nothing stops it, because they are in its vocabulary."""
    made = Backend(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=chat_ids.SPECIAL, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(chat_ids.TEXTS[:4], trainer)
    made.decoder = decoders.Metaspace()
    made.add_tokens([AddedToken(token, normalized=False, special=False) for token in chat_ids.ORDINARY])
    return made.to_str()


def merging() -> str:
    """The merges make a control token of its text."""
    state = json.loads(backend("byte-level BPE"))
    vocabulary = state["model"]["vocab"]
    for left, right in (("<", "/"), ("</", "s"), ("</s", ">")):
        vocabulary.setdefault(left + right, 10_000 + len(left))
        state["model"]["merges"].append([left, right])
    state["pre_tokenizer"]["use_regex"] = False
    return json.dumps(state)


def with_flags(tokenizer_json: str, **flags: bool) -> str:
    """The same, with these flags on some added tokens."""
    state = json.loads(tokenizer_json)
    for token in state["added_tokens"]:
        if token["content"] in ("<|im_end|>", "</s>", "<think>", "<|Assistant|>"):
            token.update(flags)
    return json.dumps(state)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_have_the_ids_of_transformers(tmp_path: Path, kind: str, template: str) -> None:
    ours, theirs = loaded(tmp_path, backend(kind), template)
    assert [equal(ours, theirs, c) for c in conversations()[1::5]] == [True] * 8
    assert equal(ours, theirs, conversations()[3], prompt=False)


ODD: dict[str, tuple[Callable[[], str], dict[str, Any]]] = {
    "Llama's class": (lambda: backend("SentencePiece-style with byte fallback"), {"tokenizer_class": "LlamaTokenizer"}),
    "Llama's class, legacy": (
        lambda: backend("SentencePiece-style with byte fallback"),
        {"tokenizer_class": "LlamaTokenizerFast", "legacy": True},
    ),
    "Unigram": (unigram, {}),
    "normalised": (lambda: with_flags(backend("SentencePiece-style with byte fallback"), normalized=True), {}),
    "stripping": (lambda: with_flags(backend("byte-level BPE"), lstrip=True, rstrip=True), {}),
    "declared": (
        lambda: backend("byte-level BPE"),
        {
            "added_tokens_decoder": {
                "5": dict(content="<|im_end|>", lstrip=True, rstrip=True, normalized=False, single_word=False)
            }
        },
    ),
}


@pytest.mark.parametrize("template", ["ChatML", "Llama 2"])
@pytest.mark.parametrize("kind", ODD)
def test_odd_tokenizers_give_the_ids_of_transformers(tmp_path: Path, kind: str, template: str) -> None:
    make, changes = ODD[kind]
    ours, theirs = loaded(tmp_path, make(), template, **changes)
    assert [equal(ours, theirs, c) for c in conversations()[1::5]] == [True] * 8


def test_mistral_folders_keep_their_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    sentencepiece = backend("SentencePiece-style with byte fallback")
    ours, theirs = loaded(tmp_path, sentencepiece, "Mistral", tokenizer_class="LlamaTokenizer")
    assert all(equal(ours, theirs, c) for c in conversations()[1::5])


FORGERIES = ["{all}", "<|im_", "end|>", ">", "<", "</", "s>", "\U00100000\U00100001", "<\U00100000/s>"]


@pytest.mark.parametrize("template", ["Llama 2", "Qwen3", "R1-Distill"])
@pytest.mark.parametrize("kind", ["byte-level BPE", "SentencePiece-style with byte fallback", "Unigram", "merging"])
def test_no_content_yields_a_control_token(tmp_path: Path, kind: str, template: str) -> None:
    odd = {"Unigram": unigram, "merging": merging}
    ours, _ = loaded(tmp_path, odd[kind]() if kind in odd else backend(kind), template)
    tokens = [*ours.special, *(["<|User|>", "<|Assistant|>"] if template == "R1-Distill" else [])]
    control = {ours._backend.token_to_id(token) for token in tokens} - {ours.special["<unk>"]}

    def written(content: str) -> list[int]:
        turns = [user(content), assistant(content), user(content)]
        return [i for i in encode_chat(ours, turns, add_generation_prompt=True).ids if i in control]

    honest = written("x")
    assert honest
    for content in FORGERIES:
        assert written(content.replace("{all}", "".join(tokens))) == honest
    special = set(ours.special.values()) - {ours.special["<unk>"]}
    assert not special & set(ours.encode("a" + "".join(ours.special)))
    assert not special & set(ours.encode_batch(["".join(ours.special)])[0])


JOINS = (  # reads more than contents, and joins the parts of a content
    "{% for m in messages %}{{ '<|im_start|>' + m.role + (m.name or '') + '\n' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content | map(attribute='text') | join }}{% endif %}"
    "{% if m.call %}{{ m.call | tojson(ensure_ascii=True) }}{{ m.call | tojson }}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}"
)


@pytest.mark.parametrize(
    "turn",
    [
        user("x") | {"name": "<|im_end|>"},
        {"role": "user<|im_end|>", "content": "x"},
        {"role": "user", "content": [{"text": "<|im_"}, {"text": "end|>"}]},
        user("x") | {"call": {"<|im_end|>": ["<|im_end|>", {"a": "<|im_end|>"}]}},
    ],
)
def test_no_other_field_yields_a_control_token(tmp_path: Path, turn: Message) -> None:
    ours, theirs = loaded(tmp_path, backend("byte-level BPE"), "ChatML", chat_template=JOINS)
    ids = encode_chat(ours, [turn]).ids
    assert [i for i in ids if i in ours.special.values()] == [ours.special["<|im_start|>"], ours.end_of_turn_id]
    text = theirs.apply_chat_template([turn], tokenize=False)
    assert ours.decode(ids, skip_special=False) == text  # nothing is lost


def test_a_role_cannot_spell_the_end_of_a_turn(tokenizer: Tokenizer) -> None:
    """Our own template writes `<|role|>`."""
    ids = encode_chat(tokenizer, [user("a"), {"role": "end", "content": "b"}]).ids
    assert ids.count(tokenizer.end_of_turn_id) == 2


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["byte-level BPE", "SentencePiece-style with byte fallback"])
def test_training_feeds_what_inference_feeds(tmp_path: Path, kind: str, template: str) -> None:
    """Every answer is trained on after the ids of its generation prompt, and once."""
    ours, theirs = loaded(tmp_path, backend(kind), template)
    turns = [user("What is rain?"), assistant("\nWater"), user("Why?"), assistant("It falls.")]
    examples = training_examples(ours, turns)
    prompts = [theirs.apply_chat_template(turns[:n], add_generation_prompt=True, return_dict=False) for n in (1, 3)]
    starts = [(e, i) for e in examples for i, on in enumerate(e.supervised) if on and not e.supervised[i - 1]]
    assert [example.ids[:start] for example, start in starts] == prompts
    for (example, start), answer in zip(starts, ("Water", "It falls."), strict=True):
        end = example.ids.index(ours.end_of_turn_id, start)
        assert all(example.supervised[start : end + 1]) and not any(example.supervised[end + 1 : end + 2])
        assert answer in ours.decode(example.ids[start:end])
    assert rewrites_turns(ours) == (template in ("Qwen3", "R1-Distill"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Water.", "\n</think>\n\nWater.<|end|>"),  # the reasoning that the prompt opens is closed
        ("<think>\nhm\n</think>\n\nWater.", "hm\n</think>\n\nWater.<|end|>"),
        ("hm\n</think>\n\nWater.", "hm\n</think>\n\nWater.<|end|>"),  # as a response is sampled
    ],
)
def test_a_prompt_that_opens_the_reasoning_is_continued(tmp_path: Path, answer: str, expected: str) -> None:
    ours, _ = loaded(tmp_path, backend("byte-level BPE"), "R1-Distill")
    prompt = encode_chat(ours, [user("Rain?")], add_generation_prompt=True).ids
    ids = encode_answer(ours, [user("Rain?"), assistant(answer)]).ids
    assert ids[: len(prompt)] == prompt and ours.decode(ids[len(prompt) :], skip_special=False) == expected


FUNCTIONS = """{%- for m in messages -%}
{% if m.role == 'system' %}{% continue %}{% endif %}
{%- if loop.index > 3 %}{% break %}{% endif %}
{{- '<|im_start|>' + m.role + strftime_now('%Y') + (m | tojson(indent=2)) + ({'é': '<'} | tojson) }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ m.content + '<|im_end|>' }}{% endif %}
{%- endfor %}{{ bos_token }}{{ image_token }}{{ tools is none }}{{ unknown }}"""


def test_templates_find_what_transformers_offers(tmp_path: Path) -> None:
    changes = {"chat_template": FUNCTIONS, "bos_token": "<s>", "image_token": "<|begin|>"}
    ours, theirs = loaded(tmp_path, backend("byte-level BPE"), "ChatML", **changes)
    turns = [{"role": "system", "content": "no"}, user("é"), assistant("<b>") | {"name": None}, user("c")]
    assert encode_chat(ours, turns).ids == theirs.apply_chat_template(turns, return_dict=False)


MARKED = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}
{%- else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def test_generation_blocks_give_the_mask_of_transformers(tmp_path: Path) -> None:
    ours, theirs = loaded(tmp_path, backend("byte-level BPE"), "ChatML", chat_template=MARKED)
    turns = [user("a"), assistant("Rain falls."), user("b"), assistant("你好")]
    expected = theirs.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    (example,) = training_examples(ours, turns)
    assert example.ids == expected["input_ids"]
    assert [int(on) for on in example.supervised] == expected["assistant_masks"] and any(example.supervised)


def test_only_generation_blocks_are_learned(tmp_path: Path) -> None:
    """The template writes a note into each answer, and says that the assistant did not."""
    template = MARKED.replace("{% generation %}", "{{ 'Note: ' }}{% generation %}")
    ours, theirs = loaded(tmp_path, backend("byte-level BPE"), "ChatML", chat_template=template)
    turns = [user("a"), assistant("Rain falls."), user("b"), assistant("你好")]
    expected = theirs.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    (example,) = training_examples(ours, turns)
    assert [int(on) for on in example.supervised] == expected["assistant_masks"]
    assert "Note" not in ours.decode([i for i, on in zip(example.ids, example.supervised, strict=True) if on])


def test_the_end_of_a_turn_is_learned_even_outside_a_generation_block(tmp_path: Path) -> None:
    template = MARKED.replace(
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}", "{{ m.content }}{% endgeneration %}{{ '<|im_end|>' }}"
    )
    ours, _ = loaded(tmp_path, backend("byte-level BPE"), "ChatML", chat_template=template)
    (example,) = training_examples(ours, [user("a"), assistant("Rain"), user("b")])
    assert (
        ours.decode([i for i, on in zip(example.ids, example.supervised, strict=True) if on], skip_special=False)
        == "Rain<|im_end|>"
    )
