"""RLOO and GRPO against a problem whose answer is known (`token_mdp.py`).

What runs is the stages' own code: sampler, log-probabilities, advantages, losses, steps.
"""

import math
from itertools import count, product

import pytest
import torch
from token_mdp import END, OPTIMA, PAD, REFERENCE, RESPONSES, REWARDS, START, THETA, Table, exact, play, probability

from tutelage.learning.groups import grpo_loss, reinforce_loss
from tutelage.learning.optim import EMA, adamw, set_learning_rate
from tutelage.rlhf.groups import improve
from tutelage.rlhf.learner import PolicyLearner
from tutelage.sampling.rollout import Rollout, pad_responses, response_logprobs
from tutelage.sampling.sampler import Response
from tutelage.stages import grpo as grpo_stage
from tutelage.stages import rloo as rloo_stage
from tutelage.stages.grpo import GRPO, GRPOConfig
from tutelage.stages.rloo import RLOO, RLOOConfig

# Gradients of J in the logits, from exact differentiation: at THETA with beta .5 (MDP-A), and at the reference, where
# the KL penalty does not matter (MDP-B).
AT_THETA = torch.tensor(
    [[-0.304896, 0.231744, 0.073152], [-0.059927, -0.127795, 0.187722], [-0.055245, 0.061063, -0.005818]]
)
AT_REFERENCE = torch.tensor([[-0.3175, 0.1845, 0.1330], [-0.08, -0.08, 0.16], [-0.0495, 0.0810, -0.0315]])


def every_group(policy: Table, rewards: dict, samples: int) -> tuple[Rollout, torch.Tensor]:
    """All groups of `samples` responses as one rollout, and the probability of each group."""
    groups = list(product(RESPONSES, repeat=samples))
    answers = [Response(list(y), [0.0] * len(y), y[-1] == END) for group in groups for y in group]
    responses = pad_responses([[START]] * len(answers), answers, PAD, torch.device("cpu"))
    chance = {y: probability(policy.table.detach(), y) for y in RESPONSES}
    weights = torch.tensor([chance[group[0]] for group in groups])
    for k in range(1, samples):
        weights = weights * torch.tensor([chance[group[k]] for group in groups])
    with torch.no_grad():
        rollout = Rollout(
            responses, response_logprobs(policy, responses), response_logprobs(Table(REFERENCE.log()), responses),
            None, torch.tensor([rewards[tuple(answer.ids)] for answer in answers]),
        )  # fmt: skip
    return rollout, weights


def as_expectation(advantages: torch.Tensor, weights: torch.Tensor, samples: int) -> torch.Tensor:
    """Advantages scaled so that a mean over all responses is the expectation over groups of a group's mean."""
    return advantages * weights.repeat_interleave(samples) * len(weights)


@pytest.mark.parametrize("samples", [2, 3])
def test_the_expected_gradient_of_rloo_is_the_exact_gradient(samples: int) -> None:
    """Over every group there is: the leave-one-out baseline costs no bias, KL penalty included."""
    policy = Table(THETA)
    rollout, weights = every_group(policy, REWARDS["A"], samples)
    config = RLOOConfig(batch=len(weights) * samples, samples=samples, kl_coef=0.5)
    advantages = as_expectation(rloo_stage.estimate(rollout, config), weights, samples)
    reinforce_loss(response_logprobs(policy, rollout.responses), advantages, rollout.responses.mask).backward()
    assert torch.allclose(-policy.table.grad, AT_THETA, atol=3e-6)


@pytest.mark.parametrize("samples", [2, 3])
def test_the_expected_gradient_of_dr_grpo_is_a_share_of_the_exact_gradient(samples: int) -> None:
    """The group's mean holds the response itself: (k - 1) / k of the gradient, in the same direction."""
    policy = Table(REFERENCE.log())
    rollout, weights = every_group(policy, REWARDS["B"], samples)
    config = GRPOConfig(batch=len(weights) * samples, samples=samples, variant="dr-grpo", kl_coef=0.0)
    advantages = as_expectation(grpo_stage.estimate(rollout, config), weights, samples)
    logprobs = response_logprobs(policy, rollout.responses)
    loss, _, _ = grpo_loss(
        logprobs, rollout.logprobs, rollout.ref_logprobs, advantages, rollout.responses.mask, clip=0.2, kl_coef=0.0,
        divisor=2,
    )  # fmt: skip
    loss.backward()
    assert torch.allclose(-2 * policy.table.grad, AT_REFERENCE * (samples - 1) / samples, atol=3e-6)


@pytest.mark.parametrize("variant", ["grpo", "dr-grpo"])
def test_a_step_of_grpo_is_that_of_its_rows(variant) -> None:
    """The loss of one minibatch before its step, ratio 1, from the responses and the tables in Python floats."""
    policy, rows = Table(THETA), [5, 0, 12, 7, 3]
    config = GRPOConfig(batch=16, samples=8, max_tokens=2, minibatch=5, variant=variant, kl_coef=0.3)
    rollout = play(policy, None, REWARDS["B"], list(range(16)), 8)
    advantages = grpo_stage.estimate(rollout, config)
    expected = 0.0
    for row in rows:
        said = tuple(rollout.responses.tokens[row, : int(rollout.responses.mask[row].sum())].tolist())
        k3, state = 0.0, 0
        for token in said:
            new, ref = (table[state].softmax(0)[token].item() for table in (THETA, REFERENCE.log()))
            k3, state = k3 + ref / new - math.log(ref / new) - 1, token + 1
        whole = 0.3 * k3 - advantages[row].item() * len(said)
        expected += whole / (len(said) if variant == "grpo" else 2) / len(rows)
    learner = PolicyLearner(
        policy=policy, optimizer=adamw(policy.named_parameters(), lr=0.0, weight_decay=0.0), average=EMA(policy, 0.0)
    )
    minibatch = rollout.rows(torch.tensor(rows))
    logprobs, _ = learner.logprobs(minibatch, config, first=True)
    loss, _ = grpo_stage.loss(logprobs, minibatch, advantages[rows], config)
    logged = learner.step(loss, 0, config)
    assert logged["policy_loss"] == pytest.approx(expected, rel=1e-4)


def train(method, config, rewards: dict, iterations: int, seed: int = 0) -> tuple[float, float]:
    """`iterations` of the stages' own improve(). Returns J at the config's beta, and KL, of the final policy."""
    policy = Table(REFERENCE.log())
    optimizer = adamw(policy.named_parameters(), lr=0.03, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-5)
    learner = PolicyLearner(policy=policy, optimizer=optimizer, average=EMA(policy, 0.0))
    order, seeds = torch.Generator().manual_seed(seed), count(seed * 10**9)
    for iteration in range(iterations):
        set_learning_rate(optimizer, 1 - iteration / iterations)
        rollout = play(policy, None, rewards, [next(seeds) for _ in range(config.batch)], config.samples)
        improve(method, learner, rollout, config, order, iteration)
    return exact(policy.table.detach(), rewards, config.kl_coef)


def rloo_config(beta: float) -> RLOOConfig:
    return RLOOConfig(batch=256, samples=4, max_tokens=2, kl_coef=beta, grad_clip=1e9)


def test_rloo_reaches_the_optimum() -> None:
    best, kl = OPTIMA["B", 0.5]
    reached, reached_kl = train(RLOO, rloo_config(0.5), REWARDS["B"], 400)
    assert reached == pytest.approx(best, rel=0.01)
    assert reached_kl == pytest.approx(kl, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("mdp", "beta"), OPTIMA)
def test_rloo_reaches_every_optimum(mdp: str, beta: float) -> None:
    reached, _ = train(RLOO, rloo_config(beta), REWARDS[mdp], 800, seed=1)
    assert reached == pytest.approx(OPTIMA[mdp, beta][0], rel=0.01)


@pytest.mark.parametrize(("variant", "epochs"), [("grpo", 1), ("grpo", 2), ("dr-grpo", 1)])
def test_grpo_without_a_kl_penalty_finds_the_best_response(variant, epochs: int) -> None:
    """Its k3 has a different optimum, so beta is 0 here: the best response scores 2."""
    config = GRPOConfig(
        batch=256, samples=8, minibatch=128, max_tokens=2, kl_coef=0.0, grad_clip=1e9, variant=variant, epochs=epochs
    )
    reached, _ = train(GRPO, config, REWARDS["B"], 200)
    assert reached > 1.95


def test_the_kl_penalty_holds_grpo_near_the_reference() -> None:
    config = GRPOConfig(batch=256, samples=8, minibatch=128, max_tokens=2, kl_coef=5.0, grad_clip=1e9)
    _, reached_kl = train(GRPO, config, REWARDS["B"], 200)
    assert 0 < reached_kl < 0.3
