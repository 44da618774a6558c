"""Diagnostic checks of what the policy writes: do responses end, how long and how varied are they, do scores differ?

History -> what is wrong, in words, or None (see `diagnostics.py`)
"""

from tutelage.rlhf.history import PATIENCE, SHORT_PATIENCE, History, Metrics

ENDS_RARE = 0.5  # share of responses that end by themselves; ours fell to .61 and recovered
ENDS_LOST = 0.25  # relative to the first rollout
LENGTH_FULL = 0.95  # of the longest response allowed
LENGTH_GONE = 1 / 3  # relative to the first rollout
NO_TEXT = 1.5  # tokens: most responses are an end of turn and nothing else
ENTROPY_LOW, ENTROPY_GONE, ENTROPY_HIGH = 0.25, 0.05, 1.5  # relative to the start; ours fell to .71
ENTROPY_WITH_LENGTH = 0.5  # relative to the start, where the length has collapsed, too
ALIKE = 0.1  # of the first rollout's standard deviation of scores; ours fell to .33


def ends_rare(history: History) -> str | None:
    if not history.lasting(lambda x: x < ENDS_RARE, "end_of_turn_rate"):
        return None
    now, first = history.now("end_of_turn_rate"), history.first("end_of_turn_rate")
    return (
        f"{now:.0%} of the responses end by themselves, {first:.0%} at the start; likely a missing end costs too "
        "little, the end of turn is outside the mask, or --max-tokens is short; raise --missing-end or "
        "--max-tokens"
    )


def ends_lost(history: History) -> str | None:
    if not history.throughout(lost_ends):
        return None
    now, first = history.now("end_of_turn_rate"), history.first("end_of_turn_rate")
    return (
        f"over {PATIENCE} iterations {now:.0%} of the responses end by themselves, {first:.0%} at the start; likely "
        "the end of turn is outside the mask, or the reward model prefers length to an end; raise --missing-end, "
        "train the reward model on longer rejected responses"
    )


def length_full(history: History) -> str | None:
    limit, length = history.limits.max_tokens, history.now("length")
    if not history.lasting(lambda x: x >= LENGTH_FULL * limit, "length"):
        return None
    return (
        f"responses have {length:.1f} of at most {limit} tokens, {history.first('length'):.1f} at the start; likely "
        "the end of turn is outside the mask, or a missing end costs too little; raise --missing-end"
    )


def length_gone(history: History) -> str | None:
    if not history.throughout(lost_length, SHORT_PATIENCE):
        return None
    length, first = history.now("length"), history.first("length")
    return (
        f"responses have {length:.1f} tokens, {first:.1f} at the start, and entropy went from "
        f"{history.first('entropy'):.2f} to {history.now('entropy'):.2f} nats per token; likely the reward prefers "
        "empty or short responses (tutelage doctor REWARD shows what a reward model gives them), or every token is "
        "penalised (tutelage doctor --rl); give --min-answer, or train the reward model with --reject-degenerate"
    )


def entropy_low(history: History) -> str | None:
    now, first = history.now("entropy"), history.first("entropy")
    with_length = history.throughout(lost_length_and_entropy, SHORT_PATIENCE)
    if not (with_length or history.lasting(lambda x: x < ENTROPY_LOW * first, "entropy")):
        return None
    together = f", and length from {history.first('length'):.1f} to {history.now('length'):.1f} tokens"
    return (
        f"entropy fell from {first:.2f} to {now:.2f} nats per token{together if with_length else ''}; likely the KL "
        "penalty is too small and the policy gives everyone the same response; read its responses, raise --kl-coef or "
        f"lower {history.step_option}"
    )


def entropy_gone(history: History) -> str | None:
    if not history.throughout(lost_entropy):
        return None
    now, first = history.now("entropy"), history.first("entropy")
    return (
        f"entropy is {now:.3f} nats per token, {first:.2f} at the start: only one response is left, and nothing to "
        f"learn from; likely the KL penalty is too small; raise --kl-coef or lower {history.step_option}"
    )


def entropy_high(history: History) -> str | None:
    now, first = history.now("entropy"), history.first("entropy")
    if not history.lasting(lambda x: x > ENTROPY_HIGH * first, "entropy"):
        return None
    return (
        f"entropy rose from {first:.2f} to {now:.2f} nats per token: the policy is losing its language; likely the "
        f"steps are too large, or the KL penalty has the wrong sign; lower {history.step_option}, run tutelage doctor "
        "--rl"
    )


def scores_alike(history: History) -> str | None:
    now, first = history.now("score_std"), history.first("score_std")
    if not history.lasting(lambda x: x <= ALIKE * first, "score_std"):
        return None
    return (
        f"the standard deviation of the scores is {now:.2g}, {first:.2g} at the start: no response is preferred; "
        "likely every prompt gets the same response, or the reward model cannot tell responses apart; read the "
        "responses, check the reward model's held-out accuracy"
    )


def lost_ends(first: Metrics, now: Metrics) -> bool:
    return now["end_of_turn_rate"] < ENDS_LOST * first["end_of_turn_rate"]


def lost_entropy(first: Metrics, now: Metrics) -> bool:
    return now["entropy"] < ENTROPY_GONE * first["entropy"]


def lost_length(first: Metrics, now: Metrics) -> bool:
    return first["length"] > 2 * NO_TEXT and now["length"] <= max(NO_TEXT, LENGTH_GONE * first["length"])


def lost_length_and_entropy(first: Metrics, now: Metrics) -> bool:
    return lost_length(first, now) and now["entropy"] < ENTROPY_WITH_LENGTH * first["entropy"]
