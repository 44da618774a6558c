"""PPO against a problem whose answer is known: the tiny token MDP with a tabular policy.

Vocabulary {0, 1, END = 2}, at most two tokens, three states: (), (0), (1). The reference policy, the rewards, and the
closed-form optimum pi* ~ pi_ref exp(r / beta) come from the definition, enumerated in Python floats (`token_mdp.py`).
What runs is the stage's own code: sampler, log-probabilities, shaped rewards, GAE, whitening, losses, steps, driven as
`tutelage doctor --rl` drives it.
"""

import math
from dataclasses import replace

import pytest
import torch
from token_mdp import OPTIMA, REFERENCE, RESPONSES, REWARDS, THETA, every_response, exact, probability

from tutelage.learning.advantages import gae, shaped_rewards
from tutelage.learning.losses import policy_loss
from tutelage.recipe.rl_selftest import train_table
from tutelage.rlhf.token_mdp import TWO_TOKENS, Table, Values, length_problem
from tutelage.sampling.rollout import response_logprobs, response_values

PROBLEMS = {mdp: replace(TWO_TOKENS, reward=rewards.__getitem__) for mdp, rewards in REWARDS.items()}


def train(mdp: str, beta: float, seed: int, iterations: int = 400, **changed) -> tuple[float, float]:
    """The stage's code on the package's problem; what it has reached is measured here."""
    logits, gap = train_table(PROBLEMS[mdp], beta, iterations, seed=seed, **changed)
    assert gap < 1e-5
    return exact(logits, REWARDS[mdp], beta)


def test_the_packages_problem_is_this_one():
    """What `tutelage doctor --rl` has to reach is the enumeration of `token_mdp.py`."""
    assert set(TWO_TOKENS.responses()) == set(RESPONSES)
    assert {y: TWO_TOKENS.reward(y) for y in RESPONSES} == REWARDS["B"]
    for (mdp, beta), (best, kl) in OPTIMA.items():
        assert PROBLEMS[mdp].optimum(beta) == pytest.approx((best, kl), abs=2e-6)
        assert PROBLEMS[mdp].objective(THETA, beta) == pytest.approx(exact(THETA, REWARDS[mdp], beta), abs=1e-6)


def test_a_words_mean_length_is_that_of_its_geometric_series():
    """An end with probability .3 at each of at most twelve tokens: (1 - .7^12) / .3."""
    problem = length_problem(1.0)
    assert problem.mean_length(problem.reference_logits) == pytest.approx((1 - 0.7**12) / 0.3, abs=1e-6)
    assert problem.optimum(0.05) == pytest.approx((1.0, 0.0), abs=1e-6)  # a constant changes nothing


@pytest.mark.parametrize(("mdp", "beta"), OPTIMA)
def test_the_optimum_of_the_closed_form(mdp, beta):
    """J* = beta log Z with Z = sum pi_ref exp(r / beta): our tables agree with the definition."""
    reference = REFERENCE.log()
    z = sum(probability(reference, y) * math.exp(REWARDS[mdp][y] / beta) for y in RESPONSES)
    assert beta * math.log(z) == pytest.approx(OPTIMA[mdp, beta][0], abs=1e-6)


def test_a_policy_off_the_reference_by_numbers_worked_out_elsewhere():
    """The package's objective and KL at THETA; the numbers come from an independent implementation."""
    assert PROBLEMS["A"].objective(THETA, 0.5) == pytest.approx((-0.345006, 0.061463), abs=1e-6)
    assert PROBLEMS["B"].objective(THETA, 0.5) == pytest.approx((-0.234768, 0.061463), abs=1e-6)
    assert PROBLEMS["A"].objective(REFERENCE.log(), 0.5) == pytest.approx((-0.105, 0.0), abs=1e-6)
    assert PROBLEMS["B"].objective(REFERENCE.log(), 0.5) == pytest.approx((0.035, 0.0), abs=1e-6)


@pytest.mark.parametrize("mdp", ["A", "B"])
def test_ppo_reaches_the_optimum(mdp):
    best, kl = OPTIMA[mdp, 0.5]
    reached, reached_kl = train(mdp, 0.5, seed=0, iterations=150)
    assert reached == pytest.approx(best, rel=0.002)
    assert reached_kl == pytest.approx(kl, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("mdp", "beta"), OPTIMA)
@pytest.mark.parametrize("seed", [1, 2])
def test_ppo_reaches_every_optimum(mdp, beta, seed):
    best, kl = OPTIMA[mdp, beta]
    reached, reached_kl = train(mdp, beta, seed=seed)
    assert reached == pytest.approx(best, rel=0.002)
    assert reached_kl == pytest.approx(kl, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("mdp", "beta"), OPTIMA)
@pytest.mark.parametrize("update", ["penalty", "trpo"])
def test_the_other_updates_reach_every_optimum(update, mdp, beta):
    best, kl = OPTIMA[mdp, beta]
    reached, reached_kl = train(mdp, beta, seed=1, update=update)
    assert reached == pytest.approx(best, rel=0.002)
    assert reached_kl == pytest.approx(kl, rel=0.01)


@pytest.mark.slow
def test_four_epochs_reach_it_too():
    reached, _ = train("A", 0.5, seed=0, epochs=4)
    assert reached == pytest.approx(OPTIMA["A", 0.5][0], rel=0.002)


def test_the_first_gradient_is_the_exact_gradient():
    """Without baseline, whitening or clipping, PPO's gradient at ratio 1 is that of J, here in closed form."""
    policy = Table(TWO_TOKENS, THETA)
    responses, weights = every_response(policy)
    logprobs = response_logprobs(policy, responses)
    old, ref = logprobs.detach(), response_logprobs(Table(TWO_TOKENS, REFERENCE.log()), responses).detach()
    scores = torch.tensor([REWARDS["A"][y] for y in RESPONSES])
    rewards = shaped_rewards(scores, old, ref, responses.mask, kl_coef=0.5)
    advantages, _ = gae(rewards, torch.zeros_like(old), responses.mask, gamma=1.0, lam=1.0)
    policy_loss(logprobs, old, advantages * weights[:, None], responses.mask, clip=0.2, total=1.0)[0].backward()
    expected = torch.tensor(
        [[-0.304896, 0.231744, 0.073152], [-0.059927, -0.127795, 0.187722], [-0.055245, 0.061063, -0.005818]]
    )
    assert torch.allclose(-policy.table.grad, expected, atol=2e-6)


def test_at_the_optimum_every_advantage_is_zero():
    """At (pi*, V*) each temporal difference vanishes, so GAE is 0 for any lambda: reward place, KL sign, end, all."""
    best = torch.tensor(
        [[0.163722, 0.794989, 0.041290], [0.034131, 0.034131, 0.931738], [0.001054, 0.850706, 0.148240]]
    )
    policy, value = Table(TWO_TOKENS, best.log()), Values(TWO_TOKENS, (0.788853, 0.230633, 1.276125))
    responses, _ = every_response(policy)
    with torch.no_grad():
        logprobs, values = response_logprobs(policy, responses), response_values(value, responses)
        ref = response_logprobs(Table(TWO_TOKENS, REFERENCE.log()), responses)
    scores = torch.tensor([REWARDS["A"][y] for y in RESPONSES])
    rewards = shaped_rewards(scores, logprobs, ref, responses.mask, kl_coef=0.5)
    for lam in (0.0, 0.5, 0.95, 1.0):
        advantages, _ = gae(rewards, values, responses.mask, gamma=1.0, lam=lam)
        assert advantages.abs().max() < 5e-4  # the tables have six decimals; pi(0|(1)) has three digits
