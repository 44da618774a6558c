"""Text -> token ids and back, with special tokens that no text can forge.

    Tokenizer.load(folder);  Tokenizer.encode(text) -> ids;  Tokenizer.decode(ids) -> text

The library `tokenizers` does the work. Where we differ: text is always encoded as ordinary text, even the string
"<|user|>". Special ids come only from `text/chat.py` and from packing documents. The saved files can be loaded by
transformers.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as BackendTokenizer

from tutelage.atomic import atomic_write
from tutelage.errors import InputError, located
from tutelage.text.control import THINK, Guard
from tutelage.text.endings import declared_ends, framing
from tutelage.text.reader import Reader, unread
from tutelage.text.settings import (
    END_OF_TEXT,
    as_class_reads,
    as_settings_declare,
    find_template,
    make_special,
    named_tokens,
    read_settings,
    token_text,
    tokenizer_errors,
    with_end_of_turn,
    with_padding,
)
from tutelage.text.template import CHAT_TEMPLATE, Template
from tutelage.text.token_bounds import TokenBounds, bounds_of
from tutelage.text.token_bytes import byte_characters, byte_level_bytes, sentencepiece_bytes

PAD, END_OF_TURN = "<|pad|>", "<|end|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, "<|system|>", "<|user|>", "<|assistant|>", END_OF_TURN)


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
        self.new_tokens = 0  # at the end of the vocabulary, without trained rows in the model: `with_chat` adds them
        self.chat_template: str = settings["chat_template"]
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        frame = framing(Template(self.chat_template, named_tokens(settings)), added)
        make_special(backend, [*dict(named_tokens(settings)).values(), frame.end_of_turn])
        self.special = {t.content: i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        self._id_of("eos_token", settings, frame.end_of_turn)
        settings = with_end_of_turn(settings, frame.end_of_turn)
        # `chosen` is a message for the user if a padding token had to be chosen, else None.
        self.settings, self.chosen = with_padding(settings, self.special, frame.end_of_turn)
        self.pad_id = self._id_of("pad_token", self.settings)
        eos = self._id_of("eos_token", self.settings, frame.end_of_turn)
        self.end_of_turn_id = self.special[frame.end_of_turn] if frame.end_of_turn else eos
        # Every id that ends a response, without repetition; the first is the one that is trained on.
        self.end_ids = tuple(dict.fromkeys((self.end_of_turn_id, eos, *(i for i in ends if 0 <= i < self.vocab_size))))
        self.end_of_text_id = self.special.get(END_OF_TEXT, self.end_of_turn_id)
        self.template = Template(self.chat_template, self.named_specials)
        control = {*self.special, *frame.tokens, *frame.tool_tokens}
        # Never part of a text: special tokens, and others with which the template separates turns, or models mark calls
        # and reasoning.
        marks = {*control, *(added & {*THINK})}
        self.control_tokens = {token: i for token in marks if (i := backend.token_to_id(token)) is not None}
        self.guard = Guard(
            control,
            added,
            [token for i in self.end_ids if (token := backend.id_to_token(i))],
            unread(backend, control),
            spoken=frame.tool_tokens - self.special.keys(),
        )

    @cached_property
    def added(self) -> frozenset[str]:
        """The tokens that the library finds in a text before it splits the text, special or not."""
        return frozenset(token.content for token in self._backend.get_added_tokens_decoder().values())

    @property
    def named_specials(self) -> tuple[tuple[str, str], ...]:
        """(name, token) for the names that a chat template may use, as bos_token and eos_token."""
        return named_tokens(self.settings)

    def _id_of(self, name: str, settings: dict[str, Any], default: str | None = None) -> int:
        token = token_text(settings.get(name)) or default
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

    @cached_property
    def _ordinary(self) -> BackendTokenizer:
        """What encodes ordinary text: another copy if the model (Unigram) makes special tokens of their text."""
        ids = (self._backend.encode(token, add_special_tokens=False).ids for token in self.special)
        made = any(i in found for i, found in zip(self.special.values(), ids, strict=True))
        return self.reader.backend if made else self._backend

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
        return self._ordinary.encode(text, add_special_tokens=False).ids

    def encode_text(self, text: str) -> list[int]:
        """Ids of ordinary text between the tokens that the tokenizer's post-processor adds, such as BOS."""
        return self._backend.encode(text, add_special_tokens=True).ids

    def encode_marked(self, text: str, framed: bool) -> list[int]:
        """Ids as transformers gives them: the text of a special token becomes that token. Not for text from people.

        framed: between the tokens that the post-processor adds.
        """
        return self._marking.encode(text, add_special_tokens=framed).ids

    @cached_property
    def _marking(self) -> BackendTokenizer:
        """A copy, because the setting holds for all threads that use a tokenizer."""
        copy = BackendTokenizer.from_str(self.to_json())
        copy.encode_special_tokens = False
        return copy

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The tokens that the post-processor puts before and after a text, such as BOS; none with our tokenizers."""
        encoding = self._backend.encode("a", add_special_tokens=True)
        own = [i for i, part in enumerate(encoding.sequence_ids) if part is not None] or [0]
        return encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]

    @property
    def opening(self) -> list[int]:
        """The tokens that the post-processor puts before a text."""
        return self.frame[0]

    @cached_property
    def bounds(self) -> TokenBounds | None:
        """How much text a token stands for at most, if that is known."""
        return bounds_of(self._backend)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Equivalent to `[encode(t) for t in texts]`, on all cores."""
        return [e.ids for e in self._ordinary.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids. Bytes that are not valid UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_byte_counts(self) -> list[int]:
        """Number of bytes of text that each id stands for; 0 for special tokens."""
        if self.byte_level:  # each character of a token stands for one byte
            return [0 if token in self.special else len(token) for token in self.tokens()]
        return [0 if token in self.special else len(sentencepiece_bytes(token)) for token in self.tokens()]

    def token_bytes(self) -> list[bytes]:
        """The bytes of text that each id stands for in the middle of a text; empty for special tokens."""
        if self.byte_level:
            byte = {character: value for value, character in byte_characters().items()}
            return [b"" if t in self.special else byte_level_bytes(t, byte) for t in self.tokens()]
        return [b"" if t in self.special else sentencepiece_bytes(t) for t in self.tokens()]

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

    @classmethod
    def with_chat(cls, backend: BackendTokenizer, settings: dict[str, Any]) -> "Tokenizer":
        """A base model's tokenizer with our chat template, and the template's markers as additional special tokens."""
        before = backend.get_vocab_size()
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
        ours = {"eos_token": END_OF_TURN, "pad_token": PAD, "chat_template": CHAT_TEMPLATE}
        tokenizer = cls(backend, settings | ours)
        tokenizer.new_tokens = tokenizer.vocab_size - before
        return tokenizer

    def tokens(self) -> list[str]:
        """All tokens in id order, as the library writes them: one character per byte if byte-level."""
        return self.names_of(range(self.vocab_size))

    def names_of(self, ids: Sequence[int]) -> list[str]:
        """These tokens, as the library writes them."""
        return [self._backend.id_to_token(i) or "" for i in ids]

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return self._backend.to_str(pretty=True)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer can load."""
        with atomic_write(folder / "tokenizer.json") as file:
            file.write(self.to_json())
        with atomic_write(folder / "tokenizer_config.json") as file:
            json.dump(self.settings, file, indent=2, ensure_ascii=False)
        (folder / "chat_template.jinja").unlink(missing_ok=True)  # it would be read in place of the settings' template

    @classmethod
    def load(cls, folder: Path, make_chat: bool = False) -> "Tokenizer":
        """Read a tokenizer folder. Raises InputError if a file is missing or broken, or if there is no chat template.

        With `make_chat` the tokenizer gets our chat template, and the template's markers as additional special tokens.
        """
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise InputError(f"{folder}: no {name} here; give a run directory that contains a tokenizer")
        settings = read_settings(folder)
        template = find_template(folder, settings)
        with located(str(folder)), tokenizer_errors(f"{folder}: the tokenizer files cannot be read"):
            backend = as_class_reads(folder, settings)
            as_settings_declare(backend, settings)
            if make_chat:
                return cls.with_chat(backend, settings)
            if template is None:
                raise InputError(
                    f"{folder}: tokenizer_config.json has no chat_template; add one to a base model with "
                    "`tutelage import-model --make-chat`"
                )
            return cls(backend, settings | {"chat_template": template}, declared_ends(folder))
