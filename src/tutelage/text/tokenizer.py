"""Text to token ids and back: a byte-level BPE whose special tokens no text can forge.

    texts -> train_bpe -> Tokenizer;  Tokenizer.encode(text) -> ids;  Tokenizer.decode(ids) -> text

Byte-level BPE as in GPT-2 (Radford et al. 2019, section 2.2), trained and run by the library `tokenizers`. Ours: what
stands in a text is always ordinary text, even the letters "<|user|>"; special ids enter only through `text/chat.py`
and the packing of documents. The files written are the ones that transformers reads.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BackendTokenizer

from tutelage.atomic import atomic_write
from tutelage.errors import InputError

END_OF_TEXT, PAD, END_OF_TURN = "<|endoftext|>", "<|pad|>", "<|end|>"
TEMPLATE_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
SPECIAL_TOKENS = (END_OF_TEXT, PAD, "<|system|>", "<|user|>", "<|assistant|>", END_OF_TURN)

# GPT-4's pattern, but numbers are split into single digits, since a small vocabulary cannot afford 1,000 three-digit
# tokens, and a colon takes the space after it: what follows a name in `name: text` then begins with the same tokens as
# what follows a role marker in a chat, so that fine-tuning finds the words that pretraining has learnt.
SPLIT_PATTERN = (
    r": (?=\S)|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Tokenizer:
    """A trained tokenizer with its chat template. Equal ids for equal text, whatever the text says."""

    def __init__(self, backend: BackendTokenizer, settings: dict[str, Any]):
        backend.encode_special_tokens = True  # "<|end|>" typed by a user is seven letters, never the special id
        backend.no_truncation()  # some folders carry the settings of somebody's training
        backend.no_padding()
        self._backend = backend
        self.special = {t.content: i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        self.settings, self.chosen = _with_padding(settings, self.special)  # chosen: what was decided, in words
        self.chat_template: str = settings["chat_template"]
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, self.special)) + ")")
        self.pad_id = self._id_of("pad_token")
        self.end_of_turn_id = self._id_of("eos_token")
        self.end_of_text_id = self.special.get(END_OF_TEXT, self.end_of_turn_id)

    @property
    def named_specials(self) -> tuple[tuple[str, str], ...]:
        """(role, token) of what a chat template may name: bos_token, eos_token, pad_token, unk_token."""
        return tuple((role, name) for role in TEMPLATE_NAMES if (name := _token_name(self.settings.get(role))))

    def _id_of(self, role: str) -> int:
        name = _token_name(self.settings.get(role))
        if name not in self.special:
            raise InputError(
                f"tokenizer: its configuration names {name!r} as {role}, its special tokens are "
                f"{sorted(self.special)}; use the tokenizer folder that the model was trained with"
            )
        return self.special[name]

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def vocabulary_sha256(self) -> str:
        """The same for two tokenizers exactly when each id is the same token in both."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; never a special id."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_template(self, text: str) -> list[int]:
        """Ids of what a chat template wrote: here, and only here, special tokens are recognised."""
        ids: list[int] = []
        for part in self._special_pattern.split(text):
            if part in self.special:
                ids.append(self.special[part])
            elif part:
                ids += self.encode(part)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The same as `[encode(t) for t in texts]`, on all cores."""
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are no valid UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_bytes(self) -> list[int]:
        """How many bytes of text each id stands for; 0 for special tokens."""
        if self.byte_level:  # one character of a token is one byte
            return [0 if token in self.special else len(token) for token in self.tokens()]
        return [0 if token in self.special else _sentencepiece_bytes(token) for token in self.tokens()]

    def bytes_of_tokens(self) -> list[bytes]:
        """The bytes of text each id stands for, in the middle of a text; none for special tokens."""
        if self.byte_level:
            byte = {character: value for value, character in _characters_of_bytes().items()}
            return [b"" if t in self.special else bytes(byte[c] for c in t) for t in self.tokens()]
        return [b"" if t in self.special else _sentencepiece_text(t) for t in self.tokens()]

    @cached_property
    def byte_level(self) -> bool:
        """Whether tokens are bytes written as characters (GPT-2 and after), not pieces of text (SentencePiece).

        Only the library's JSON tells, which takes .1 s for 49,152 tokens: too long for each request of a server.
        """
        return "ByteLevel" in json.dumps(json.loads(self.to_json())["decoder"])

    def with_specials(self, names: Sequence[str]) -> "Tokenizer":
        """The same tokenizer with further special tokens, behind the others. Raises InputError for one it has."""
        backend = BackendTokenizer.from_str(self.to_json())
        if known := [name for name in names if backend.token_to_id(name) is not None]:
            raise InputError(f"tokenizer: {known[0]!r} is a token already; leave it out")
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
        return Tokenizer(backend, self.settings)

    def tokens(self) -> list[str]:
        """Every token by its id, as the library writes it: one character per byte, special tokens as they are."""
        return [self._backend.id_to_token(i) or "" for i in range(self.vocab_size)]

    def to_json(self) -> str:
        """tokenizer.json."""
        return self._backend.to_str(pretty=True)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads as they are."""
        with atomic_write(folder / "tokenizer.json") as file:
            file.write(self.to_json())
        with atomic_write(folder / "tokenizer_config.json") as file:
            json.dump(self.settings, file, indent=2, ensure_ascii=False)

    @classmethod
    def load(cls, folder: Path, make_chat: bool = False) -> "Tokenizer":
        """Read a tokenizer folder. Raises InputError if a file is missing, broken or without a chat template.

        With `make_chat` it gets our template, and its markers as special tokens behind its own.
        """
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise InputError(f"{folder}: no {name} here; point at a run directory that holds a tokenizer")
        try:
            backend = BackendTokenizer.from_file(str(folder / "tokenizer.json"))
            settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise InputError(
                f"{folder}: the tokenizer files cannot be read ({error}); make or copy them again"
            ) from None
        template = _chat_template(folder, settings)
        if make_chat:
            backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
            settings, template = settings | {"eos_token": END_OF_TURN, "pad_token": PAD}, CHAT_TEMPLATE
        if template is None:
            raise InputError(
                f"{folder}: tokenizer_config.json has no chat_template; give a base model one with "
                "`tutelage import-model --make-chat`"
            )
        return cls(backend, _with_end(folder, backend, settings | {"chat_template": template}))


def _with_end(folder: Path, backend: BackendTokenizer, settings: dict[str, Any]) -> dict[str, Any]:
    """Some folders name the end of a text as eos, and the end of a turn only in their generation_config.json."""
    template, path = settings["chat_template"], folder / "generation_config.json"
    eos = _token_name(settings.get("eos_token"))
    if (eos and eos in template) or "eos_token" in template or not path.is_file():
        return settings
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); copy the model again") from None
    ends = [backend.id_to_token(i) for i in (named if isinstance(named, list) else [named]) if isinstance(i, int)]
    found = next((end for end in ends if end and end in template), None)
    return settings | {"eos_token": found} if found else settings


def _with_padding(settings: dict[str, Any], special: dict[str, int]) -> tuple[dict[str, Any], str | None]:
    """Padding must not be the end of a turn, as it is in many folders: then a special token that is not in use is it.

    One with "pad" in its name comes first, then the one with the smallest id.
    """
    taken = {_token_name(settings.get(role)) for role in TEMPLATE_NAMES if role != "pad_token"} | {END_OF_TEXT}
    if _token_name(settings.get("pad_token")) not in (None, _token_name(settings.get("eos_token"))):
        return settings, None
    in_order = sorted(special, key=lambda token: ("pad" not in token.lower(), special[token]))
    free = [token for token in in_order if token not in taken and token not in settings["chat_template"]]
    if not free:
        raise InputError(
            "tokenizer: padding is the end of a turn, and no special token is free to be padding; add one to the folder"
        )
    return settings | {"pad_token": free[0]}, f"padding is {free[0]} now: it was the end of a turn, or nothing"


def _sentencepiece_bytes(token: str) -> int:
    """A byte written as <0x0A>, or text in which a low line above the base stands for a space."""
    return len(_sentencepiece_text(token))


def _sentencepiece_text(token: str) -> bytes:
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def _characters_of_bytes() -> dict[int, str]:
    """GPT-2's alphabet (Radford et al. 2019): printable bytes are themselves, the others follow from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {value: chr(256 + i) for i, value in enumerate(others)}


def _token_name(token: Any) -> str | None:
    """A special token stands in the settings as its text, or as an object that has it as content."""
    return token.get("content") if isinstance(token, dict) else token


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """From a file of its own, as newer folders have it, or the settings: a text, or the default of several by name."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE of exactly `vocab_size` tokens, special tokens included.

    Raises InputError when the texts are too few to fill the vocabulary.
    """
    backend = BackendTokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() != vocab_size:
        raise InputError(
            f"tokenizer: the texts fill {backend.get_vocab_size()} of {vocab_size} tokens; "
            "give more text or ask for a smaller --vocab-size"
        )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TURN,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    return Tokenizer(backend, settings)
