"""Count the conversations whose prompt has the same token ids as in transformers.

    python benchmarks/chat_ids.py [--out runs/benchmarks]

Four kinds of tokenizer are trained here. Each is tried with seven chat templates, written here, that behave like those
of well-known models. The ids of 40 conversations are compared with those of transformers' `apply_chat_template`: first
and later turns, with and without a system turn, with reasoning, white space and decomposed text, in English and
Chinese. A conversation that both sides refuse counts as equal. Prints a Markdown table and writes it to OUT
(record.py).
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import transformers
from record import Record, add_out
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from tutelage.errors import InputError
from tutelage.text.chat import Message, encode_chat
from tutelage.text.tokenizer import Tokenizer

TEXTS = [
    "What is rain? Rain is water that falls from the clouds. How far does it fall, and why is it cold?",
    "Hello there! How are you today? I am fine, thank you. Tell me about the café at the corner, please.",
    "user assistant system Be brief. You are a helpful assistant. \n\nAnswer the question.\n",
    "今天天气很好，你好吗？我很好，谢谢你。雨是从云里落下来的水。请告诉我为什么天是蓝的。",
] * 8
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>"]
SPECIAL += ["<|end_header_id|>", "<|eot_id|>", "<|begin|>", "<|end|>"]
ORDINARY = ["<|User|>", "<|Assistant|>", "<think>", "</think>"]  # added, but not special, as in DeepSeek-R1's tokenizer

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA_2 = """{% set first = messages[0].content if messages[0].role == 'system' else none %}
{% for m in (messages[1:] if first else messages) %}
{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{% set c = '<<SYS>>\n' + first + '\n<</SYS>>\n\n' + m.content if loop.first and first else m.content %}
{% if m.role == 'user' %}{{ bos_token + '[INST] ' + c.strip() + ' [/INST]' }}
{%- else %}{{ ' ' + c.strip() + ' ' + eos_token }}{% endif %}
{% endfor %}"""
LLAMA_3 = """{{ bos_token }}{% for m in messages %}
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
MISTRAL = """{{ bos_token }}{% for m in messages %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}
{%- else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"""
ZEPHYR = """{% for m in messages %}
{{ '<|' + m.role + '|>\n' + m.content + eos_token }}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
QWEN_3 = """{% set ns = namespace(last=0) %}
{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{% for m in messages %}{% set c, r = m.content, '' %}
{% if m.role == 'assistant' %}
{% if m.reasoning_content is defined and m.reasoning_content is string %}{% set r = m.reasoning_content %}
{% elif '</think>' in c %}
{% set r = c.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{% set c = c.split('</think>')[-1].lstrip('\n') %}
{% endif %}
{% if loop.index0 > ns.last and (loop.last or r) %}
{% set c = '<think>\n' + r.strip('\n') + '\n</think>\n\n' + c.lstrip('\n') %}
{% endif %}
{% endif %}
{{ '<|im_start|>' + m.role + '\n' + c + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
R1_DISTILL = """{{ bos_token }}{% for m in messages %}
{%- if m.role == 'system' %}{{ m.content }}
{%- elif m.role == 'user' %}{{ '<|User|>' + m.content }}
{%- else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"""

# Template, bos_token, eos_token.
TEMPLATES = {
    "ChatML": (CHATML, None, "<|im_end|>"),
    "Llama 2": (LLAMA_2, "<s>", "</s>"),
    "Llama 3": (LLAMA_3, "<|begin_of_text|>", "<|eot_id|>"),
    "Mistral": (MISTRAL, "<s>", "</s>"),
    "Zephyr": (ZEPHYR, "<s>", "</s>"),
    "Qwen3": (QWEN_3, None, "<|im_end|>"),
    "R1-Distill": (R1_DISTILL, "<|begin|>", "<|end|>"),
}


def byte_level(normalizer: normalizers.Normalizer | None = None) -> Backend:
    """As GPT-2's and, with NFC, Qwen's."""
    backend = Backend(models.BPE())
    if normalizer:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return trained(backend, pre_tokenizers.ByteLevel.alphabet())


def with_bos() -> Backend:
    """As Llama 3's: the post-processor puts BOS before a text, which a chat template does by itself."""
    backend = byte_level()
    bos = "<|begin_of_text|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return backend


def sentencepiece() -> Backend:
    """As Llama 2's: U+2581 for a space, one before each text, and bytes for unknown characters."""
    backend = Backend(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return with_bytes(trained(backend, ["▁", *"abcdefghijklmnopqrstuvwxyz<>|[]/"]))


def metaspace() -> Backend:
    """As Llama 2's in transformers 5: only the first text gets the space."""
    backend = Backend(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return with_bytes(trained(backend, ["▁", *"abcdefghijklmnopqrstuvwxyz<>|[]/"]))


KINDS: dict[str, Callable[[], Backend]] = {
    "byte-level BPE": byte_level,
    "byte-level BPE with NFC": lambda: byte_level(normalizers.NFC()),
    "byte-level BPE with a BOS post-processor": with_bos,
    "SentencePiece-style with byte fallback": sentencepiece,
    "SentencePiece-style, space before the first text only": metaspace,
}


def trained(backend: Backend, alphabet: Sequence[str]) -> Backend:
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=list(alphabet), show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in ORDINARY])
    return backend


def with_bytes(backend: Backend) -> Backend:
    """The same with a token for each byte, and without the tokens for the characters of decomposed text."""
    state = json.loads(backend.to_str())
    taken = {token["content"]: token["id"] for token in state["added_tokens"]}
    vocabulary = state["model"]["vocab"]
    first = max([*vocabulary.values(), *taken.values()]) + 1
    vocabulary |= {f"<0x{byte:02X}>": first + byte for byte in range(256)}
    backend = Backend.from_str(json.dumps(state))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def settings(template: str) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    text, bos, eos = TEMPLATES[template]
    named = {"bos_token": bos, "eos_token": eos, "pad_token": "<pad>", "unk_token": "<unk>", "chat_template": text}
    return {"tokenizer_class": "PreTrainedTokenizerFast"} | {name: value for name, value in named.items() if value}


QUESTIONS = [
    "What is rain?",
    "  Hello\n\nthere!\n ",
    "你好吗？\n",
    "cafe\u0301 \uf900 x\u0302?",
    "\nuser: <b>1 + 1</b>\t=",
]
ANSWERS = ["Water.", " Fine,\n thanks. \n", "<think>\nA café?\n</think>\n\nI\u0301 am fine.", "我很好，谢谢。"]


def conversations() -> list[list[Message]]:
    """Five questions, of which each is a first turn, and a second turn after three of the answers, without and with a
    system turn."""
    systems: list[list[Message]] = [[], [{"role": "system", "content": " Be brief.\n"}]]
    asked: list[list[Message]] = []
    for system, (number, question) in product(systems, enumerate(QUESTIONS)):
        last: Message = {"role": "user", "content": question}
        asked.append([*system, last])
        for i in range(3):
            first: Message = {"role": "user", "content": QUESTIONS[(number + i) % len(QUESTIONS)]}
            answer: Message = {"role": "assistant", "content": ANSWERS[(number + i) % len(ANSWERS)]}
            asked.append([*system, first, answer, last])
    return asked


def equal(ours: Tokenizer, theirs: Any, conversation: list[Message], prompt: bool = True) -> bool:
    try:
        expected = theirs.apply_chat_template(conversation, add_generation_prompt=prompt, return_dict=False)
    except Exception:  # their template engine raises several kinds
        expected = None
    try:
        return encode_chat(ours, conversation, add_generation_prompt=prompt).ids == expected
    except InputError:
        return expected is None


def compare(backend: Backend, template: str) -> list[bool]:
    """Whether the ids are equal, for each conversation."""
    with tempfile.TemporaryDirectory() as folder:
        backend.save(f"{folder}/tokenizer.json")
        Path(folder, "tokenizer_config.json").write_text(json.dumps(settings(template)), encoding="utf-8")
        ours, theirs = Tokenizer.load(Path(folder)), transformers.AutoTokenizer.from_pretrained(folder)
    return [equal(ours, theirs, conversation) for conversation in conversations()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_out(parser)
    given = parser.parse_args()
    record = Record(given.out / "chat_ids", given)
    figures: dict[str, dict[str, int]] = {}
    record.say("| Tokenizer | " + " | ".join(TEMPLATES) + " |")
    record.say("|---" * (len(TEMPLATES) + 1) + "|")
    for kind, make in KINDS.items():
        backend = make()
        figures[kind] = {template: sum(compare(backend, template)) for template in TEMPLATES}
        record.say(f"| {kind} | " + " | ".join(f"{count}" for count in figures[kind].values()) + " |")
    record.leave(figures)


if __name__ == "__main__":
    main()
