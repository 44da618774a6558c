"""The checks of a reinforcement-learning run: what has been measured -> what is wrong with it, or None.

Each reads the curves as a practitioner does: the numbers, the likely cause, the next move. Thresholds are where healthy
and broken runs part. Where no paper is named they are ours, held against our own runs: 12 healthy ones of 23 to 36
iterations, in which the KL rose to 8 nats per response, stay well clear of each.
"""

import math
from collections.abc import Callable
from typing import Literal

from tutelage.rlhf.history import PATIENCE, WINDOW, History, Line, mean, significant

Verdict = Literal["warn", "stop", "refuse"]

SETTLING = WINDOW  # iterations until the value network explains something; ours took 1 to 5
# Nats a token that rounding explains, by precision. The reference runs the policy's own forward: 0 on a CPU. The
# sampler does not (cache, merged adapters): in fp32 we measured 1e-5, in bf16 8e-4 with 1 M parameters, .054 at 135 M
START_GAP = {"torch.float32": 1e-3, "torch.bfloat16": 2e-2}
SAMPLER_GAP = {"torch.float32": 1e-3, "torch.bfloat16": 0.15}
KL_BELOW_0 = -0.05  # nats; near 0 the noise of k1 is .01 at a batch of 64 and .04 at 8
KL_JUMP = 5.0  # nats in one iteration; ours rose by 2.1 at most
KL_FAR = 50.0  # nats; healthy runs end below 20 (Stiennon et al. 2020), at 50 and more the judges prefer SFT's answers
ENDS_RARE = 0.5  # share of ended turns; ours went down to .61 and came back
ENDS_LOST = 0.25  # of the share in the first rollout
LENGTH_FULL = 0.95  # of the longest response
LENGTH_GONE = 1.5  # tokens: most responses are nothing but their end
ENTROPY_LOW, ENTROPY_GONE, ENTROPY_HIGH = 0.25, 0.05, 1.5  # of the start's; ours fell to .71
CLIPPED = 0.3  # share of tokens; below .1 is healthy, .02 usual (Huang et al. 2023, "N implementation details")
STILL = 1e-5  # nats a token (k3); one step at a tenth of the demo's rate makes 8e-5
TEXT_LOST = 0.2  # nats a token; the noise of PATIENCE iterations is .05, ours rose by .04 at most
SHARE_OFF = 10.0  # times more or less than the pretraining gradient's share is meant to be; ours were .3 to 1.1
UPDATE_FAR = 0.01  # nats a token (k3) from the policy that sampled; 1e-4 to 1e-2 is healthy, .002 usual (Huang et al.)
ALIKE = 0.1  # of the first rollout's spread of scores; ours went down to .33
SURE = 3.0  # standard errors
SCORERS = {"score": "reward model", "judge_score": "judge"}  # whose fault it is where these are not finite


def not_finite(seen: History) -> str | None:
    bad = [key for key, value in seen.recent[-1].items() if not math.isfinite(value)]
    if not bad:
        return None
    scorer = next((SCORERS[key] for key in bad if key in SCORERS), None)
    cause = f"the {scorer} overflows, or a step" if scorer else "a step"
    move = f", and score one response with the {scorer}" if scorer else ""
    return (
        f"{', '.join(bad)} {'is' if len(bad) == 1 else 'are'} nan or infinite; likely {cause} destroyed the policy; "
        f"try --dtype fp32 or a lower {seen.rate}{move}"
    )


def kl_at_start(seen: History) -> str | None:
    if seen.iteration != 0:
        return None
    # k3 is half the squared log-ratio where that is small, so this is about its size; KL over length is its mean.
    limit = START_GAP[seen.limits.dtype]
    off = max(math.sqrt(2 * max(seen.now("kl_k3"), 0.0)), abs(seen.now("kl")) / max(seen.now("length"), 1.0))
    if not off > limit:
        return None
    return (
        f"policy and reference differ by {off:.2g} nats a token before anything was learnt, where "
        f"{limit:g} is rounding; likely another temperature, dropout, or padding in one of the two; "
        "run tutelage doctor --rl, and with --dtype fp32 to tell"
    )


def sampler_gap(seen: History) -> str | None:
    limit = SAMPLER_GAP[seen.limits.dtype]
    if not seen.now("sampler_gap") > limit:
        return None
    return (
        f"the sampler's log-probabilities are {seen.now('sampler_gap'):.2g} nats a token off the trainer's, where "
        f"{limit:g} is rounding; likely sampling and scoring have different temperatures, or top-k, "
        "top-p or old weights are at work in the sampler; what is learnt is not what is sampled: make them the same"
    )


def kl_negative(seen: History) -> str | None:
    kl = seen.last("kl")
    if not (seen.lasting(lambda x: x < 0, "kl") and mean(kl) < KL_BELOW_0):
        return None
    return (
        f"KL was {mean(kl):.2g} nats over {PATIENCE} iterations, and a KL cannot be negative; likely the sampler cuts "
        "off rare tokens (top-k, top-p), or padding after the end of turn is counted; sample from the whole "
        "distribution, look at the mask"
    )


def kl_exploding(seen: History) -> str | None:
    before, now = seen.last("kl", 2)[0], seen.now("kl")
    if not now - before > KL_JUMP:
        return None
    return (
        f"KL went from {before:.1f} to {now:.1f} nats per response in one iteration; likely its steps were too "
        f"large, or too many on one rollout; lower {seen.rate}"
    )


def kl_far(seen: History) -> str | None:
    if not seen.now("kl") > KL_FAR:
        return None
    return (
        f"KL is {seen.now('kl'):.1f} nats per response, healthy runs end below 20: judges come to prefer SFT's "
        "answers, whatever the score says; likely drift is too cheap; raise --kl-coef, set --kl-budget"
    )


def objective_falling(seen: History) -> str | None:
    then, now = (mean(seen.objectives(lines)) for lines in (seen.opening, seen.recent[-PATIENCE:]))
    if not (now < then - seen.first("score_std") and mean(seen.last("kl")) > 1):
        return None
    return (
        f"what {seen.limits.algorithm} maximises, score - beta KL, fell from {then:.2f} to {now:.2f} while KL rose to "
        f"{mean(seen.last('kl')):.1f} nats; likely drift is paid for instead of charged (the sign of the "
        f"KL), or the steps are far too large; run tutelage doctor --rl, lower {seen.rate}"
    )


def ends_rare(seen: History) -> str | None:
    if not seen.lasting(lambda x: x < ENDS_RARE, "end_of_turn_rate"):
        return None
    return (
        f"{seen.now('end_of_turn_rate'):.0%} of the responses end by themselves, {seen.first('end_of_turn_rate'):.0%} "
        "did at the start; likely a missing end costs too little, the end of turn is outside the mask, or --max-tokens "
        "is short; lower --missing-end, raise --max-tokens"
    )


def ends_lost(seen: History) -> str | None:
    if not seen.throughout(lost_ends):
        return None
    return (
        f"{seen.now('end_of_turn_rate'):.0%} of the responses end by themselves over {PATIENCE} iterations, "
        f"{seen.first('end_of_turn_rate'):.0%} did at the start; likely the end of turn is outside the mask, or the "
        "reward model likes length more than an end; lower --missing-end, train the reward model on longer rejects"
    )


def length_full(seen: History) -> str | None:
    limit = LENGTH_FULL * seen.limits.longest
    if not seen.lasting(lambda x: x >= limit, "length"):
        return None
    return (
        f"responses have {seen.now('length'):.1f} tokens of at most {seen.limits.longest}, {seen.first('length'):.1f} "
        "at the start; likely the end of turn is outside the mask or its lack too cheap; lower --missing-end"
    )


def length_gone(seen: History) -> str | None:
    if not (seen.lasting(lambda x: x <= LENGTH_GONE, "length") and seen.first("length") > 2 * LENGTH_GONE):
        return None
    return (
        f"responses have {seen.now('length'):.1f} tokens, {seen.first('length'):.1f} at the start; likely every token "
        "is charged (rewards whitened, a score on the wrong token) or the reward model likes silence; run tutelage "
        "doctor --rl, score an empty response"
    )


def entropy_low(seen: History) -> str | None:
    if not seen.lasting(lambda x: x < ENTROPY_LOW * seen.first("entropy"), "entropy"):
        return None
    return (
        f"entropy fell from {seen.first('entropy'):.2f} to {seen.now('entropy'):.2f} nats a token; likely drift is too "
        f"cheap and the policy says the same thing to everyone; read its answers, raise --kl-coef or lower {seen.rate}"
    )


def entropy_gone(seen: History) -> str | None:
    if not seen.throughout(lost_entropy):
        return None
    return (
        f"entropy is {seen.now('entropy'):.3f} nats a token, {seen.first('entropy'):.2f} at the start: there is one "
        f"response left, and nothing to learn from; likely drift is too cheap; raise --kl-coef or lower {seen.rate}"
    )


def entropy_high(seen: History) -> str | None:
    if not seen.lasting(lambda x: x > ENTROPY_HIGH * seen.first("entropy"), "entropy"):
        return None
    return (
        f"entropy rose from {seen.first('entropy'):.2f} to {seen.now('entropy'):.2f} nats a token: the policy forgets "
        f"how to speak; likely steps too large, or the sign of the KL; lower {seen.rate}, run tutelage doctor --rl"
    )


def value_blind(seen: History) -> str | None:
    settled = seen.iteration >= SETTLING
    if not (settled and seen.lasting(lambda x: x < 0, "explained_variance")):
        return None
    return (
        f"explained variance is {seen.now('explained_variance'):.2f} after {seen.iteration} iterations: a constant "
        "would guess the returns better than the value network; likely its rate is wrong, it did not start as the "
        "reward model, or its mask is shifted; try another --value-lr"
    )


def over_optimised(seen: History) -> str | None:
    judge = seen.last("judge_score", WINDOW)
    if not (significant(seen.last("score", WINDOW)) > SURE and significant(judge) < -SURE):
        return None
    return (
        f"over {WINDOW} iterations the score rises, the held-out judge's falls from {mean(judge[:PATIENCE]):.2f} to "
        f"{mean(judge[PATIENCE:]):.2f}: over-optimisation (Gao et al. 2022); likely the policy has found what only "
        f"this reward model likes; set --kl-budget to about {mean(seen.last('kl', WINDOW)[:PATIENCE]):.1f}"
    )


def judge_lost(seen: History) -> str | None:
    if seen.iteration < WINDOW - 1:  # until then the first and the last iterations are the same ones
        return None
    score, judge = (
        [line.get(key, math.nan) for line in seen.opening] + seen.last(key) for key in ("score", "judge_score")
    )
    if not (significant(score) > SURE and significant(judge) < -SURE):
        return None
    return (
        f"the score rose, and the held-out judge gives {mean(judge[PATIENCE:]):.2f}, {mean(judge[:PATIENCE]):.2f} at "
        "the start: it likes SFT's answers better; likely the policy lives on what only this reward model likes; rank "
        "this policy's answers and train the reward model on them too, or raise --kl-coef"
    )


def text_lost(seen: History) -> str | None:
    then, now = mean([line["ptx_loss"] for line in seen.opening if "ptx_loss" in line]), mean(seen.last("ptx_loss"))
    if not now > then + TEXT_LOST:
        return None
    return (
        f"the loss on pretraining text rose from {then:.2f} to {now:.2f} nats a token: what was learnt before is being "
        f"lost; likely the mix pulls too little; raise --ptx-share or --ptx-windows, or lower {seen.rate}"
    )


def share_off(seen: History) -> str | None:
    low, high = seen.limits.share / SHARE_OFF, seen.limits.share * SHARE_OFF
    if not any(seen.lasting(off, "ptx_gradient_ratio") for off in (lambda x: x < low, lambda x: x > high)):
        return None
    return (
        f"the pretraining gradient is {seen.now('ptx_gradient_ratio'):.2g} times {seen.limits.algorithm}'s, from "
        f"{low:g} to {high:g} is meant; likely the coefficient was measured in iterations that were not typical; raise "
        "--ptx-calibration"
    )


def clipped_much(seen: History) -> str | None:
    if not seen.lasting(lambda x: x > CLIPPED, "clip_fraction"):
        return None
    return (
        f"the clip holds back {seen.now('clip_fraction'):.0%} of the tokens, below {CLIPPED:.0%} is usual; likely too "
        "many or too large steps on one rollout; lower --lr or --epochs"
    )


def update_far(seen: History) -> str | None:
    if not seen.lasting(lambda x: x > UPDATE_FAR, "approx_kl"):
        return None
    return (
        f"while it learns from a rollout the policy is {seen.now('approx_kl'):.2g} nats a token from the one that "
        f"sampled it, up to {UPDATE_FAR:g} is healthy; likely too many or too large steps on one rollout; lower --lr "
        "or --epochs"
    )


def stands_still(seen: History) -> str | None:
    # Not the clip alone: with one step a rollout the ratio is 1 and nothing is ever clipped; and only PPO has one.
    clipped = any(line.get("clip_fraction", 0.0) > 0 for line in seen.recent)
    if clipped or not seen.lasting(lambda x: x < STILL, "kl_k3", SETTLING):
        return None
    return (
        f"after {seen.iteration} iterations the policy is {seen.now('kl_k3'):.1g} nats a token from where it began; "
        f"likely the steps are too small, or no gradient reaches the policy; raise {seen.rate}"
    )


def search_failing(seen: History) -> str | None:
    if not seen.lasting(lambda x: x == 0, "step_share"):
        return None
    return (
        f"in {PATIENCE} iterations the line search found no step that gains within its limit; likely so few responses "
        "that the gradient is noise, or advantages that are all alike; raise --batch, look at the scores"
    )


def scores_alike(seen: History) -> str | None:
    if not seen.lasting(lambda x: x <= ALIKE * seen.first("score_std"), "score_std"):
        return None
    return (
        f"scores spread by {seen.now('score_std'):.2g}, by {seen.first('score_std'):.2g} at the start: nothing "
        "is preferred; likely every prompt gets one and the same response, or the reward model cannot tell them apart; "
        "read the answers, look at the reward model's held-out accuracy"
    )


def lost_ends(first: Line, now: Line) -> bool:
    return now["end_of_turn_rate"] < ENDS_LOST * first["end_of_turn_rate"]


def lost_entropy(first: Line, now: Line) -> bool:
    return now["entropy"] < ENTROPY_GONE * first["entropy"]


UNSOUND = (lost_ends, lost_entropy)
CHECKS: tuple[tuple[str, Verdict, Callable[[History], str | None]], ...] = (
    ("not finite", "refuse", not_finite),
    ("KL not 0 at the start", "refuse", kl_at_start),
    ("sampler gap", "warn", sampler_gap),
    ("KL negative", "warn", kl_negative),
    ("KL exploding", "warn", kl_exploding),
    ("KL far from SFT", "warn", kl_far),
    ("objective falling", "warn", objective_falling),
    ("end of turn rare", "warn", ends_rare),
    ("end of turn lost", "stop", ends_lost),
    ("length at its limit", "warn", length_full),
    ("length collapsed", "warn", length_gone),
    ("entropy low", "warn", entropy_low),
    ("entropy collapsed", "stop", entropy_gone),
    ("entropy rising", "warn", entropy_high),
    ("value network blind", "warn", value_blind),
    ("over-optimisation", "warn", over_optimised),
    ("judge below its start", "stop", judge_lost),
    ("pretraining loss rising", "warn", text_lost),
    ("pretraining share out of range", "warn", share_off),
    ("clip fraction high", "warn", clipped_much),
    ("update too far", "warn", update_far),
    ("policy stands still", "warn", stands_still),
    ("line search failing", "warn", search_failing),
    ("scores alike", "warn", scores_alike),
)
