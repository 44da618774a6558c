"""Degenerate responses: what a policy writes when it exploits a reward model instead of responding.

    conversation that ends with a response -> {name: text}, to probe a reward model with   (`degenerate_responses`)
    comparison -> one such text, to train against                                          (`degenerate_response`)

The kinds are: nothing at all, one word, a stock phrase, the first words of a good response over and over, and the
prompt's own words.
"""

from collections.abc import Mapping

from tutelage.data.messages import Messages
from tutelage.data.records import Comparison
from tutelage.data.splits import unit_hash

WORDS = {
    "en": ("Yes.", "No.", "Sure.", "Thanks!", "Hello.", "Well..."),
    "zh": ("是。", "不。", "当然。", "谢谢！", "你好。"),
}
STOCK = ("I'm sorry.", "OK.", "好的。")  # the phrases of the probe
PHRASES = {
    "en": (*STOCK[:2], "I don't know.", "I can't help with that.", "You're welcome!", "That's a good question."),
    "zh": (*STOCK[2:], "对不起。", "我不知道。", "这个我帮不了你。", "不客气！", "好问题。"),
}
REPEATED_WORDS, REPEATED_CHARACTERS = 3, 6  # how much of a response is repeated; characters where it has no spaces
REPETITIONS = 4  # at least, however short the response


def degenerate_responses(conversation: Messages) -> dict[str, str]:
    """The probe's responses to this conversation's prompt, by name."""
    fixed = {"empty": "", "one word": choose(WORDS, conversation, "word")}
    derived = {"repeated": repeated(conversation), "copied": copied(conversation)}
    return fixed | {phrase: phrase for phrase in STOCK} | derived


def degenerate_response(comparison: Comparison, salt: str) -> str:
    """One degenerate response, of a kind that the prompt and the salt decide; the same for all annotators."""
    conversation = ending_with(comparison, max(comparison.responses, key=len))
    kinds = (
        "",
        choose(WORDS, conversation, salt),
        choose(PHRASES, conversation, salt),
        repeated(conversation),
        copied(conversation),
    )
    return kinds[int(unit_hash("degenerate", salt, question(conversation)) * len(kinds))]


def best_response(comparison: Comparison) -> str:
    """The best-ranked response, the first of several."""
    return comparison.responses[comparison.ranks.index(min(comparison.ranks))]


def ending_with(comparison: Comparison, response: str) -> Messages:
    """The comparison's prompt with this response."""
    return [*comparison.prompt, {"role": "assistant", "content": response}]


def question(conversation: Messages) -> str:
    """The last turn before the response."""
    return conversation[-2]["content"] if len(conversation) > 1 else ""


def choose(texts: Mapping[str, tuple[str, ...]], conversation: Messages, salt: str) -> str:
    """One of the texts in the language of the response; the prompt and the salt decide which."""
    chinese = any("\u4e00" <= character <= "\u9fff" for character in conversation[-1]["content"])
    known = texts["zh" if chinese else "en"]
    return known[int(unit_hash("which", salt, question(conversation)) * len(known))]


def repeated(conversation: Messages) -> str:
    """The first words of the response, repeated to its own length."""
    response = conversation[-1]["content"].strip()
    words = response.split()
    spaced = len(words) > 1
    piece = " ".join(words[:REPEATED_WORDS]) + " " if spaced else response[:REPEATED_CHARACTERS]
    return (piece * max(REPETITIONS, len(response) // max(1, len(piece)))).strip()


def copied(conversation: Messages) -> str:
    """The prompt's last turn, cut to the length of the response or to 40 characters."""
    return question(conversation).strip()[: max(40, len(conversation[-1]["content"]))]
