"""What a reward model gives degenerate responses, beside good ones to the same prompts.

    reward model, conversations that end with a good response -> {name: {"score", "wins"}}

A policy finds whatever a reward model prefers. If empty, one-word, stock, repeated or copied responses beat good ones,
training against it ends in silence or in stock phrases.
"""

from collections.abc import Mapping, Sequence

import torch

from tutelage.data.degenerate import degenerate_responses
from tutelage.data.messages import Messages
from tutelage.data.rankings import encode_response
from tutelage.evals.preference import preference
from tutelage.model.heads import ScalarGPT
from tutelage.model.shared_prefix import score_texts
from tutelage.runs.ending import Figure
from tutelage.text.tokenizer import Tokenizer

Probe = Mapping[str, Mapping[str, float]]
GOOD = "good"  # the probe's name of the good responses themselves
PROMPTS = 64  # at most; a share of them then has a standard error of at most .06
AGAIN = "train it again with --reject-degenerate"
MORE = "it was trained against them already, so give more rankings or --epochs"


@torch.no_grad()
def probe(model: ScalarGPT, tokenizer: Tokenizer, conversations: Sequence[Messages]) -> Probe:
    """Mean score of each degenerate response, and the share of prompts on which it beats the good one; a tie is 1/2.

    At most PROMPTS of the conversations are used. A response that does not fit the context is left out.
    """
    named: list[dict[str, list[int]]] = []
    for conversation in conversations[:PROMPTS]:
        texts = {GOOD: conversation[-1]["content"]} | degenerate_responses(conversation)
        encoded = {name: encode_response(conversation[:-1], text, tokenizer) for name, text in texts.items()}
        named.append({name: ids for name, ids in encoded.items() if len(ids) <= model.trunk.config.context})
    scored = score_texts(model, [list(texts.values()) for texts in named], tokenizer.pad_id)
    rows = [dict(zip(texts, scores.tolist(), strict=True)) for texts, scores in zip(named, scored, strict=True)]
    return {name: summary(name, rows) for name in {name: None for row in rows for name in row}}


def summary(name: str, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The figures of one response over the prompts that have it and the good one."""
    found = [(row[name], row[GOOD]) for row in rows if name in row and GOOD in row]
    score = sum(ours for ours, _ in found) / max(1, len(found))
    wins = sum(preference(ours, theirs) for ours, theirs in found) / max(1, len(found))
    return {"score": score} if name == GOOD else {"score": score, "wins": wins}


def winners(found: Probe) -> list[str]:
    """The degenerate responses that beat the good ones on more than half of the prompts."""
    return [name for name, figures in found.items() if figures.get("wins", 0.0) > 0.5]


def probe_table(found: Probe) -> list[str]:
    """One line per response, the good ones first: mean score, and the share of prompts on which it beats them."""
    width = max(map(len, found))
    lines = [f"{'response':{width}}   score   preferred to good ones"]
    for name, figures in found.items():
        share = f"{figures['wins']:8.0%}" if "wins" in figures else ""
        lines.append(f"{name:{width}}  {figures['score']:6.2f}{share}".rstrip())
    return lines


def probe_figure(found: Probe) -> Figure:
    """The line at the end of a reward model's training: the highest share, and all of them."""
    shares = {name: figures["wins"] for name, figures in found.items() if "wins" in figures}
    listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    most = max(shares.values(), default=None)
    return Figure("degenerate responses preferred to good ones", most, note=listed, format=".0%")


def probe_warnings(found: Probe, rejecting: bool) -> list[str]:
    """One warning if any degenerate response wins: which, by what score, and what helps.

    rejecting: whether the model was trained with --reject-degenerate.
    """
    if not (won := winners(found)):
        return []
    listed = ", ".join(f"{name} on {found[name]['wins']:.0%} (score {found[name]['score']:.2f})" for name in won)
    advice = f"a policy will write them; {MORE if rejecting else AGAIN}, and give ppo, rloo or grpo --min-answer"
    return [f"degenerate responses beat good ones ({found[GOOD]['score']:.2f}): {listed} of the prompts; {advice}"]
