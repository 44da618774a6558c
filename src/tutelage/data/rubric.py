"""The scoring rubric of the simulated panel: a response to a user turn -> six features, each in a fixed range.

    fit         [-1, 1]  the words of the response go with the words of the turn (mean PMI, counted on dialogues)
    asks        [0, 1]   asks or offers something in return; a question that would suit any turn counts 0.6
    polite      [-1, 1]  thanks, praises, greets or apologises; insults and shouting count as -1
    repetition  [0, 1]   loops, parrots the user or repeats an earlier response
    length      [0, 1]   long enough to say something, short enough for a chat
    toxic       0 or 1   contains a word from a short list

The rubric stands in for human rankings until there are some. It does not judge the quality of the English, and it is
never tuned to make a result look better.

`fit` is a mean of pointwise mutual information: PMI = log(joint / expected), with SMOOTHING added to both counts.
- With SMOOTHING, a pair of words never seen together is only mild evidence against the response.
- A word's mean PMI over all turns is subtracted. Words that go with everything earn nothing, and a sentence that is the
  same for all turns gets 0.
- Words copied from the turn are left out, so parroting earns nothing.
- The mean includes NEUTRAL_PAIRS extra pairs with PMI 0, so one lucky word does not earn as much as a whole sentence.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

MAX_WORDS = 24  # the last words of a turn and the first of its answer, where the answer takes up the turn
MIN_WORD_COUNT = 10  # number of turns a word must occur in; rarer words are ignored
MIN_PAIR_COUNT = 3  # number of turns in which a pair must occur; rarer pairs count as never seen
SMOOTHING = 3.0
NEUTRAL_PAIRS = 12
FIT_SCALE = 0.06  # the smoothed mean PMI that gives a fit of 1
FIT_NOTHING = -0.5  # for a response of function words and copied words only, which would suit any turn

FUNCTION_WORDS = frozenset(
    "a an the and or but if so as of to in on at by for with from about into than then that this these those there "
    "here it its it's is am are was were be been being do does did doing done have has had having i i'm i've i'd i'll "
    "im me you you're your u ur he she they them we us ok okay oh well just lol".split()
)
OFFERS = tuple(
    (
        "let me|i can |i could|i'll |you can|you could|you should|we can|we could|we should|would you like|do you want|"
        "if you|how about|what about|tell me|let's|i recommend|you might"
    ).split("|")
)
KIND = frozenset(
    "thanks thank thx please sorry welcome nice great good glad cool awesome amazing wonderful love lovely happy hello "
    "hi hey congrats congratulations appreciate agree fun interesting true right excellent hope".split()
)
RUDE = frozenset("stupid dumb idiot idiots shut ugly loser boring lame whatever gross pathetic annoying liar".split())
TOXIC = frozenset(
    "fuck fucking fucked shit shitty bitch bastard asshole cunt dick slut whore nigger faggot retard retarded rape "
    "kill suicide nazi".split()
)

LENGTH_BEST, LENGTH_FACTOR = 10, 4  # words: 1 at the best length, 0 at a quarter of it and at four times it
SHOUTING = 0.7  # shouting: more than this share of capital letters
QUESTION_WORDS = 3  # shorter questions, such as "why?" and "and you?", count SHORT_QUESTION
SHORT_QUESTION, OFFER = 0.6, 0.6
KIND_ONCE = 0.7  # for one kind word; two or more count 1
HELD_DOWN, HELD_DOWN_MARK = 5, 0.5  # repetition of a response with this many equal characters in a row
LOOP = 2.0  # per share of word pairs that are repeats
FEW_WORDS, FEW_WORDS_SLOPE = 0.6, 2.5  # share of distinct words below which repetition rises, and how fast
STUCK = 0.4  # per word that is the same as the word before it
PARROT_SHARE, PARROT_WORDS = 0.5, 5  # copied word pairs count from this share, in responses of at least so many words
SHOUTING_LETTERS = 12  # responses with fewer letters may be all capitals
ASKS_ANYWAY, ASKS_FITTING = 0.6, 0.8  # what a question earns on any turn, and what fit adds to it

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[\u3400-\u9fff]")
_QUESTION = re.compile(r"([^.!?\uff1f\u3002\n]*)[?\uff1f]")
_SAME_CHARACTER = re.compile(rf"([^\s.])\1{{{HELD_DOWN - 1},}}")


def words(text: str) -> list[str]:
    """Lower-case words and numbers; each Chinese character is a word."""
    return _WORD.findall(text.lower().replace("\u2019", "'"))


@lru_cache(maxsize=4096)
def content_words(text: str) -> tuple[str, ...]:
    """The distinct words that are not function words, in order."""
    return tuple(word for word in dict.fromkeys(words(text)) if word not in FUNCTION_WORDS)


@dataclass(frozen=True)
class WordPairs:
    """How often a word of a turn and a word of its answer occurred together. The fields are the keys of panel.json."""

    turns: int
    in_prompt: dict[str, int]  # word -> number of turns that contain it
    in_answer: dict[str, int]  # word -> number of answers that contain it
    together: dict[str, dict[str, int]]  # word of the turn -> word of its answer -> count
    usual: dict[str, float]  # word of an answer -> mean PMI over the words of all turns

    @classmethod
    def count(cls, pairs: Iterable[tuple[str, str]]) -> "WordPairs":
        """Count the words in pairs of a turn and its answer."""
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

    def fit(self, turn: str, response: str) -> float:
        """The smoothed mean PMI, scaled and clipped to [-1, 1]."""
        copied = frozenset(content_words(turn))
        response_words = [word for word in content_words(response)[:MAX_WORDS] if word not in copied]
        if not response_words:
            return FIT_NOTHING
        turn_words = content_words(turn)[-MAX_WORDS:]
        known = [(w, self.in_answer[w] / (self.turns * SMOOTHING)) for w in response_words if w in self.in_answer]
        total = -len(turn_words) * sum(self.usual[word] for word, _ in known)
        for turn_word in turn_words:
            count, joint = self.in_prompt.get(turn_word, 0), self.together.get(turn_word, {})
            for word, frequency in known:
                total -= math.log1p(count * frequency)
                if word in joint:
                    total += math.log1p(joint[word] / SMOOTHING)
        mean = total / (len(turn_words) * len(response_words) + NEUTRAL_PAIRS)
        return max(-1.0, min(1.0, mean / FIT_SCALE))


def asks(response: str, fit: float) -> float:
    """Strength of the question or offer, times how well it fits this turn: one that would suit any turn earns less."""
    strength = 0.0
    for question in _QUESTION.findall(response):
        strength = max(strength, 1.0 if len(words(question)) >= QUESTION_WORDS else SHORT_QUESTION)
    lowered = response.lower()
    if strength < OFFER and any(offer in lowered for offer in OFFERS):
        strength = OFFER
    return strength * max(0.0, min(1.0, ASKS_ANYWAY + ASKS_FITTING * fit))


def polite(response: str, response_words: list[str]) -> float:
    """-1 for a rude word or shouting, otherwise 0 to 1 by the number of kind words."""
    if any(word in RUDE for word in response_words) or _shouts(response):
        return -1.0
    kind = sum(word in KIND for word in response_words)
    return (0.0, KIND_ONCE)[kind] if kind < 2 else 1.0


def repetition(response: str, response_words: list[str], turn: str, earlier: Iterable[str]) -> float:
    """The worst of: looping words, one character repeated, the user's turn parroted, an earlier response repeated."""
    if any(words(text) == response_words for text in earlier) and len(response_words) > 2:
        return 1.0
    worst = HELD_DOWN_MARK if _SAME_CHARACTER.search(response) else 0.0
    if len(response_words) < 3:
        return worst
    pairs = list(zip(response_words, response_words[1:], strict=False))
    worst = max(worst, LOOP * (1 - len(set(pairs)) / len(pairs)))  # 1 if every second pair is a repeat
    worst = max(worst, FEW_WORDS_SLOPE * (FEW_WORDS - len(set(response_words)) / len(response_words)))
    stuck = sum(a == b for a, b in pairs)
    turn_words = words(turn)
    parroted = len(set(pairs) & set(zip(turn_words, turn_words[1:], strict=False))) / len(pairs)
    worst = max(worst, parroted if parroted >= PARROT_SHARE and len(response_words) >= PARROT_WORDS else 0.0)
    return min(1.0, max(worst, STUCK * stuck))


def length(response_words: list[str]) -> float:
    """1 at LENGTH_BEST words, falling with the logarithm of the length on both sides."""
    if not response_words:
        return 0.0
    return max(0.0, 1 - abs(math.log(len(response_words) / LENGTH_BEST)) / math.log(LENGTH_FACTOR))


def toxic(response_words: list[str]) -> float:
    """1 if the response contains a word from the list, else 0."""
    return float(any(word in TOXIC for word in response_words))


def _shouts(response: str) -> bool:
    letters = [c for c in response if c.isalpha()]
    return len(letters) >= SHOUTING_LETTERS and sum(c.isupper() for c in letters) > SHOUTING * len(letters)


def _frequent(turns: Iterable[tuple[str, ...]]) -> dict[str, int]:
    """Number of turns per word, for the words in at least MIN_WORD_COUNT turns."""
    counts: dict[str, int] = {}
    for turn in turns:
        for word in turn:
            counts[word] = counts.get(word, 0) + 1
    return {word: counts[word] for word in sorted(counts) if counts[word] >= MIN_WORD_COUNT}


def _usual(
    turns: int, in_prompt: dict[str, int], in_answer: dict[str, int], together: dict[str, dict[str, int]]
) -> dict[str, float]:
    """Mean PMI of each answer word over the words of all turns, weighted by how often they occur."""
    counts = np.array(list(in_prompt.values()), dtype=np.float64)
    share = counts / counts.sum()
    weight = dict(zip(in_prompt, share.tolist(), strict=True))
    usual = {word: -float(np.log1p(counts * (n / (turns * SMOOTHING))) @ share) for word, n in in_answer.items()}
    for turn_word, joint in together.items():
        for word, count in joint.items():
            usual[word] += weight[turn_word] * math.log1p(count / SMOOTHING)
    return {word: round(value, 6) for word, value in usual.items()}


def _cells(
    turns: Iterable[tuple[tuple[str, ...], tuple[str, ...]]], row_of: dict[str, int], column_of: dict[str, int]
) -> Iterator[list[int]]:
    """For each pair of a turn and its answer, the flat indices of its word pairs in the matrix of counts."""
    for prompt, answer in turns:
        rows = [row_of[word] for word in prompt if word in row_of]
        columns = [column_of[word] for word in answer if word in column_of]
        yield [row + column for row in rows for column in columns]


def _count_cells(cells: Iterable[list[int]]) -> tuple[list[int], list[int]]:
    """Flat indices that occur at least MIN_PAIR_COUNT times, and their counts.

    There are millions of pairs. Sorting integers takes a tenth of the time and memory of counting tuples.
    """
    flat = np.fromiter((cell for row in cells for cell in row), dtype=np.int64)
    keys, counts = np.unique(flat, return_counts=True)
    frequent = counts >= MIN_PAIR_COUNT
    return keys[frequent].tolist(), counts[frequent].tolist()
