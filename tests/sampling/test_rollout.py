"""Rollouts: every number of a padded batch against one response at a time, computed by torch's own cross entropy."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tutelage.model.gpt import GPT, ResidualStream
from tutelage.model.heads import ScalarGPT
from tutelage.sampling.rollout import (
    Responses,
    pad_responses,
    response_logprobs,
    response_positions,
    response_scores,
    response_values,
    score_rollout,
)
from tutelage.sampling.sampler import Response

PAD, END = 1, 5
PROMPTS = [[17, 260], [33, 8, 120, 77, 201], [61, 62, 63]]
ANSWERS = [Response(ids, [0.0] * len(ids), ids[-1] == END) for ids in ([9, 45, 70, END], [END], [100, 3, 7])]


def batch() -> Responses:
    return pad_responses(PROMPTS, ANSWERS, PAD, torch.device("cpu"))


def scorer(make_gpt: Any, seed: int) -> ScalarGPT:
    return ScalarGPT(make_gpt(seed=seed), 0.3).initialise(torch.Generator().manual_seed(seed))


def logprobs_alone(policy: GPT, prompt: list[int], answer: list[int], temperature: float) -> list[float]:
    ids = torch.tensor([prompt + answer])
    losses = F.cross_entropy(policy(ids)[0, :-1] / temperature, ids[0, 1:], reduction="none")
    return (-losses[-len(answer) :]).tolist()


def test_layout_by_hand() -> None:
    responses = batch()
    assert responses.ids.tolist() == [
        [17, 260, 9, 45, 70, END],
        [33, 8, 120, 77, 201, END],
        [61, 62, 63, 100, 3, 7],
    ]
    assert responses.tokens.tolist() == [[9, 45, 70, END], [END, PAD, PAD, PAD], [100, 3, 7, PAD]]
    assert responses.mask.int().tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]  # the end is an action
    assert responses.last.tolist() == [5, 5, 5] and responses.starts.tolist() == [2, 5, 3]
    assert responses.ended.tolist() == [True, True, False]


def test_a_reward_model_reads_every_ended_response_at_the_end_of_turn() -> None:
    """Other tokens may end a response, too, but a reward model was trained on this one."""
    other = 7
    ended = Response([100, 3, other], [0.0] * 3, True)
    mixed = pad_responses(PROMPTS, [*ANSWERS[:2], ended], PAD, torch.device("cpu"))
    read = mixed.ending_with(END)
    assert read.ids.tolist() == [*mixed.ids.tolist()[:2], [61, 62, 63, 100, 3, END]]
    assert mixed.ids[2, 5] == other and read.last.tolist() == mixed.last.tolist()
    assert batch().ending_with(END).ids.tolist() == batch().ids.tolist()  # a response that was cut stays as it is


def test_each_token_is_predicted_from_the_one_before() -> None:
    rows, columns = response_positions(batch())
    assert list(zip(rows.tolist(), columns.tolist())) == [
        (0, 1),
        (0, 2),
        (0, 3),
        (0, 4),
        (1, 4),
        (2, 2),
        (2, 3),
        (2, 4),
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_each_response_alone(make_gpt: Any, temperature: float) -> None:
    policy = make_gpt("gpt2")
    actual = response_logprobs(policy, batch(), temperature)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS)):
        expected = logprobs_alone(policy, prompt, answer.ids, temperature)
        assert actual[row].tolist() == pytest.approx(expected + [0.0] * (4 - len(expected)), abs=1e-5)


def test_values_stand_before_each_token(make_gpt: Any) -> None:
    value = scorer(make_gpt, 2)
    actual = response_values(value, batch())
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS)):
        ids = torch.tensor([prompt + answer.ids])
        states = value.trunk.trunk(ids)[
            0, len(prompt) - 1 : -1
        ]  # without the state after end-of-turn: it predicts no token
        expected = (states @ value.score.weight[0] - 0.3).tolist()
        assert actual[row].tolist() == pytest.approx(expected + [0.0] * (4 - len(expected)), abs=1e-5)


def test_gradients_flow_through_responses_only(make_gpt: Any) -> None:
    policy = make_gpt("gpt2")
    response_logprobs(policy, batch()).sum().backward()
    batched = policy.positions.weight.grad.clone()
    policy.zero_grad()
    for prompt, answer in zip(PROMPTS, ANSWERS):
        ids = torch.tensor([prompt + answer.ids])
        labels = torch.tensor([-100] * len(prompt) + answer.ids)
        (-F.cross_entropy(policy(ids)[0, :-1], labels[1:], ignore_index=-100, reduction="sum")).backward()
    torch.testing.assert_close(batched, policy.positions.weight.grad, atol=1e-4, rtol=1e-4)


def test_wider_padding_and_other_rows_change_nothing(make_gpt: Any) -> None:
    """Neither more padding nor a subset of the rows."""
    policy, responses = make_gpt("gpt2"), batch()
    whole = response_logprobs(policy, responses)
    pad = torch.full((3, 20), PAD)
    wide = Responses(
        torch.cat([responses.ids, pad], 1),
        responses.starts,
        torch.cat([responses.tokens, pad], 1),
        torch.cat([responses.mask, pad == 0], 1),
        responses.ended,
    )
    torch.testing.assert_close(response_logprobs(policy, wide)[:, :4], whole, atol=1e-5, rtol=1e-5)
    for chosen in ([1], [2, 0]):
        some = wide.rows(torch.tensor(chosen))
        longest = max(len(ANSWERS[i].ids) for i in chosen)
        assert some.tokens.shape[1] == longest  # cut to what these rows need
        assert some.ids.shape[1] == 16  # few different lengths
        torch.testing.assert_close(response_logprobs(policy, some), whole[chosen, :longest], atol=1e-5, rtol=1e-5)
        assert some.ended.tolist() == [ANSWERS[i].ended for i in chosen]


def test_scores_are_read_at_the_last_token(make_gpt: Any) -> None:
    policy, reference = make_gpt("gpt2", seed=1), make_gpt("gpt2", seed=2)
    value, reward = scorer(make_gpt, 3), scorer(make_gpt, 4)
    rollout = score_rollout(
        policy,
        reference,
        value,
        response_scores(reward, batch()).detach(),
        batch(),
        parts=[torch.arange(len(batch().ids))],
        temperature=0.7,
    )
    for row in (0, 1, 2):
        ids = torch.tensor([PROMPTS[row] + ANSWERS[row].ids])
        expected = (reward.trunk.trunk(ids)[0, -1] @ reward.score.weight[0]).item() - 0.3
        assert rollout.scores[row].item() == pytest.approx(expected, abs=1e-5)
    for model, actual in ((policy, rollout.logprobs), (reference, rollout.ref_logprobs)):
        assert actual[0].tolist() == pytest.approx(logprobs_alone(model, PROMPTS[0], ANSWERS[0].ids, 0.7), abs=1e-5)
    torch.testing.assert_close(rollout.values, response_values(value, batch()).detach())
    assert not any(x.requires_grad for x in (rollout.logprobs, rollout.ref_logprobs, rollout.values, rollout.scores))


def test_a_subset_of_rows_has_its_own_rows_of_the_stream_and_does_not_copy_it(make_gpt: Any) -> None:
    """Also for a subset of a subset: a rollout's parts are divided once more into rows of similar length."""
    model, x = make_gpt(), torch.randn(3, 9, 4)
    whole = replace(batch(), stream=ResidualStream(x, 1, model.embedding.weight))
    assert torch.equal(whole.stream_for(model).x, x[:, :6])
    part = whole.rows(torch.tensor([2, 0, 1]))
    for some, numbers in ((part, [2, 0, 1]), (part.rows(torch.tensor([1, 2])), [0, 1])):
        assert some.stream is not None and some.stream.x is x
        found = some.stream_for(model)
        assert torch.equal(found.x, x[numbers, :6]) and found.layers == 1
        assert some.stream_for(make_gpt()) is None
