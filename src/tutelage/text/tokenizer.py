"""Text -> token ids and back, with special tokens that no text can forge.

    texts -> train_bpe -> Tokenizer;  Tokenizer.encode(text) -> ids;  Tokenizer.decode(ids) -> text

Byte-level BPE as in GPT-2 (Radford et al. 2019, section 2.2), trained and run by the library `tokenizers`. Where we
differ: text is always encoded as ordinary text, even the string "<|user|>". Special ids come only from
`text/chat.py` and from packing documents. The saved files can be loaded by transformers.
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
from tutelage.text.control import Guard, Reader
from tutelage.text.endings import declared_ends, framing
from tutelage.text.template import Template

END_OF_TEXT, PAD, END_OF_TURN = "<|endoftext|>", "<|pad|>", "<|end|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, "<|system|>", "<|user|>", "<|assistant|>", END_OF_TURN)

# GPT-4's pattern with two changes. Numbers are split into single digits, because a small vocabulary cannot afford 1,000
# three-digit tokens. A colon takes the space after it, so that the text after a name in `name: text` starts with the
# same tokens as the text after a role marker in a chat. Fine-tuning can then reuse the words learned in pretraining.
SPLIT_PATTERN = (
    r": (?=\S)|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Tokenizer:
    """A trained tokenizer with its chat template."""

    def __init__(self, backend: BackendTokenizer, settings: dict[str, Any], ends: Sequence[int] = ()):
        """ends: ids that end a response, besides the token that the template writes after an answer and eos_token.

        Raises InputError if the settings do not fit the tokens, or if the template renders no conversation.
        """
        backend.encode_special_tokens = True  # "<|end|>" typed by a user is ordinary text, not the special token
        backend.no_truncation()  # some folders have truncation and padding set from training
        backend.no_padding()
        self._backend = backend
        self.chat_template: str = settings["chat_template"]
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        frame = framing(Template(self.chat_template, _named(settings)), added)
        _make_special(backend, [*dict(_named(settings)).values(), frame.end_of_turn])
        self.special = {t.content: i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        self._id_of("eos_token", settings, frame.end_of_turn)
        settings = _with_end_of_turn(settings, frame.end_of_turn)
        # `chosen` is a message for the user if a padding token had to be chosen, else None.
        self.settings, self.chosen = _with_padding(settings, self.special, frame.end_of_turn)
        self.pad_id = self._id_of("pad_token", self.settings)
        eos = self._id_of("eos_token", self.settings, frame.end_of_turn)
        self.end_of_turn_id = self.special[frame.end_of_turn] if frame.end_of_turn else eos
        # Every id that ends a response, without repetition; the first is the one that is trained on.
        self.end_ids = tuple(dict.fromkeys((self.end_of_turn_id, eos, *(i for i in ends if i < self.vocab_size))))
        self.end_of_text_id = self.special.get(END_OF_TEXT, self.end_of_turn_id)
        self.template = Template(self.chat_template, self.named_specials)
        self.guard = Guard({*self.special, *frame.tokens}, added, [backend.id_to_token(i) for i in self.end_ids])

    @property
    def named_specials(self) -> tuple[tuple[str, str], ...]:
        """(name, token) for the names that a chat template may use, as bos_token and eos_token."""
        return _named(self.settings)

    def _id_of(self, name: str, settings: dict[str, Any], default: str | None = None) -> int:
        token = _token_text(settings.get(name)) or default
        if token not in self.special:
            raise InputError(
                f"tokenizer: the configuration sets {name} to {token!r}, which is not among the special tokens "
                f"{sorted(self.special)}; use the tokenizer folder that the model was trained with"
            )
        return self.special[token]

    @cached_property
    def reader(self) -> Reader:
        """Encodes conversations that `guard` sealed. Made when it is first needed, because it takes 0.7 s for 49,152
        tokens."""
        return Reader(self._backend, self.guard.names)

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def vocabulary_sha256(self) -> str:
        """SHA-256 of the vocabulary. Equal for two tokenizers if and only if every id is the same token in both."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text, never of a special token."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Equivalent to `[encode(t) for t in texts]`, on all cores."""
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids. Bytes that are not valid UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_byte_counts(self) -> list[int]:
        """Number of bytes of text that each id stands for; 0 for special tokens."""
        if self.byte_level:  # each character of a token stands for one byte
            return [0 if token in self.special else len(token) for token in self.tokens()]
        return [0 if token in self.special else len(_sentencepiece_bytes(token)) for token in self.tokens()]

    def token_bytes(self) -> list[bytes]:
        """The bytes of text that each id stands for in the middle of a text; empty for special tokens."""
        if self.byte_level:
            byte = {character: value for value, character in _characters_of_bytes().items()}
            return [b"" if t in self.special else bytes(byte[c] for c in t) for t in self.tokens()]
        return [b"" if t in self.special else _sentencepiece_bytes(t) for t in self.tokens()]

    @cached_property
    def byte_level(self) -> bool:
        """Whether tokens are bytes written as characters (GPT-2 and later), not substrings of text (SentencePiece).

        Cached, because it is read from the library's JSON. That takes 0.1 s for 49,152 tokens, too long per request.
        """
        return "ByteLevel" in json.dumps(json.loads(self.to_json())["decoder"])

    def with_specials(self, names: Sequence[str]) -> "Tokenizer":
        """A copy with more special tokens, which get the next ids. Raises InputError if a token already exists."""
        backend = BackendTokenizer.from_str(self.to_json())
        if known := [name for name in names if backend.token_to_id(name) is not None]:
            raise InputError(f"tokenizer: {known[0]!r} is already a token; leave it out")
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
        return Tokenizer(backend, self.settings, self.end_ids)

    def tokens(self) -> list[str]:
        """All tokens in id order, as the library writes them: one character per byte if byte-level."""
        return [self._backend.id_to_token(i) or "" for i in range(self.vocab_size)]

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return self._backend.to_str(pretty=True)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer can load."""
        with atomic_write(folder / "tokenizer.json") as file:
            file.write(self.to_json())
        with atomic_write(folder / "tokenizer_config.json") as file:
            json.dump(self.settings, file, indent=2, ensure_ascii=False)

    @classmethod
    def load(cls, folder: Path, make_chat: bool = False) -> "Tokenizer":
        """Read a tokenizer folder. Raises InputError if a file is missing or broken, or if there is no chat template.

        With `make_chat` the tokenizer gets our chat template, and the template's markers as additional special tokens.
        """
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise InputError(f"{folder}: no {name} here; give a run directory that contains a tokenizer")
        try:
            backend = BackendTokenizer.from_file(str(folder / "tokenizer.json"))
            settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise InputError(
                f"{folder}: the tokenizer files cannot be read ({error}); create or copy them again"
            ) from None
        template = _chat_template(folder, settings)
        if make_chat:
            backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
            settings, template = settings | {"eos_token": END_OF_TURN, "pad_token": PAD}, CHAT_TEMPLATE
        if template is None:
            raise InputError(
                f"{folder}: tokenizer_config.json has no chat_template; add one to a base model with "
                "`tutelage import-model --make-chat`"
            )
        try:
            return cls(backend, settings | {"chat_template": template}, () if make_chat else declared_ends(folder))
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None


def _named(settings: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """(name, token) for every named special token in the settings. transformers takes all names in _token."""
    extra = settings.get("extra_special_tokens")
    named = {name: token for name, token in settings.items() if name.endswith("_token")}
    named |= extra if isinstance(extra, dict) else {}
    texts = ((name, _token_text(token)) for name, token in named.items())
    return tuple((name, text) for name, text in texts if isinstance(text, str) and text)


def _make_special(backend: BackendTokenizer, tokens: Sequence[str | None]) -> None:
    """Mark tokens of the vocabulary as special. Some folders name an end-of-turn token that is not."""
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for token in tokens:
        if token and backend.token_to_id(token) is not None and not (token in added and added[token].special):
            special = added.get(token) or AddedToken(token, normalized=False)
            special.special = True
            backend.add_special_tokens([special])


def _with_end_of_turn(settings: dict[str, Any], end_of_turn: str | None) -> dict[str, Any]:
    """Make eos_token the end-of-turn token, unless the template writes eos_token for another purpose.

    In some folders eos_token is the end of a text. Programs that stop at eos_token alone would go on after an answer.
    """
    used = "eos_token" in settings["chat_template"]
    return settings if used or end_of_turn is None else settings | {"eos_token": end_of_turn}


def _with_padding(
    settings: dict[str, Any], special: dict[str, int], end_of_turn: str | None
) -> tuple[dict[str, Any], str | None]:
    """Ensure that the padding token is not the end-of-turn token, as it is in many folders.

    If it is, or if there is no padding token, use an unused special token: one with "pad" in its name if there is one,
    otherwise the one with the smallest id. Returns the settings and a message for the user, None if nothing changed.
    """
    used = {token for name, token in _named(settings) if name != "pad_token"} | {END_OF_TEXT, end_of_turn}
    if _token_text(settings.get("pad_token")) not in (None, _token_text(settings.get("eos_token")), end_of_turn):
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


def _sentencepiece_bytes(token: str) -> bytes:
    """The bytes of a SentencePiece token: a byte written as <0x0A>, or text in which U+2581 stands for a space."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def _characters_of_bytes() -> dict[int, str]:
    """GPT-2's alphabet (Radford et al. 2019): printable bytes stand for themselves, the others start at U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {value: chr(256 + i) for i, value in enumerate(others)}


def _token_text(token: Any) -> str | None:
    """The text of a special token in the settings, where it is a string or an object with the field `content`."""
    return token.get("content") if isinstance(token, dict) else token


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The template in chat_template.jinja (newer folders) or in the settings: a string, or the "default" of a list."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE with exactly `vocab_size` tokens, including special tokens.

    Raises InputError if the texts are too few to fill the vocabulary.
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
            f"tokenizer: the texts fill only {backend.get_vocab_size()} of {vocab_size} tokens; "
            "give more text or a smaller --vocab-size"
        )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TURN,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    return Tokenizer(backend, settings)
