"""Diagnostic checks of the optimisation: the value network, the size of the updates, the pretraining mix.

History -> what is wrong, in words, or None (see `diagnostics.py`)
"""

from tutelage.rlhf.history import PATIENCE, WINDOW, History, mean

# Iterations until the value network explains some of the returns; ours took 1 to 5.
SETTLING = WINDOW
CLIPPED = 0.3  # share of tokens; below .1 is healthy, .02 usual (Huang et al. 2023, "N implementation details")
STILL = 1e-5  # nats per token (k3); one step at a tenth of the demo's learning rate makes 8e-5
TEXT_LOST = 0.2  # nats per token; the noise over PATIENCE iterations is .05, ours rose by .04 at most
SHARE_OFF = 10.0  # factor above or below --ptx-share; ours were .3 to 1.1
# Nats per token (k3) from the policy that sampled; 1e-4 to 1e-2 is healthy, .002 usual (Huang et al. 2023).
UPDATE_FAR = 0.01


def value_blind(history: History) -> str | None:
    settled = history.iteration >= SETTLING
    if not (settled and history.lasting(lambda x: x < 0, "explained_variance")):
        return None
    return (
        f"explained variance is {history.now('explained_variance'):.2f} after {history.iteration} iterations: a "
        "constant would predict the returns better than the value network; likely its learning rate is wrong, it did "
        "not start as the reward model, or its mask is shifted; try another --value-lr"
    )


def text_lost(history: History) -> str | None:
    then = mean([line["ptx_loss"] for line in history.opening if "ptx_loss" in line])
    now = mean(history.last("ptx_loss"))
    if not now > then + TEXT_LOST:
        return None
    return (
        f"the loss on pretraining text rose from {then:.2f} to {now:.2f} nats per token: the policy is forgetting it; "
        f"likely the pretraining mix is too weak; raise --ptx-share or --ptx-windows, or lower {history.step_option}"
    )


def share_off(history: History) -> str | None:
    low, high = history.limits.ptx_share / SHARE_OFF, history.limits.ptx_share * SHARE_OFF
    if not any(history.lasting(off, "ptx_gradient_ratio") for off in (lambda x: x < low, lambda x: x > high)):
        return None
    return (
        f"the pretraining gradient's norm is {history.now('ptx_gradient_ratio'):.2g} times "
        f"{history.limits.algorithm}'s, outside {low:g} to {high:g}; likely the iterations that set its coefficient "
        "were not typical; raise --ptx-calibration"
    )


def clipped_much(history: History) -> str | None:
    if not history.lasting(lambda x: x > CLIPPED, "clip_fraction"):
        return None
    return (
        f"{history.now('clip_fraction'):.0%} of the tokens are clipped, where below {CLIPPED:.0%} is usual; likely the "
        "steps on one rollout are too many or too large; lower --lr or --epochs"
    )


def update_far(history: History) -> str | None:
    if not history.lasting(lambda x: x > UPDATE_FAR, "approx_kl"):
        return None
    return (
        f"the policy moves {history.now('approx_kl'):.2g} nats per token away from the one that sampled the rollout, "
        f"where up to {UPDATE_FAR:g} is healthy; likely the steps on one rollout are too many or too large; lower --lr "
        "or --epochs"
    )


def stands_still(history: History) -> str | None:
    # The clip fraction alone would not do: at one step a rollout nothing is ever clipped, and only PPO has a clip.
    clipped = any(line.get("clip_fraction", 0.0) > 0 for line in history.recent)
    if clipped or not history.lasting(lambda x: x < STILL, "kl_k3", SETTLING):
        return None
    return (
        f"after {history.iteration} iterations the policy is {history.now('kl_k3'):.1g} nats per token from where it "
        f"began; likely the steps are too small, or no gradient reaches the policy; raise {history.step_option}"
    )


def search_failing(history: History) -> str | None:
    if not history.lasting(lambda x: x == 0, "step_share"):
        return None
    return (
        f"in {PATIENCE} iterations the line search found no step that improves within its limit; likely the batch is "
        "so small that the gradient is noise, or all advantages are alike; raise --batch, look at the scores"
    )
