"""What tokenizer_config.json says beyond tokenizer.json, read as transformers 5.23 reads it.

settings -> named special tokens, chat template, flags of added tokens, the end of a turn, padding
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as BackendTokenizer

from tutelage.errors import InputError
from tutelage.json_file import lines_of, read_object
from tutelage.kinds import FLAG, TEXT, check_fields, either, listed, mapped, optional, record_of

END_OF_TEXT = "<|endoftext|>"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
ADDED = record_of({"content": TEXT, **dict.fromkeys(FLAGS, FLAG)}, required=("content",))
NAMED = record_of({"name": TEXT, "template": TEXT}, required=("name", "template"))
PREFIX = re.compile(r'"continuing_subword_prefix"\s*:\s*"[^"]')
KINDS = {
    **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), optional(either(TEXT, ADDED))),
    **dict.fromkeys(("legacy", "add_prefix_space"), optional(FLAG)),
    "tokenizer_class": optional(TEXT),
    "added_tokens_decoder": optional(mapped(ADDED)),
    "chat_template": optional(either(TEXT, listed(NAMED))),
}


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json. Raises InputError for a field of another kind than we read there."""
    path = folder / "tokenizer_config.json"
    settings = read_object(path, "without it the tokenizer cannot be read; create or copy it again")
    check_fields(settings, KINDS, str(path))
    return settings


@contextmanager
def tokenizer_errors(problem: str) -> Iterator[None]:
    """Turn an error of the tokenizer's library into InputError. It raises plain Exception, or panics, which is none."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{problem} ({reason}); create or copy them again") from None


def as_class_reads(folder: Path, settings: dict[str, Any]) -> BackendTokenizer:
    """The tokenizer of tokenizer.json. Of a LlamaTokenizer, transformers takes only vocabulary and merges from there.

    The class splits text by itself: U+2581 stands for a space, and with `legacy` a text after a special token gets one
    in front, otherwise only the first text does. For Mistral's models transformers keeps tokenizer.json as it is.
    """
    path, config = folder / "tokenizer.json", folder / "config.json"
    check_prefix(path)
    if str(settings.get("tokenizer_class")).removesuffix("Fast") != "LlamaTokenizer":
        return BackendTokenizer.from_file(str(path))
    state = json.loads(path.read_text(encoding="utf-8"))
    kind = read_object(config).get("model_type") if config.is_file() else None
    if kind == "mistral" or state["model"].get("type") != "BPE" or "ByteLevel" in json.dumps(state["decoder"]):
        return BackendTokenizer.from_file(str(path))
    space = settings.get("add_prefix_space") is not False
    scheme = ("always" if settings.get("legacy") else "first") if space else "never"
    state["normalizer"] = None
    state["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    state["model"] |= {"fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "dropout": None}
    return BackendTokenizer.from_str(json.dumps(state))


def check_prefix(path: Path) -> None:
    """Raises InputError for a prefix of BPE that its merges do not have: the library would panic."""
    text = path.read_text(encoding="utf-8")
    if not PREFIX.search(text):
        return
    model = json.loads(text)["model"]
    prefix, merges = model.get("continuing_subword_prefix") or "", model.get("merges") or ()
    seconds = [(merge.split(" ") if isinstance(merge, str) else merge)[-1] for merge in merges]
    if not all(second.startswith(prefix) for second in seconds):
        raise InputError(f"{path}: its merges do not begin with continuing_subword_prefix; create or copy it again")


def as_settings_declare(backend: BackendTokenizer, settings: dict[str, Any]) -> None:
    """Give added tokens the flags that `added_tokens_decoder` declares for them."""
    for token in (settings.get("added_tokens_decoder") or {}).values():
        if backend.token_to_id(token["content"]) is not None:
            backend.add_tokens([AddedToken(token["content"], **{f: token[f] for f in FLAGS if f in token})])


def named_tokens(settings: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """(name, token) for every named special token in the settings. transformers takes all names in _token."""
    extra = settings.get("extra_special_tokens")
    named = {name: token for name, token in settings.items() if name.endswith("_token")}
    named |= extra if isinstance(extra, dict) else {}
    texts = ((name, token_text(token)) for name, token in named.items())
    return tuple((name, text) for name, text in texts if isinstance(text, str) and text)


def make_special(backend: BackendTokenizer, tokens: Sequence[str | None]) -> None:
    """Mark tokens of the vocabulary as special. Some folders name an end-of-turn token that is not."""
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for token in tokens:
        if token and backend.token_to_id(token) is not None and not (token in added and added[token].special):
            special = added.get(token) or AddedToken(token, normalized=False)
            special.special = True
            backend.add_special_tokens([special])


def with_end_of_turn(settings: dict[str, Any], end_of_turn: str | None) -> dict[str, Any]:
    """Make eos_token the end-of-turn token, unless the template writes eos_token for another purpose.

    In some folders eos_token is the end of a text. Programs that stop at eos_token alone would go on after an answer.
    """
    used = "eos_token" in settings["chat_template"]
    return settings if used or end_of_turn is None else settings | {"eos_token": end_of_turn}


def with_padding(
    settings: dict[str, Any], special: dict[str, int], end_of_turn: str | None
) -> tuple[dict[str, Any], str | None]:
    """Ensure that the padding token is not the end-of-turn token, as it is in many folders.

    If it is, or if there is no padding token, use an unused special token: one with "pad" in its name if there is one,
    otherwise the one with the smallest id. Returns the settings and a message for the user, None if nothing changed.
    """
    used = {token for name, token in named_tokens(settings) if name != "pad_token"} | {END_OF_TEXT, end_of_turn}
    if token_text(settings.get("pad_token")) not in (None, token_text(settings.get("eos_token")), end_of_turn):
        return settings, None
    in_order = sorted(special, key=lambda token: ("pad" not in token.lower(), special[token]))
    unused = [token for token in in_order if token not in used and token not in settings["chat_template"]]
    if not unused:
        raise InputError(
            "tokenizer: there is no padding token other than the end of a turn, and no unused special token to replace "
            "it; add one to the folder"
        )
    pad = unused[0]
    return settings | {"pad_token": pad}, f"set the padding token to {pad}, because it was missing or the end of a turn"


def token_text(token: Any) -> str | None:
    """The text of a special token in the settings, where it is a string or an object with the field `content`."""
    return token.get("content") if isinstance(token, dict) else token


def find_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The template in chat_template.jinja (newer folders) or in the settings: a string, or the "default" of a list."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return "".join(line for _, line in lines_of(file)).replace("\r\n", "\n").replace("\r", "\n")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
