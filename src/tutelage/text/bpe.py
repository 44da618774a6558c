"""Trains the tokenizer: texts -> train_bpe -> Tokenizer.

Byte-level BPE as in GPT-2 (Radford et al. 2019, section 2.2), trained by the library `tokenizers`.
"""

from collections.abc import Iterable

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BackendTokenizer

from tutelage.errors import InputError
from tutelage.text.template import CHAT_TEMPLATE
from tutelage.text.tokenizer import END_OF_TURN, PAD, SPECIAL_TOKENS, Tokenizer

# GPT-4's pattern with three changes. Numbers are split into single digits, because a small vocabulary cannot afford
# 1,000 three-digit tokens. A turn has the same tokens in a pretraining document as between a chat's markers, so that
# fine-tuning can reuse what pretraining learned: a colon takes the space after it, for the text after a name in
# `name: text`, and a line break is a token of its own, whatever stands before it.
SPLIT_PATTERN = (
    r": (?=\S)|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+|\s*[\r\n]|\s+(?!\S)|\s+"
)


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
