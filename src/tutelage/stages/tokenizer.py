"""A byte-level BPE tokenizer trained on documents, and a report of how well it fits each language.

    corpus -> byte-level BPE (Radford et al. 2019) -> tokenizer.json, tokenizer_config.json, bytes per token

A language with a small share of the corpus would get almost no tokens, so its documents can be counted several times.
This affects the tokenizer only.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tutelage.data.records import Document, read_documents
from tutelage.options import Advanced, Natural, Range
from tutelage.runs.ending import Ending, Figure, command
from tutelage.runs.run import Run, RunConfig
from tutelage.text.bpe import train_bpe
from tutelage.text.tokenizer import SPECIAL_TOKENS, Tokenizer

VocabularySize = Annotated[
    int,
    Range(
        least=256 + len(SPECIAL_TOKENS),
        most=2**20,
        why="it holds all 256 bytes and the special tokens, and no model has more than 300,000 tokens",
    ),
]


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(RunConfig):
    """Vocabulary size, and the weight of Chinese documents."""

    vocab_size: VocabularySize = 4_096
    """Number of tokens, including the 256 bytes and the special tokens."""
    copies_zh: Advanced[Natural] = 10
    """How often each Chinese document is counted. Counted once, the demo's 30 kB would get hardly any tokens."""


def tokenizer(corpus: tuple[Path, ...], out: Path, config: TokenizerConfig = TokenizerConfig()) -> None:
    """Train a byte-level BPE tokenizer on documents.

    corpus: JSONL files with documents.
    out: Run directory to write.

    Example: tutelage tokenizer --corpus data/corpus.train.jsonl --out runs/tokenizer --vocab-size 4096
    """
    with Run(out, stage="tokenizer", config=config, inputs={"corpus": corpus}) as run:
        if run.finished:
            return
        run.progress.update(0.0)
        documents = read_documents(corpus)
        trained = train_bpe(weighted(documents, config.copies_zh), config.vocab_size)
        trained.save(out)
        run.progress.update(1.0)
        languages = fit_report(trained, documents)
        run.finish(
            {"vocab_size": trained.vocab_size, "languages": languages},
            ending(run, corpus, trained.vocab_size, languages),
        )


def ending(run: Run, corpus: tuple[Path, ...], size: int, languages: dict[str, dict[str, float]]) -> Ending:
    documents = sum(int(counts["documents"]) for counts in languages.values())
    figures = [
        Figure(f"bytes per token ({language})", counts["bytes_per_token"]) for language, counts in languages.items()
    ]
    return Ending(
        f"trained a tokenizer of {size:,} tokens on {documents:,} documents",
        figures,
        next=[command("pretrain", "--tokenizer", run.out, "--corpus", *corpus, "--out", "...")],
    )


def weighted(documents: list[Document], copies_zh: int) -> list[str]:
    """The text of every document, Chinese ones `copies_zh` times."""
    return [d.plain_text() for d in documents for _ in range(copies_zh if d.lang == "zh" else 1)]


def fit_report(tokenizer: Tokenizer, documents: list[Document]) -> dict[str, dict[str, float]]:
    """Per language: documents, bytes, tokens, and bytes per token (higher is a better fit)."""
    texts: dict[str, list[str]] = defaultdict(list)
    for document in documents:
        texts[document.lang or "unknown"].append(document.plain_text())
    report = {}
    for language, group in sorted(texts.items()):
        size = sum(len(text.encode()) for text in group)
        tokens = sum(len(ids) for ids in tokenizer.encode_batch(group))
        counts = {"documents": len(group), "bytes": size, "tokens": tokens}
        report[language] = counts | {"bytes_per_token": round(size / tokens, 3)}
    return report
