"""Tokenizers in GGUF, the file format of llama.cpp.

    Tokenizer <-> metadata {tokenizer.*: value}

A GGUF file refers to its pre-tokenizer, the rule that splits text into words, by name. We read the byte-level rules in
`RULES`. A pre-tokenizer without a name is written under the name of the nearest rule, so llama.cpp may split some texts
differently. The file then also contains the whole tokenizer.json, under the key that GGUF defines for it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as BackendTokenizer

from tutelage.errors import InputError
from tutelage.kinds import FLAG, TEXT, check_fields, listed, whole
from tutelage.text.settings import tokenizer_errors
from tutelage.text.tokenizer import Tokenizer

HUGGING_FACE_JSON = "tokenizer.huggingface.json"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types
ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
ENDS = ("eos", "eot", "eom")  # llama.cpp ends an answer at any of them: of text, of turn, of message
KINDS = {
    **dict.fromkeys(("tokenizer.ggml.tokens", "tokenizer.ggml.merges"), listed(TEXT)),
    **dict.fromkeys(("tokenizer.chat_template", HUGGING_FACE_JSON), TEXT),
    **{f"tokenizer.ggml.{name}_token_id": whole(0, 2**31 - 1) for name in (*ROLES.values(), *ENDS)},
    "tokenizer.ggml.token_type": listed(whole()),
    "tokenizer.ggml.add_bos_token": FLAG,
}
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


def from_gguf(metadata: Mapping[str, Any], make_chat: bool = False) -> Tokenizer:
    """Read a tokenizer from GGUF metadata. With make_chat it gets our chat template and the template's tokens.

    Raises InputError if its type is not supported or the data is invalid.
    """
    check_fields(metadata, KINDS, "gguf")
    model, rule = str(metadata.get("tokenizer.ggml.model")), str(metadata.get("tokenizer.ggml.pre", "default"))
    if model != "gpt2" or rule not in RULES:
        raise InputError(
            f"gguf: tokenizer {model!r} with pre-tokenizer {rule!r} is not supported; byte-level BPE ('gpt2') with "
            f"{', '.join(RULES)} is. Use the model's Hugging Face folder instead"
        )
    with tokenizer_errors("gguf: the tokenizer's tables cannot be read"):
        tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
        used = len(tokens) - next((i for i, kind in enumerate(reversed(types)) if kind != UNUSED), len(types))
        tokens, types = tokens[:used], types[:used]  # the unused tokens at the end fill up the rows of the embedding
        merges = [(left, right) for left, right in (m.split(" ") for m in metadata["tokenizer.ggml.merges"])]
        complete = metadata.get(HUGGING_FACE_JSON)
        backend = BackendTokenizer.from_str(complete) if complete else _backend(tokens, types, merges, rule)
        if not complete and _adds_bos(metadata, rule):
            backend.post_processor = _bos_first(tokens, metadata["tokenizer.ggml.bos_token_id"])
        if [backend.id_to_token(i) for i in range(backend.get_vocab_size())] != tokens:
            raise ValueError(f"its {HUGGING_FACE_JSON} has other tokens")
        if make_chat:
            return Tokenizer.with_chat(backend, _settings(metadata, tokens))
        if not metadata.get("tokenizer.chat_template"):
            raise InputError(
                "gguf: the file has no chat template; give a chat model, or add ours with `tutelage import-model "
                "--make-chat`"
            )
        ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ENDS]
        return Tokenizer(backend, _settings(metadata, tokens), [i for i in ends if i is not None])


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


def _adds_bos(metadata: Mapping[str, Any], rule: str) -> bool:
    """Whether a text begins with BOS. Without the key it does for Llama 3's rule, as in llama.cpp."""
    return bool(
        metadata.get("tokenizer.ggml.add_bos_token", rule == "llama-bpe") and "tokenizer.ggml.bos_token_id" in metadata
    )


def _bos_first(tokens: Sequence[str], bos: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=[tokens[bos], "$A"], special_tokens=[(tokens[bos], bos)])


def _settings(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    template = metadata.get("tokenizer.chat_template")
    named = {
        role: tokens[metadata[f"tokenizer.ggml.{name}_token_id"]]
        for role, name in ROLES.items()
        if f"tokenizer.ggml.{name}_token_id" in metadata
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "clean_up_tokenization_spaces": False,
        **({"chat_template": template} if template else {}),
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
    ids = {
        f"tokenizer.ggml.{ROLES[role]}_token_id": tokenizer.special[token]
        for role, token in tokenizer.named_specials
        if role in ROLES and token in tokenizer.special
    }
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule or NEAREST,
        "tokenizer.ggml.tokens": [*tokens, *spare],
        "tokenizer.ggml.token_type": [*types, *[UNUSED] * len(spare)],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.add_bos_token": writes_bos(tokenizer),
        "tokenizer.chat_template": tokenizer.chat_template,
        **ids,
        **_end_ids(tokenizer, ids["tokenizer.ggml.eos_token_id"]),
        **({} if rule else {HUGGING_FACE_JSON: tokenizer.to_json()}),
    }, rule is not None


def _end_ids(tokenizer: Tokenizer, eos: int) -> dict[str, int]:
    """The ids that end an answer besides eos; GGUF has keys for two."""
    others = [end for end in tokenizer.end_ids if end != eos] or [eos]
    return {f"tokenizer.ggml.{name}_token_id": end for name, end in zip(ENDS[1:], others, strict=False)}


def writes_bos(tokenizer: Tokenizer) -> bool:
    """Whether the file has llama.cpp begin every text with BOS.

    llama.cpp does so in chats, too, and drops one of two. So it must not where the chat template has no BOS.
    """
    bos = dict(tokenizer.named_specials).get("bos_token")
    in_chat = bos is not None and (bos in tokenizer.chat_template or "bos_token" in tokenizer.chat_template)
    return in_chat and tokenizer.opening == [tokenizer.special.get(bos or "")]


def normalises(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer changes text before it splits it. llama.cpp does not."""
    return json.loads(tokenizer.to_json()).get("normalizer") is not None


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
