"""Tokenizers in GGUF, the file format of llama.cpp.

    Tokenizer <-> metadata {tokenizer.*: value}

A GGUF file refers to its pre-tokenizer, the rule that splits text into words, by name. We read the byte-level rules in
`RULES`. A pre-tokenizer without a name is written under the name of the nearest rule, so llama.cpp may split some texts
differently. The file then also contains the whole tokenizer.json, under the key that GGUF defines for it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as BackendTokenizer

from tutelage.errors import InputError
from tutelage.text.tokenizer import Tokenizer

HUGGING_FACE_JSON = "tokenizer.huggingface.json"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types
NEAREST = "qwen2"  # differs from our own rule in the space after a colon and in runs of empty lines
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _words(digits: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS.replace("DIGITS", digits)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


RULES: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _gpt2,
    "smollm": _single_digits,
    "llama-bpe": lambda: _words(r"\p{N}{1,3}"),
    "qwen2": lambda: _words(r"\p{N}"),
}


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Read a tokenizer from GGUF metadata. Raises InputError if its type is not supported or the data is invalid."""
    model, rule = str(metadata.get("tokenizer.ggml.model")), str(metadata.get("tokenizer.ggml.pre", "default"))
    if model != "gpt2" or rule not in RULES:
        raise InputError(
            f"gguf: tokenizer {model!r} with pre-tokenizer {rule!r} is not supported; byte-level BPE ('gpt2') with "
            f"{', '.join(RULES)} is. Use the model's Hugging Face folder instead"
        )
    try:
        tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
        used = len(tokens) - next((i for i, kind in enumerate(reversed(types)) if kind != UNUSED), len(types))
        tokens, types = tokens[:used], types[:used]  # the unused tokens at the end fill up the rows of the embedding
        merges = [(left, right) for left, right in (m.split(" ") for m in metadata["tokenizer.ggml.merges"])]
        complete = metadata.get(HUGGING_FACE_JSON)
        backend = BackendTokenizer.from_str(complete) if complete else _backend(tokens, types, merges, rule)
        tokenizer = Tokenizer(backend, _settings(metadata, tokens))
        if tokenizer.tokens() != tokens:
            raise ValueError(f"its {HUGGING_FACE_JSON} has other tokens")
    except InputError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"gguf: the tokenizer cannot be read ({error}); download the file again") from None
    return tokenizer


def _backend(
    tokens: Sequence[str], types: Sequence[int], merges: Sequence[tuple[str, str]], rule: str
) -> BackendTokenizer:
    """A byte-level BPE tokenizer of the `tokenizers` library with the named pre-tokenizer."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or len(types) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens, of which {len(vocabulary)} are distinct, but {len(types)} token types")
    backend = BackendTokenizer(models.BPE(vocabulary, merges, ignore_merges=rule == "llama-bpe"))
    if rule == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = RULES[rule]()
    backend.decoder = decoders.ByteLevel()
    added = {
        kind: [AddedToken(t, special=kind == CONTROL, normalized=False) for t, k in zip(tokens, types) if k == kind]
        for kind in (CONTROL, USER_DEFINED)
    }
    backend.add_special_tokens(added[CONTROL])
    backend.add_tokens(added[USER_DEFINED])
    return backend


def _settings(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    template = metadata.get("tokenizer.chat_template")
    if not template:
        raise InputError("gguf: the file has no chat template; give a chat model, which has one")
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    named = {
        ours: tokens[metadata[f"tokenizer.ggml.{theirs}_token_id"]]
        for theirs, ours in names.items()
        if f"tokenizer.ggml.{theirs}_token_id" in metadata
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }


def to_gguf(tokenizer: Tokenizer, rows: int) -> tuple[dict[str, Any], bool]:
    """The tokenizer.* metadata for an embedding of `rows` rows, and whether llama.cpp splits text exactly as we do.

    Raises InputError if the tokenizer is not a byte-level BPE.
    """
    state = json.loads(tokenizer.to_json())
    model = state["model"]
    if model["type"] != "BPE" or not tokenizer.byte_level:
        raise InputError(
            "export: GGUF supports only byte-level BPE tokenizers, and this is another type; use --format hf"
        )
    tokens = tokenizer.tokens()
    added = {token["content"]: CONTROL if token["special"] else USER_DEFINED for token in state["added_tokens"]}
    types = [added.get(token, NORMAL) for token in tokens]
    merges = [(left, right) for left, right in (m.split(" ") if isinstance(m, str) else m for m in model["merges"])]
    rule = next((name for name in RULES if _splits_alike(state, _backend(tokens, types, merges, name))), None)
    spare = [f"[PAD{i}]" for i in range(len(tokens), rows)]
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {
        f"tokenizer.ggml.{names[role]}_token_id": tokenizer.special[token]
        for role, token in tokenizer.named_specials
        if role in names and token in tokenizer.special
    }
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule or NEAREST,
        "tokenizer.ggml.tokens": [*tokens, *spare],
        "tokenizer.ggml.token_type": [*types, *[UNUSED] * len(spare)],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tokenizer.chat_template,
        **ids,
        **_end_ids(tokenizer, ids),
        **({} if rule else {HUGGING_FACE_JSON: tokenizer.to_json()}),
    }, rule is not None


def _end_ids(tokenizer: Tokenizer, named: Mapping[str, int]) -> dict[str, int]:
    """The ids besides eos at which llama.cpp ends a response. It has room for two: end of turn and end of message."""
    others = [i for i in tokenizer.end_ids if i != named.get("tokenizer.ggml.eos_token_id")]
    return {f"tokenizer.ggml.{name}_token_id": i for name, i in zip(("eot", "eom"), others, strict=False)}


def _splits_alike(state: dict[str, Any], other: BackendTokenizer) -> bool:
    """Whether two tokenizers with the same vocabulary normalise, split and merge text in the same way."""
    theirs = json.loads(other.to_str())
    parts = ("normalizer", "pre_tokenizer")
    same = all(_without_offsets(state.get(part)) == _without_offsets(theirs.get(part)) for part in parts)
    switches = ("ignore_merges", "byte_fallback")
    return same and all(bool(state["model"].get(s)) == bool(theirs["model"].get(s)) for s in switches)


def _without_offsets(state: Any) -> Any:
    """A pre-tokenizer's settings without `trim_offsets`, which does not change the tokens."""
    if isinstance(state, dict):
        return {name: _without_offsets(value) for name, value in state.items() if name != "trim_offsets"}
    return [_without_offsets(value) for value in state] if isinstance(state, list) else state
