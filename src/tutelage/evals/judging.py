"""What reward, SFT and base think of all answers: each judge runs a prompt once, whatever the number of its answers.

    answers by model -> rewards -> best of n -> log pi_SFT, log p of the base -> each model's figures

Prompts are several times as long as responses, so the responses to one prompt share a row (`model/shared_prefix.py`).
A response that several models gave is judged once. Best-of-n takes the SFT response with the highest score.
KL is the mean of log pi(y|x) - log pi_SFT(y|x) over the model's own answers, the first as it was sampled; for best-of-n
it is the bound log n - (n-1)/n (Stiennon et al. 2020), marked as such.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.evals.bench import Bench, Said, ask
from tutelage.evals.text_statistics import distinct
from tutelage.learning.kl import best_of_n_kl_bound
from tutelage.model.gpt import GPT
from tutelage.rewards.reward import with_response
from tutelage.runs.run import seed_for
from tutelage.sampling.likelihood import summed_logprobs
from tutelage.sampling.sampler import Response

DISTINCT_TOKENS = 12  # of each answer, for distinct-n

Answers = Sequence[Sequence[Response]]  # [prompt][some]
Judged = dict[str, Tensor]  # by judge: (prompts, answers each), or two of these


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """One model's figures."""
    said, judged = {"model": ask(bench, bench.load(folder))}, Judged()
    for judge, find in JUDGES.items():
        judged[judge] = find(bench, said, judged)
    return figures(bench, said, judged)["model"]


# ---- the judges, in this order


def by_reward(bench: Bench, said: dict[str, Said], judged: Judged) -> Tensor:
    """(prompts, everything that was said to each)."""
    return rewards(bench, side_by_side(one.all for one in said.values()))


def by_sft(bench: Bench, said: dict[str, Said], judged: Judged) -> Tensor:
    """(2, prompts, rows of the table): log pi_SFT of each answer after its own prompt, and after another one's."""
    answers = list(zip(*compared(bench, said, judged).values(), strict=True))
    return torch.stack(own_and_strange(bench, bench.load(bench.sft), answers))


def by_base(bench: Bench, said: dict[str, Said], judged: Judged) -> Tensor:
    """(prompts, rows of the table): log p of each answer."""
    return logprobs(bench, bench.load(bench.base), list(zip(*compared(bench, said, judged).values(), strict=True)))


JUDGES: dict[str, Callable[[Bench, dict[str, Said], Judged], Tensor]] = {
    "reward": by_reward, "sft": by_sft, "base": by_base,
}  # fmt: skip


def compared(bench: Bench, said: dict[str, Said], judged: Judged) -> dict[str, Sequence[Response]]:
    """The rows of the table, one answer per prompt: each model's, and behind the SFT model's the best of n."""
    rows: dict[str, Sequence[Response]] = {}
    for name, one in said.items():
        rows[name] = one.answers
        if any(one.candidates):
            scores = scores_by_model(said, judged)[name][:, 1:]
            for n in bench.config.best_of:
                favourites = scores[:, :n].argmax(1).tolist()
                rows[f"best-of-{n}"] = [some[k] for some, k in zip(one.candidates, favourites, strict=True)]
    return rows


def scores_by_model(said: dict[str, Said], judged: Judged) -> dict[str, Tensor]:
    """(prompts, answer and candidates) of each model."""
    sizes = [len(one.all[0]) for one in said.values()]
    return dict(zip(said, judged["reward"].split(sizes, 1), strict=True))


# ---- what they do


def side_by_side(models: Iterable[Answers]) -> Answers:
    """The answers of several models, by prompt."""
    return [[answer for some in prompt for answer in some] for prompt in zip(*models, strict=True)]


def rewards(bench: Bench, answers: Answers) -> Tensor:
    """(prompts, answers each): the reward's scores; a model's are read at the end-of-turn token.

    Cut answers get one, so that all can be compared.
    """
    end = bench.tokenizer.end_of_turn_id

    def judge(different: Answers) -> list[Tensor]:
        texts = [
            [[*asked, *answer.ids, *([] if answer.ended else [end])] for answer in some]
            for asked, some in zip(bench.asked, different, strict=True)
        ]
        told = [
            [with_response(p.prompt, bench.tokenizer.decode(answer.ids)) for answer in some]
            for p, some in zip(bench.prompts, different, strict=True)
        ]
        return bench.scorer.score_groups(texts, told)

    return each_once(judge, answers)


@torch.inference_mode()
def logprobs(bench: Bench, model: GPT, answers: Answers) -> Tensor:
    """(prompts, answers each): log pi(answer | prompt), summed over the answer's tokens."""

    def judge(different: Answers) -> list[Tensor]:
        texts = [[[*asked, *one.ids] for one in some] for asked, some in zip(bench.asked, different, strict=True)]
        return summed_logprobs(model, texts, [len(asked) for asked in bench.asked], bench.tokenizer.pad_id)

    return each_once(judge, answers)


def each_once(judge: Callable[[Answers], list[Tensor]], answers: Answers) -> Tensor:
    """(prompts, answers each): what the judge finds, asked once for an answer that a prompt has several times."""
    different = [list({tuple(answer.ids): answer for answer in some}.values()) for some in answers]
    rows = []
    for some, few, found in zip(answers, different, judge(different), strict=True):
        place = {tuple(answer.ids): k for k, answer in enumerate(few)}
        rows.append(found[[place[tuple(answer.ids)] for answer in some]])
    return torch.stack(rows)


def own_and_strange(bench: Bench, sft: GPT, answers: Answers) -> tuple[Tensor, Tensor]:
    """Both (prompts, answers each): log pi_SFT of each answer after its own prompt, and after another one's."""
    hosts = another_prompt(len(answers), bench.config.seed)
    guests = {host: here for here, host in enumerate(hosts)}
    found = logprobs(bench, sft, [[*mine, *answers[guests[host]]] for host, mine in enumerate(answers)])
    own, strange = found.chunk(2, 1)
    return own, strange[hosts]


def another_prompt(count: int, seed: int) -> list[int]:
    """For each prompt another one, by a fixed shuffle: one cycle, so that nobody keeps their own."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_for(seed, "answer-fit"))).tolist()
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [following[i] for i in range(count)]


# ---- what comes out


def figures(bench: Bench, said: dict[str, Said], judged: Judged) -> dict[str, dict[str, Any]]:
    """What can be said of each model's answers, best-of-n among them, and of the model itself."""
    scores, (own, strange), base = scores_by_model(said, judged), judged["sft"], judged["base"]
    rows = {}
    for k, (name, answers) in enumerate(compared(bench, said, judged).items()):
        row = describe(bench, answers)
        row["nats_under_base"] = -float(base[:, k].sum()) / sum(len(answer.ids) for answer in answers)
        # How often SFT finds an answer likelier after its own prompt than after another one's.
        row["answer_fit"] = float((own[:, k] > strange[:, k]).float().mean())
        if name in said:
            drawn = torch.tensor([sum(answer.logprobs) for answer in answers])
            row |= {"reward": float(scores[name][:, 0].mean()), "kl": float((drawn - own[:, k].cpu()).mean())}
            row |= {"kl_is_bound": False, "bits_per_byte": said[name].bits_per_byte}
        else:
            n = int(name.removeprefix("best-of-"))
            row |= {"reward": float(scores["sft"][:, 1 : n + 1].amax(1).mean()), "kl": best_of_n_kl_bound(n)}
            row |= {"kl_is_bound": True, "bits_per_byte": None}
        rows[name] = row
    return rows


def describe(bench: Bench, answers: Sequence[Response]) -> dict[str, Any]:
    """One answer per prompt -> what it says, gold, length, diversity."""
    texts = [bench.tokenizer.decode(answer.ids) for answer in answers]
    ids = [answer.ids[:-1] if answer.ended else answer.ids for answer in answers]
    gold = [bench.panel.utility(p.prompt, text) for p, text in zip(bench.prompts, texts, strict=True)]
    return {
        "texts": texts,
        "golds": gold,
        "gold": sum(gold) / len(gold),
        "length": sum(len(answer.ids) for answer in answers) / len(answers),
        "end_of_turn_rate": sum(answer.ended for answer in answers) / len(answers),
        "distinct_1": distinct(ids, 1, DISTINCT_TOKENS),
        "distinct_2": distinct(ids, 2, DISTINCT_TOKENS),
    }
