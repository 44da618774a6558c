"""Diagnostic checks of a reinforcement-learning run: its metrics -> what is wrong, or None.

Each check reads the curves as a practitioner does. It names the numbers, a likely cause and the next move. Thresholds
lie between healthy and broken runs. Where no paper is named they are ours: 12 healthy runs of 23 to 36 iterations,
whose KL rose to 8 nats per response, stay well clear of each.
Here are the table of all checks and those of KL, objective and judge. The checks of the responses are in
`response_checks.py`, those of the optimisation in `update_checks.py`.
"""

import math
from collections.abc import Callable
from typing import Literal

from tutelage.rlhf import response_checks as responses
from tutelage.rlhf import update_checks as updates
from tutelage.rlhf.history import PATIENCE, WINDOW, History, mean, significant

Verdict = Literal["warn", "stop", "refuse"]

# Nats per token that rounding explains, by precision. The reference runs the policy's own forward: 0 on a CPU. The
# sampler does not (KV cache, merged adapters): we measured 1e-5 in fp32; in bf16 8e-4 at 1M, .054 at 135M parameters.
START_GAP = {"torch.float32": 1e-3, "torch.bfloat16": 2e-2}
SAMPLER_GAP = {"torch.float32": 1e-3, "torch.bfloat16": 0.15}
KL_BELOW_0 = -0.05  # nats; near 0 the noise of k1 is .01 at a batch of 64 and .04 at 8
KL_JUMP = 5.0  # nats in one iteration; ours rose by 2.1 at most
# Nats; healthy runs end below 20 (Stiennon et al. 2020), from 50 on the judges prefer the responses of SFT.
KL_FAR = 50.0
SURE = 3.0  # standard errors
SCORERS = {"score": "reward model", "judge_score": "judge"}  # the likely cause where one of these is not finite


def not_finite(history: History) -> str | None:
    bad = [key for key, value in history.recent[-1].items() if not math.isfinite(value)]
    if not bad:
        return None
    scorer = next((SCORERS[key] for key in bad if key in SCORERS), None)
    cause = f"the {scorer} overflows, or a step" if scorer else "a step"
    move = f", and score one response with the {scorer}" if scorer else ""
    return (
        f"{', '.join(bad)} {'is' if len(bad) == 1 else 'are'} nan or infinite; likely {cause} destroyed the policy; "
        f"try --dtype fp32 or a lower {history.step_option}{move}"
    )


def kl_at_start(history: History) -> str | None:
    if history.iteration != 0:
        return None
    # k3 is half the squared log-ratio where that is small, so its root is about the size of the log-ratio.
    limit = START_GAP[history.limits.dtype]
    off = max(math.sqrt(2 * max(history.now("kl_k3"), 0.0)), abs(history.now("kl")) / max(history.now("length"), 1.0))
    if not off > limit:
        return None
    return (
        f"policy and reference differ by {off:.2g} nats per token before training, where rounding explains {limit:g}; "
        "likely they run at another temperature, with dropout, or with other padding; run tutelage doctor --rl, and "
        "compare with --dtype fp32"
    )


def sampler_gap(history: History) -> str | None:
    limit, gap = SAMPLER_GAP[history.limits.dtype], history.now("sampler_gap")
    if not gap > limit:
        return None
    return (
        f"the sampler's log-probabilities differ from the trainer's by {gap:.2g} nats per token, where rounding "
        f"explains {limit:g}; likely they use different temperatures, or the sampler uses top-k, top-p or old weights; "
        "make both the same"
    )


def kl_negative(history: History) -> str | None:
    kl = history.last("kl")
    if not (history.lasting(lambda x: x < 0, "kl") and mean(kl) < KL_BELOW_0):
        return None
    return (
        f"KL was {mean(kl):.2g} nats over {PATIENCE} iterations, but a KL cannot be negative; likely the sampler drops "
        "rare tokens (top-k, top-p), or padding after the end of turn is counted; sample from the whole distribution, "
        "check the mask"
    )


def kl_exploding(history: History) -> str | None:
    before, now = history.last("kl", 2)[0], history.now("kl")
    if not now - before > KL_JUMP:
        return None
    return (
        f"KL rose from {before:.1f} to {now:.1f} nats per response in one iteration; likely its steps were too large, "
        f"or too many on one rollout; lower {history.step_option}"
    )


def kl_far(history: History) -> str | None:
    if not history.now("kl") > KL_FAR:
        return None
    return (
        f"KL is {history.now('kl'):.1f} nats per response; healthy runs end below 20, and from 50 on judges prefer "
        "SFT's responses, whatever the score; likely the KL penalty is too small; raise --kl-coef, set --kl-budget"
    )


def objective_falling(history: History) -> str | None:
    then, now = (mean(history.objectives(lines)) for lines in (history.opening, history.recent[-PATIENCE:]))
    if not (now < then - history.first("score_std") and mean(history.last("kl")) > 1):
        return None
    return (
        f"what {history.limits.algorithm} maximises, score - beta KL, fell from {then:.2f} to {now:.2f} while KL rose "
        f"to {mean(history.last('kl')):.1f} nats; likely the KL penalty has the wrong sign, or the steps are far too "
        f"large; run tutelage doctor --rl, lower {history.step_option}"
    )


def over_optimised(history: History) -> str | None:
    judge = history.last("judge_score", WINDOW)
    if not (significant(history.last("score", WINDOW)) > SURE and significant(judge) < -SURE):
        return None
    return (
        f"over {WINDOW} iterations the score rose, but the held-out judge's score fell from "
        f"{mean(judge[:PATIENCE]):.2f} to {mean(judge[PATIENCE:]):.2f}: over-optimisation (Gao et al. 2022); likely "
        "the policy exploits errors of the reward model; set --kl-budget to about "
        f"{mean(history.last('kl', WINDOW)[:PATIENCE]):.1f}"
    )


def judge_lost(history: History) -> str | None:
    if history.iteration < WINDOW - 1:  # until then the first and the last iterations overlap
        return None
    score, judge = (
        [line.get(key, math.nan) for line in history.opening] + history.last(key) for key in ("score", "judge_score")
    )
    if not (significant(score) > SURE and significant(judge) < -SURE):
        return None
    return (
        f"the score rose, but the held-out judge's score is {mean(judge[PATIENCE:]):.2f}, "
        f"{mean(judge[:PATIENCE]):.2f} at the start: it prefers SFT's responses; likely the policy exploits errors of "
        "the reward model; rank this policy's responses and add them to the reward model's data, or raise --kl-coef"
    )


UNSOUND = (responses.lost_ends, responses.lost_entropy)
CHECKS: tuple[tuple[str, Verdict, Callable[[History], str | None]], ...] = (
    ("not finite", "refuse", not_finite),
    ("KL not 0 at the start", "refuse", kl_at_start),
    ("sampler gap", "warn", sampler_gap),
    ("KL negative", "warn", kl_negative),
    ("KL exploding", "warn", kl_exploding),
    ("KL far from SFT", "warn", kl_far),
    ("objective falling", "warn", objective_falling),
    ("end of turn rare", "warn", responses.ends_rare),
    ("end of turn lost", "stop", responses.ends_lost),
    ("length at its limit", "warn", responses.length_full),
    ("length collapsed", "warn", responses.length_gone),
    ("entropy low", "warn", responses.entropy_low),
    ("entropy collapsed", "stop", responses.entropy_gone),
    ("entropy rising", "warn", responses.entropy_high),
    ("value network blind", "warn", updates.value_blind),
    ("over-optimisation", "warn", over_optimised),
    ("judge below its start", "stop", judge_lost),
    ("pretraining loss rising", "warn", updates.text_lost),
    ("pretraining share out of range", "warn", updates.share_off),
    ("clip fraction high", "warn", updates.clipped_much),
    ("update too far", "warn", updates.update_far),
    ("policy stands still", "warn", updates.stands_still),
    ("line search failing", "warn", updates.search_failing),
    ("scores alike", "warn", responses.scores_alike),
)
