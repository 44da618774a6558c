"""What the chat page suggests to say first: questions that the model can answer.

    run -> data/prompts.test.jsonl beside it -> suggestions -> in the language of the page

A model of the demo has seen one kind of conversation. So its suggestions are questions from its own held-out prompts:
those that stand on their own, the most ordinary first. Other models have none, and the page has general ones.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tutelage.data.records import read_prompts
from tutelage.data.rubric import content_words, words
from tutelage.errors import InputError

PROMPTS = Path("data") / "prompts.test.jsonl"  # in the folder that holds the run
COUNT = 4
SIZES = {"en": (4, 9), "zh": (4, 12)}  # words, or characters, of a question that is neither curt nor long
ADDRESSED = re.compile(r"\byou\b|你|您")
# A question with one of these may point back to something that was said or done before.
BACK = frozenset(
    "it it's that that's this these those they them he him his she her there one ones too else then so also but and "
    "or same did was were would mean think i me my we us our 这 那 他 她 它".split()
)
OPENING = frozenset("what which where when who why how do are have can is".split())
_QUESTION = re.compile(r"[A-Z][a-z' ]*\?|[\u3400-\u9fff，]+[?？]")
_CHINESE = re.compile(r"[\u3400-\u9fff]")


def suggestions_of(run: Path) -> tuple[str, ...]:
    """Suggestions in all languages of the held-out prompts beside the run; none if there is no such file."""
    try:
        return suggest(prompt.prompt[-1]["content"] for prompt in read_prompts((run.resolve().parent / PROMPTS,)))
    except InputError:
        return ()


def suggest(turns: Iterable[str]) -> tuple[str, ...]:
    """Up to `COUNT` of the turns in each language, the most ordinary first: by how often their rarest word occurs."""
    turns = [turn.strip() for turn in turns]
    spread = Counter(word for turn in turns for word in set(words(turn)))
    standing = {turn: min(spread[word] for word in words(turn)) for turn in turns if stands_alone(turn)}
    ordered = sorted(standing, key=lambda turn: (-standing[turn], turn))
    return tuple(turn for lang in SIZES for turn in _unlike([t for t in ordered if language_of(t) == lang]))


def stands_alone(turn: str) -> bool:
    """Whether the turn is one question to the reader that needs nothing said before."""
    if not _QUESTION.fullmatch(turn) or not ADDRESSED.search(turn.lower()):
        return False
    found = words(turn)
    least, most = SIZES[language_of(turn)]
    opens = bool(_CHINESE.search(turn)) or found[0] in OPENING
    return opens and least <= len(found) <= most and not BACK & set(found[1:])


def language_of(text: str) -> str:
    return "zh" if _CHINESE.search(text) else "en"


def for_page(suggestions: Sequence[str], language: str) -> list[str]:
    """The suggestions in the page's language, or if there are none, those in the language that the model speaks."""
    return [text for text in suggestions if language_of(text) == language] or list(suggestions)


def _unlike(ordered: Sequence[str]) -> list[str]:
    """The first `COUNT` that share no content word with any before them."""
    chosen: list[str] = []
    for text in ordered:
        mine = set(content_words(text)) - OPENING
        if len(chosen) < COUNT and not any(mine & set(content_words(other)) for other in chosen):
            chosen.append(text)
    return chosen
