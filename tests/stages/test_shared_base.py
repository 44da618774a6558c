"""Policy, reference, reward and value as adapters on one frozen base: the same numbers as four separate models."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from ppo_bench import CONFIG, run_ppo
from world import World, interrupted, metrics, results, same_files

from tutelage.model.families import copy_weights
from tutelage.model.gpt import GPT
from tutelage.model.heads import ScalarGPT
from tutelage.model.prepack import can_pack
from tutelage.rewards.reward import ModelReward
from tutelage.rlhf.actors import Actors, load_actors
from tutelage.rlhf.rollouts import EncodedPrompt, roll_out, rollout_seeds, trunk_cache_for
from tutelage.rlhf.sharing import unshared
from tutelage.runs.adapter import adapt, save_tuned_scorer
from tutelage.runs.device import Device
from tutelage.runs.folder import load_policy, load_scorer
from tutelage.runs.run import Run
from tutelage.sampling.rollout import Rollout, response_logprobs, response_values, score_rollout
from tutelage.sampling.sampler import Response, generate

SHARED = replace(CONFIG, lora_rank=4, lora_layers=1)
CPU = Device(torch.device("cpu"), torch.float32, 1, "the tests")


def actors_of(policy: Path, judge: Path, out: Path, layers: int = 1) -> Actors:
    config = replace(SHARED, lora_layers=layers)
    return load_actors(policy, (str(judge),), config, Run(out, stage="ppo", config=config, inputs={}))


def roll(actors: Actors, samples: int = 1) -> Rollout:
    """18 responses, of 19 tokens at most with their prompts."""
    prompts = [[15, 17, 260, 33, 8], [120, 77], [201, 9, 45, 46, 12, 11, 10]] * 6  # more than one group of like length
    config, asked = replace(SHARED, max_tokens=12), [EncodedPrompt(ids, []) for ids in prompts[: 18 // samples]]
    return roll_out(actors, asked, rollout_seeds(0, 0, 18), config, torch.arange(18).split(7), samples)[0]


def shake(model: GPT) -> None:
    """What training would have done to the adapters."""
    for name, parameter in model.named_parameters():
        if ".up" in name and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(3))


def test_no_number_is_there_twice(policy: Path, judge: Path, tmp_path: Path) -> None:
    actors = actors_of(policy, judge, tmp_path)
    roles = [actors.policy, actors.reward.models[0].trunk, actors.value.trunk]
    frozen = [name for name, p in roles[0].named_parameters() if p.ndim == 2 and ".adapter." not in name]
    for name in frozen:
        assert len({dict(role.named_parameters())[name].data_ptr() for role in roles}) == 1, name
    adapters = [p.data_ptr() for role in roles for name, p in role.named_parameters() if ".adapter." in name]
    assert len(set(adapters)) == len(adapters) > 0
    assert actors.shared_layers == 1  # of three: the reward model's adapters reach deepest
    assert not any(p.requires_grad for p in actors.reward.models[0].parameters())


def test_without_a_value_network_all_adapters_of_the_reward_model_are_run(
    policy: Path, judge: Path, tmp_path: Path
) -> None:
    """They reach deeper than the policy's, and nothing else says so: the reward model is frozen."""
    run = Run(tmp_path, stage="rloo", config=SHARED, inputs={})
    actors = load_actors(policy, (str(judge),), SHARED, run, critic=False)
    assert actors.value is None and actors.shared_layers == 1
    ids = torch.tensor([[15, 17, 260, 33, 8]])
    expected = load_scorer(judge, CPU)[0](ids)
    torch.testing.assert_close(
        actors.reward.models[0](ids, actors.policy.lower(ids, 1)), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("layers", "common"), [(1, 1), (2, 1), (3, 0), (0, 0)])
def test_shared_and_separate_models_agree(
    policy: Path, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int, common: int, kept: bool
) -> None:
    """In log-probabilities, values, scores and the gradients of all adapters: in the top layers or in all of them (0),
    what lies below kept from the rollout, or, where it would not fit into memory, run again in each pass.
    """
    shared = actors_of(policy, judge, tmp_path, layers)
    assert shared.shared_layers == common  # of three; the reward model's adapters are in the top two
    shake(shared.policy)
    trained, value, scorer = (copy.deepcopy(model) for model in (shared.policy, shared.value, shared.reward.models[0]))
    reference = load_policy(policy, CPU)[0]
    separate = Actors(
        trained, reference, ModelReward(scorer, shared.tokenizer), value, shared.value_base, shared.tokenizer
    )
    if not kept:
        monkeypatch.setattr("tutelage.rlhf.rollouts.MAX_STREAM_BYTES", 0)
    one = roll(shared)
    monkeypatch.setattr("tutelage.rlhf.rollouts.MAX_STREAM_BYTES", 0)
    other = roll(separate)
    assert (one.responses.stream is not None) == (kept and common > 0) and other.responses.stream is None
    assert torch.equal(one.responses.ids, other.responses.ids)
    for name in ("logprobs", "ref_logprobs", "values", "scores"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one.logprobs, one.ref_logprobs, atol=1e-2)
    # Gradients multiply what the sampler rounds otherwise than a whole pass: they go on from one of the latter.
    stream = shared.policy.lower(one.responses.ids, common) if one.responses.stream else None
    for actors, responses in ((shared, replace(one.responses, stream=stream)), (separate, other.responses)):
        response_logprobs(actors.policy, responses).sum().backward()
        response_values(actors.value, responses).square().sum().backward()
    for ours, theirs in ((shared.policy, trained), (shared.value, value)):
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None) == (not p.requires_grad), name
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reward", ["judge", "another base"])
def test_no_frozen_matrix_is_ever_there_in_fp32(
    world: World, policy: Path, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: str
) -> None:
    """Where the models are read, too: the base in fp32 would be the most memory that the run takes."""
    read: list[torch.dtype] = []

    def noting(targets: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
        read.extend(t.dtype for t in targets.values() if t.ndim == 2 and t.device.type != "meta")
        copy_weights(targets, weights)

    monkeypatch.setattr("tutelage.model.families.copy_weights", noting)
    config = replace(SHARED, dtype="bf16")
    run = Run(tmp_path, stage="ppo", config=config, inputs={})
    load_actors(policy, (str(judge if reward == "judge" else world.reward),), config, run)
    assert read and set(read) == {torch.bfloat16}


@pytest.mark.parametrize(("dtype", "bytes_each"), [("fp32", 4), ("bf16", 2)])
def test_what_is_kept_is_bounded_in_bytes(
    policy: Path, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, bytes_each: int
) -> None:
    config = replace(SHARED, dtype=dtype)
    actors = load_actors(policy, (str(judge),), config, Run(tmp_path, stage="ppo", config=config, inputs={}))
    size = 18 * 19 * actors.policy.config.width * bytes_each
    monkeypatch.setattr("tutelage.rlhf.rollouts.MAX_STREAM_BYTES", size)
    assert trunk_cache_for(actors, 18, 19) is not None and trunk_cache_for(actors, 18, 20) is None
    monkeypatch.setattr("tutelage.rlhf.rollouts.MAX_STREAM_BYTES", size - 1)
    assert trunk_cache_for(actors, 18, 19) is None


@pytest.mark.parametrize(("samples", "batches"), [(1, [7, 7, 4]), (3, [6, 6, 6]), (9, [9, 9])])
def test_a_rollout_of_more_keys_and_values_than_fit_is_sampled_in_batches(
    policy: Path, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int, batches: list[int]
) -> None:
    """A prompt's responses together, and the same numbers as of one batch."""
    actors, sizes = actors_of(policy, judge, tmp_path), []

    def counting(model: GPT, prompts: Any, seeds: Any, *given: Any, **named: Any) -> list[list[Response]]:
        sizes.append(len(seeds))
        return generate(model, prompts, seeds, *given, **named)

    monkeypatch.setattr("tutelage.rlhf.rollouts.generate", counting)
    whole = roll(actors, samples)
    assert sizes == [18]
    c = actors.policy.config
    row = 2 * (7 + 12) * c.layers * c.kv_heads * c.head_width
    monkeypatch.setattr("tutelage.sampling.sampler.MAX_CACHE_NUMBERS", 8 * row - 1)
    split = roll(actors, samples)
    assert sizes[1:] == batches
    assert torch.equal(split.responses.ids, whole.responses.ids) and whole.responses.stream and split.responses.stream
    for name in ("logprobs", "ref_logprobs", "values", "scores"):
        torch.testing.assert_close(getattr(split, name), getattr(whole, name), atol=1e-5, rtol=1e-5)
    real = torch.arange(whole.responses.ids.shape[1]) <= whole.responses.last[:, None]
    torch.testing.assert_close(split.responses.stream.x[real], whole.responses.stream.x[real], atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not can_pack(), reason="this torch or CPU has no packed bf16 products")
def test_no_packed_copy_stays_while_it_learns(
    policy: Path, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a real model it would be a second one, and hold memory at the very peak."""
    packed: list[int] = []

    def counting(*given: Any, **named: Any) -> Rollout:
        packed.append(sum(hasattr(weight, "packed") for weight in actors.policy.parameters()))
        return score_rollout(*given, **named)

    monkeypatch.setattr("tutelage.rlhf.rollouts.score_rollout", counting)
    config = replace(SHARED, dtype="bf16")
    actors = load_actors(policy, (str(judge),), config, Run(tmp_path, stage="ppo", config=config, inputs={}))
    roll(actors)
    assert packed[0] > 0  # it was sampled from
    assert not any(hasattr(weight, "packed") for weight in actors.policy.parameters())


@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_of_what_the_sampler_kept(policy: Path, judge: Path, tmp_path: Path, layers: int) -> None:
    """The path that training takes, against whole passes, as a share of each gradient's length."""
    actors = actors_of(policy, judge, tmp_path, layers)
    shake(actors.policy)
    responses, found = roll(actors).responses, []
    assert responses.stream
    for given in (responses, replace(responses, stream=None)):
        response_logprobs(actors.policy, given).sum().backward()
        response_values(actors.value, given).square().sum().backward()
        learning = [p for role in (actors.policy, actors.value) for p in role.parameters() if p.requires_grad]
        found.append([p.grad for p in learning])
        for p in learning:
            p.grad = None
    for kept, whole in zip(*found, strict=True):
        assert whole.norm() > 0 and (kept - whole).norm() < 5e-5 * whole.norm()


def test_the_trunk_is_run_once(policy: Path, judge: Path, tmp_path: Path) -> None:
    """By the sampler, on each token of a rollout; by nobody else, whatever the models and epochs."""
    actors = actors_of(policy, judge, tmp_path)
    seen: list[int] = []
    # The sampler's model is a copy of the policy, and so are its hooks.
    actors.policy.blocks[0].register_forward_hook(lambda module, given, result: seen.append(given[0].shape[:2].numel()))
    for scorer in (actors.reward.models[0], actors.value):  # their own block objects, with the same weights
        scorer.trunk.blocks[0].register_forward_hook(lambda module, given, result: seen.append(10**6))
    rollout = roll(actors)
    for _ in range(4):
        response_logprobs(actors.policy, rollout.responses).sum().backward()
        response_values(actors.value, rollout.responses).sum().backward()
    assert 0 < sum(seen) <= 18 * (7 + 12)  # prompts, padded, and 12 tokens to each


def test_a_run_of_shared_models(
    world: World, policy: Path, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ratio 1, KL 0 at the start; what is saved is what transformers reads; resuming changes nothing."""
    whole = run_ppo(world, tmp_path / "whole", SHARED, policy=policy, reward=judge)
    lines = metrics(whole)
    assert lines[0]["kl"] == 0.0 and lines[-1]["kl"] != 0.0
    assert all(line["ratio_error"] < 1e-4 and line["sampler_gap"] < 1e-3 for line in lines)
    assert results(whole)["shared_layers"] == 1
    ids = torch.tensor([[15, 17, 260, 33, 8, 120, 77]])
    ours, _ = load_policy(whole, CPU)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(whole)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    assert not torch.equal(load_scorer(whole / "value", CPU)[0](ids), load_scorer(judge, CPU)[0](ids))
    interrupted(lambda: run_ppo(world, tmp_path / "cut", SHARED, policy=policy, reward=judge), monkeypatch, 2)
    cut = run_ppo(world, tmp_path / "cut", SHARED, policy=policy, reward=judge)
    same_files(whole, cut, ["model.safetensors", "adapter/adapter_model.safetensors", "value/model.safetensors"])


def test_a_reward_model_of_another_base_stays_its_own(world: World, policy: Path, tmp_path: Path) -> None:
    """Trained whole, it shares nothing; the policy still runs its own trunk once."""
    actors = actors_of(policy, world.reward, tmp_path)
    assert actors.reward.models[0].trunk.embedding.weight is not actors.policy.embedding.weight
    assert actors.value_base == world.reward and actors.shared_layers == 2
    rollout = roll(actors)
    assert rollout.responses.stream_for(actors.policy) and not rollout.responses.stream_for(
        actors.reward.models[0].trunk
    )


def adapters_everywhere(policy: Path, folder: Path) -> Path:
    """An untrained reward model with adapters in all three layers of the policy."""
    trunk, tokenizer = load_policy(policy, CPU)
    adapt(trunk, config := replace(SHARED, lora_layers=0), torch.Generator().manual_seed(0))
    folder.mkdir()
    model = ScalarGPT(trunk, 0.0, 1.0).initialise(torch.Generator().manual_seed(0))
    save_tuned_scorer(folder, model, tokenizer, policy, config)
    return folder


def test_a_reward_model_that_keeps_layers_from_being_shared_is_named(
    world: World, policy: Path, judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what to train; the judge has adapters in the top two of three layers. Only if layers were to be shared."""
    everywhere = adapters_everywhere(policy, tmp_path / "everywhere")

    def said(layers: int, *rewards: Path) -> list[str]:
        config, names = replace(SHARED, lora_layers=layers), tuple(map(str, rewards))
        actors = load_actors(policy, names, config, Run(tmp_path / "run", stage="ppo", config=config, inputs={}))
        return list(unshared(actors, (*names, "m.py:f"), policy, config))

    again = f"train it again with tutelage reward --base {policy} --lora-rank 4 --lora-layers"
    assert said(1, everywhere) == [
        f"reward model {everywhere}: it has adapters in all layers, so 0 layers of 2 can be shared; {again} 1"
    ]
    assert said(1, judge) == [
        f"reward model {judge}: it has adapters in the top 2 of 3 layers, so 1 layer of 2 can be shared; {again} 1"
    ]
    (line,) = said(1, world.reward)
    assert f"it is not an adapter on {policy}" in line and line.endswith(f"{again} 1")
    (line,) = said(2, judge, everywhere)
    assert line.startswith(f"reward model {everywhere}: ") and line.endswith(f"{again} 2")
    assert said(2, judge) == said(0, everywhere) == []
    capsys.readouterr()
    out = run_ppo(world, tmp_path / "out", replace(SHARED, iterations=1), policy=policy, reward=everywhere)
    assert f"\n{out}: reward model {everywhere}: it has adapters in all" in "\n" + capsys.readouterr().err
    assert results(out)["shared_layers"] == 0


def test_the_stream_of_another_model_is_no_way_in(policy: Path, judge: Path, tmp_path: Path) -> None:
    actors, ids = actors_of(policy, judge, tmp_path), torch.tensor([[15, 17, 260]])
    stream = actors.policy.lower(ids, 1)
    assert torch.equal(actors.policy.trunk(ids, stream=stream), actors.policy.trunk(ids))
    with pytest.raises(AssertionError, match="another model"):
        load_policy(policy, CPU)[0].trunk(ids, stream=stream)
