"""The documented rubric behind the simulated panel: an answer to a prompt -> six features, each in a fixed range.

    fit         [-1, 1]  the answer's words go with the words of the turn it answers (mean PMI, counted on dialogues)
    asks        [0, 1]   asks or offers something back; a question that would suit any turn counts 0.6
    polite      [-1, 1]  thanks, praises, greets, excuses itself; insults and shouting count against it
    repetition  [0, 1]   loops, parrots the user, or says again what it said before
    length      [0, 1]   long enough to say something, short enough for a chat
    toxic       0 or 1   a word from a short list

A stand-in until people have ranked (design: it is never moved to make a result look better), and no judge of English.
PMI = log(joint / expected), both plus SMOOTHING, so that a pair never seen counts as mild evidence against; less what
the answer's word scores with the average turn, so that words which go with everything earn nothing and one sentence for
all turns comes out at 0; words copied from the turn are left out, so that parroting earns nothing either; the mean is
taken as if NEUTRAL_PAIRS more pairs had said nothing, so that one lucky word is not worth a whole sentence.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

MAX_WORDS = 24  # the last of a turn, the first of its answer: there the one takes up the other
MIN_WORD_COUNT = 10  # turns a word must stand in; rarer words say nothing
MIN_PAIR_COUNT = 3  # turns in which two words must have met; below, they count as never seen together
SMOOTHING = 3.0
NEUTRAL_PAIRS = 12
FIT_SCALE = 0.06  # a smoothed mean PMI that earns the full mark
FIT_NOTHING = -0.5  # an answer made of function words fits every turn, that is, none

FUNCTION_WORDS = frozenset(
    "a an the and or but if so as of to in on at by for with from about into than then that this these those there "
    "here it its it's is am are was were be been being do does did doing done have has had having i i'm i've i'd i'll "
    "im me you you're your u ur he she they them we us ok okay oh well just lol".split()
)
OFFERS = (
    "let me", "i can ", "i could", "i'll ", "you can", "you could", "you should", "we can", "we could", "we should",
    "would you like", "do you want", "if you", "how about", "what about", "tell me", "let's", "i recommend",
    "you might",
)  # fmt: skip
KIND = frozenset(
    "thanks thank thx please sorry welcome nice great good glad cool awesome amazing wonderful love lovely happy hello "
    "hi hey congrats congratulations appreciate agree fun interesting true right excellent hope".split()
)
RUDE = frozenset("stupid dumb idiot idiots shut ugly loser boring lame whatever gross pathetic annoying liar".split())
TOXIC = frozenset(
    "fuck fucking fucked shit shitty bitch bastard asshole cunt dick slut whore nigger faggot retard retarded rape "
    "kill suicide nazi".split()
)

LENGTH_BEST, LENGTH_FACTOR = 10, 4  # words: full mark at 10; none at a quarter or four times of it
SHOUTING = 0.7  # share of capitals
QUESTION_WORDS = 3  # "why?" and "and you?" are questions of less weight
SHORT_QUESTION, OFFER = 0.6, 0.6
KIND_ONCE = 0.7  # one kind word; two are the full mark
HELD_DOWN, HELD_DOWN_MARK = 5, 0.5  # so many of one character in a row, and what they cost
LOOP, FEW_WORDS, FEW_WORDS_SLOPE = 2.0, 0.6, 2.5  # repeated pairs of words; distinct words below this share of all
STUCK = 0.4  # per word said twice in a row
PARROT_SHARE, PARROT_WORDS = 0.5, 5  # "good, how are you?" is fine; half of a longer answer is not
SHOUTING_LETTERS = 12  # shorter answers may be all capitals
ASKS_ANYWAY, ASKS_FITTING = 0.6, 0.8  # what a question earns on any turn, and for how well it fits this one

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[\u3400-\u9fff]")
_QUESTION = re.compile(r"([^.!?\uff1f\u3002\n]*)[?\uff1f]")
_SAME_CHARACTER = re.compile(rf"([^\s.])\1{{{HELD_DOWN - 1},}}")


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("\u2019", "'"))


@lru_cache(maxsize=4096)
def content_words(text: str) -> tuple[str, ...]:
    """The distinct words that are about something, in order."""
    return tuple(word for word in dict.fromkeys(words(text)) if word not in FUNCTION_WORDS)


@dataclass(frozen=True)
class WordPairs:
    """How often words met across a turn and its answer."""

    turns: int
    in_prompt: dict[str, int]  # word -> turns that hold it
    in_answer: dict[str, int]
    together: dict[str, dict[str, int]]  # word of the turn -> word of its answer -> times
    usual: dict[str, float]  # word of an answer -> its mean PMI over the words of all turns

    @classmethod
    def count(cls, pairs: Iterable[tuple[str, str]]) -> "WordPairs":
        turns = [(content_words(turn)[-MAX_WORDS:], content_words(answer)[:MAX_WORDS]) for turn, answer in pairs]
        in_prompt = _frequent(prompt for prompt, _ in turns)
        in_answer = _frequent(answer for _, answer in turns)
        rows, columns = list(in_prompt), list(in_answer)
        row_of = {word: i * len(columns) for i, word in enumerate(rows)}
        column_of = {word: i for i, word in enumerate(columns)}
        keys, counts = _count_cells(_cells(turns, row_of, column_of))
        together: dict[str, dict[str, int]] = {}
        for key, count in zip(keys, counts, strict=True):
            together.setdefault(rows[key // len(columns)], {})[columns[key % len(columns)]] = count
        usual = _usual(len(turns), in_prompt, in_answer, together)
        return cls(len(turns), in_prompt, in_answer, together, usual)

    def fit(self, turn: str, answer: str) -> float:
        """The smoothed mean PMI, scaled to [-1, 1]."""
        copied = frozenset(content_words(turn))
        answer_words = [word for word in content_words(answer)[:MAX_WORDS] if word not in copied]
        if not answer_words:
            return FIT_NOTHING
        turn_words = content_words(turn)[-MAX_WORDS:]
        known = [(w, self.in_answer[w] / (self.turns * SMOOTHING)) for w in answer_words if w in self.in_answer]
        total = -len(turn_words) * sum(self.usual[word] for word, _ in known)
        for here in turn_words:
            heard, met = self.in_prompt.get(here, 0), self.together.get(here, {})
            for there, often in known:
                total -= math.log1p(heard * often)
                if there in met:
                    total += math.log1p(met[there] / SMOOTHING)
        mean = total / (len(turn_words) * len(answer_words) + NEUTRAL_PAIRS)
        return max(-1.0, min(1.0, mean / FIT_SCALE))


def asks(answer: str, fit: float) -> float:
    """Question or offer, times how much it belongs to this turn: one that would suit any turn earns little."""
    strength = 0.0
    for question in _QUESTION.findall(answer):
        strength = max(strength, 1.0 if len(words(question)) >= QUESTION_WORDS else SHORT_QUESTION)
    lowered = answer.lower()
    if strength < OFFER and any(offer in lowered for offer in OFFERS):
        strength = OFFER
    return strength * max(0.0, min(1.0, ASKS_ANYWAY + ASKS_FITTING * fit))


def polite(answer: str, answer_words: list[str]) -> float:
    if any(word in RUDE for word in answer_words) or _shouts(answer):
        return -1.0
    kind = sum(word in KIND for word in answer_words)
    return (0.0, KIND_ONCE)[kind] if kind < 2 else 1.0


def repetition(answer: str, answer_words: list[str], turn: str, earlier: Iterable[str]) -> float:
    """The worst of: loops of words, one character held down, the user's turn parroted, an earlier answer again."""
    if any(words(said) == answer_words for said in earlier) and len(answer_words) > 2:
        return 1.0
    worst = HELD_DOWN_MARK if _SAME_CHARACTER.search(answer) else 0.0
    if len(answer_words) < 3:
        return worst
    pairs = list(zip(answer_words, answer_words[1:], strict=False))
    worst = max(worst, LOOP * (1 - len(set(pairs)) / len(pairs)))  # every second pair said before: the full mark
    worst = max(worst, FEW_WORDS_SLOPE * (FEW_WORDS - len(set(answer_words)) / len(answer_words)))
    stuck = sum(a == b for a, b in pairs)
    turn_words = words(turn)
    parroted = len(set(pairs) & set(zip(turn_words, turn_words[1:], strict=False))) / len(pairs)
    worst = max(worst, parroted if parroted >= PARROT_SHARE and len(answer_words) >= PARROT_WORDS else 0.0)
    return min(1.0, max(worst, STUCK * stuck))


def length(answer_words: list[str]) -> float:
    if not answer_words:
        return 0.0
    return max(0.0, 1 - abs(math.log(len(answer_words) / LENGTH_BEST)) / math.log(LENGTH_FACTOR))


def toxic(answer_words: list[str]) -> float:
    return float(any(word in TOXIC for word in answer_words))


def _shouts(answer: str) -> bool:
    letters = [c for c in answer if c.isalpha()]
    return len(letters) >= SHOUTING_LETTERS and sum(c.isupper() for c in letters) > SHOUTING * len(letters)


def _frequent(turns: Iterable[tuple[str, ...]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for turn in turns:
        for word in turn:
            counts[word] = counts.get(word, 0) + 1
    return {word: counts[word] for word in sorted(counts) if counts[word] >= MIN_WORD_COUNT}


def _usual(
    turns: int, in_prompt: dict[str, int], in_answer: dict[str, int], together: dict[str, dict[str, int]]
) -> dict[str, float]:
    """Mean PMI of each answer word over the words of all turns; a word often heard weighs as often."""
    heard = np.array(list(in_prompt.values()), dtype=np.float64)
    share = heard / heard.sum()
    weight = dict(zip(in_prompt, share.tolist(), strict=True))
    usual = {word: -float(np.log1p(heard * (count / (turns * SMOOTHING))) @ share) for word, count in in_answer.items()}
    for here, met in together.items():
        for there, joint in met.items():
            usual[there] += weight[here] * math.log1p(joint / SMOOTHING)
    return {word: round(value, 6) for word, value in usual.items()}


def _cells(
    turns: Iterable[tuple[tuple[str, ...], tuple[str, ...]]], row_of: dict[str, int], column_of: dict[str, int]
) -> Iterator[list[int]]:
    for prompt, answer in turns:
        rows = [row_of[word] for word in prompt if word in row_of]
        columns = [column_of[word] for word in answer if word in column_of]
        yield [row + column for row in rows for column in columns]


def _count_cells(cells: Iterable[list[int]]) -> tuple[list[int], list[int]]:
    """Millions of pairs: sorting numbers takes a tenth of the time and memory of counting tuples."""
    flat = np.fromiter((cell for row in cells for cell in row), dtype=np.int64)
    keys, counts = np.unique(flat, return_counts=True)
    often = counts >= MIN_PAIR_COUNT
    return keys[often].tolist(), counts[often].tolist()
