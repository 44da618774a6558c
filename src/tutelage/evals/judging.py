"""Score the responses of all models with the reward, the SFT model and the base model.

    responses by model -> reward scores -> best of n -> log pi_SFT, log p of the base model -> each model's figures

Prompts are several times as long as responses, so all responses to a prompt share one row (`model/shared_prefix.py`)
and each scorer runs the prompt once. A response that several models gave is scored once. Best-of-n takes the SFT
response with the highest score. KL is the mean of log pi(y|x) - log pi_SFT(y|x) over the model's own responses, with
log pi(y|x) as it was when the response was sampled. For best-of-n it is the bound log n - (n-1)/n (Stiennon et al.
2020), and marked as a bound.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.evals.bench import Bench, ModelOutput, run_model
from tutelage.evals.text_statistics import distinct
from tutelage.learning.kl import best_of_n_kl_bound
from tutelage.model.gpt import GPT
from tutelage.rewards.reward import with_response
from tutelage.runs.run import seed_for
from tutelage.sampling.likelihood import summed_logprobs
from tutelage.sampling.sampler import Response

DISTINCT_TOKENS = 12  # of each response, for distinct-n

Responses = Sequence[Sequence[Response]]  # [prompt][response]
Outputs = dict[str, ModelOutput]  # by model
Scores = dict[str, Tensor]  # by scorer; the shape is in the scorer's docstring


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """One model's figures."""
    outputs, scores = {"model": run_model(bench, bench.load(folder))}, Scores()
    for name, score in scorers_of(bench).items():
        scores[name] = score(bench, outputs, scores)
    return figures(bench, outputs, scores)["model"]


# ---- the scorers, in the order in which they run


def by_reward(bench: Bench, outputs: Outputs, scores: Scores) -> Tensor:
    """(prompts, all responses to each, candidates included): the reward's scores."""
    return reward_scores(bench, side_by_side(output.by_prompt for output in outputs.values()))


def by_sft(bench: Bench, outputs: Outputs, scores: Scores) -> Tensor:
    """(2, prompts, rows of the table): log pi_SFT of each response after its own prompt, and after another one."""
    responses = list(zip(*table_rows(bench, outputs, scores).values(), strict=True))
    return torch.stack(own_and_other(bench, bench.load(bench.sft), responses))


def by_base(bench: Bench, outputs: Outputs, scores: Scores) -> Tensor:
    """(prompts, rows of the table): log p of each response under the base model."""
    assert bench.base, "this scorer runs only with a base model"
    responses = list(zip(*table_rows(bench, outputs, scores).values(), strict=True))
    return logprobs(bench, bench.load(bench.base), responses)


Scorer = Callable[[Bench, Outputs, Scores], Tensor]
SCORERS: dict[str, Scorer] = {"reward": by_reward, "sft": by_sft, "base": by_base}


def scorers_of(bench: Bench) -> dict[str, Scorer]:
    """The scorers for which the bench has a model."""
    absent = {"reward": bench.reward is None, "base": bench.base is None}
    return {name: score for name, score in SCORERS.items() if not absent.get(name)}


def table_rows(bench: Bench, outputs: Outputs, scores: Scores) -> dict[str, Sequence[Response]]:
    """The rows of the table, one response per prompt each. The best-of-n rows follow the SFT model's."""
    rows: dict[str, Sequence[Response]] = {}
    for name, output in outputs.items():
        rows[name] = output.responses
        if any(output.candidates):
            candidate_scores = scores_by_model(outputs, scores)[name][:, 1:]
            for n in bench.config.best_of:
                best = candidate_scores[:, :n].argmax(1).tolist()
                rows[f"best-of-{n}"] = [samples[k] for samples, k in zip(output.candidates, best, strict=True)]
    return rows


def scores_by_model(outputs: Outputs, scores: Scores) -> dict[str, Tensor]:
    """Each model's reward scores: (prompts, the response and its candidates)."""
    sizes = [len(output.by_prompt[0]) for output in outputs.values()]
    return dict(zip(outputs, scores["reward"].split(sizes, 1), strict=True))


# ---- scoring


def side_by_side(models: Iterable[Responses]) -> Responses:
    """All models' responses, by prompt."""
    return [[one for responses in prompt for one in responses] for prompt in zip(*models, strict=True)]


def reward_scores(bench: Bench, responses: Responses) -> Tensor:
    """(prompts, responses each): the reward's scores; a reward model's are read at the end-of-turn token.

    Truncated responses get an end-of-turn token, and one that ended otherwise gets it instead, so that all are
    comparable.
    """
    end = bench.tokenizer.end_of_turn_id

    def score(unique: Responses) -> list[Tensor]:
        ids = [
            [[*prompt, *(one.ids[:-1] if one.ended else one.ids), end] for one in group]
            for prompt, group in zip(bench.prompt_ids, unique, strict=True)
        ]
        conversations = [
            [with_response(p.prompt, bench.tokenizer.decode(one.ids)) for one in group]
            for p, group in zip(bench.prompts, unique, strict=True)
        ]
        assert bench.reward, "this scorer runs only with a reward"
        return bench.reward.score_groups(ids, conversations)

    return score_once(score, responses)


@torch.inference_mode()
def logprobs(bench: Bench, model: GPT, responses: Responses) -> Tensor:
    """(prompts, responses each): log pi(response | prompt), summed over the response's tokens."""

    def score(unique: Responses) -> list[Tensor]:
        texts = [[[*prompt, *one.ids] for one in group] for prompt, group in zip(bench.prompt_ids, unique, strict=True)]
        return summed_logprobs(model, texts, [len(prompt) for prompt in bench.prompt_ids], bench.tokenizer.pad_id)

    return score_once(score, responses)


def score_once(score: Callable[[Responses], list[Tensor]], responses: Responses) -> Tensor:
    """(prompts, responses each): the scores, where identical responses to a prompt are scored only once."""
    unique = [list({tuple(one.ids): one for one in group}.values()) for group in responses]
    rows = []
    for group, different, scores in zip(responses, unique, score(unique), strict=True):
        place = {tuple(one.ids): k for k, one in enumerate(different)}
        rows.append(scores[[place[tuple(one.ids)] for one in group]])
    return torch.stack(rows)


def own_and_other(bench: Bench, sft: GPT, responses: Responses) -> tuple[Tensor, Tensor]:
    """Both (prompts, responses each): log pi_SFT of each response after its own prompt, and after another prompt."""
    hosts = another_prompt(len(responses), bench.config.seed)
    guests = {host: guest for guest, host in enumerate(hosts)}
    found = logprobs(bench, sft, [[*own, *responses[guests[host]]] for host, own in enumerate(responses)])
    own, other = found.chunk(2, 1)
    return own, other[hosts]


def another_prompt(count: int, seed: int) -> list[int]:
    """For each prompt, the index of another one, by a fixed shuffle. A single cycle: no prompt maps to itself."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_for(seed, "answer-fit"))).tolist()
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [following[i] for i in range(count)]


# ---- figures


def figures(bench: Bench, outputs: Outputs, scores: Scores) -> dict[str, dict[str, Any]]:
    """Every row's figures, best-of-n included: those of its responses and those of the model."""
    rewards = scores_by_model(outputs, scores) if "reward" in scores else {}
    (own, other), base = scores["sft"], scores.get("base")
    sampled_from = next((name for name, output in outputs.items() if any(output.candidates)), "")
    rows = {}
    for k, (name, responses) in enumerate(table_rows(bench, outputs, scores).items()):
        row = describe(bench, responses)
        row["nats_under_base"] = None
        if base is not None:
            row["nats_under_base"] = -float(base[:, k].sum()) / sum(len(one.ids) for one in responses)
        # How often SFT finds a response more likely after its own prompt than after another one.
        row["answer_fit"] = float((own[:, k] > other[:, k]).float().mean())
        if name in outputs:
            sampled = torch.tensor([sum(one.logprobs) for one in responses])
            row |= {"rewards": rewards[name][:, 0].tolist() if rewards else None}
            row |= {"reward": float(rewards[name][:, 0].mean()) if rewards else None}
            row |= {"kl": float((sampled - own[:, k].cpu()).mean())}
            row |= {"kl_is_bound": False, "bits_per_byte": outputs[name].bits_per_byte}
        else:
            n = int(name.removeprefix("best-of-"))
            best = rewards[sampled_from][:, 1 : n + 1].amax(1)
            row |= {"rewards": best.tolist(), "reward": float(best.mean()), "kl": best_of_n_kl_bound(n)}
            row |= {"kl_is_bound": True, "bits_per_byte": None}
        rows[name] = row
    return rows


def describe(bench: Bench, responses: Sequence[Response]) -> dict[str, Any]:
    """One response per prompt -> their texts, gold scores, lengths and diversity."""
    texts = [bench.tokenizer.decode(one.ids) for one in responses]
    ids = [one.ids[:-1] if one.ended else one.ids for one in responses]
    panel, pairs = bench.panel, list(zip(bench.prompts, texts, strict=True))
    gold = [panel.utility(p.prompt, text) for p, text in pairs] if panel else None
    return {
        "texts": texts,
        "golds": gold,
        "gold": sum(gold) / len(gold) if gold else None,
        "length": sum(len(one.ids) for one in responses) / len(responses),
        "end_of_turn_rate": sum(one.ended for one in responses) / len(responses),
        "distinct_1": distinct(ids, 1, DISTINCT_TOKENS),
        "distinct_2": distinct(ids, 2, DISTINCT_TOKENS),
    }
