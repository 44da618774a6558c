"""Show which check catches which bug: PPO with one deliberate bug at a time, on problems with a known optimum.

    python benchmarks/mutations.py [--only NAME] [--out runs/mutations]

Each mutant replaces a function of the package where it is used, or one line of its source. Then the checks of
`tutelage doctor --rl` run on it, and also its first problem without a reward for ending at once. Prints a Markdown
table and writes it to OUT (record.py): objective and KL on both problems, mean length for a constant reward of 1 and of
-1, and the checks that caught the bug. The script can be interrupted and repeated; rows that are already in
OUT/<hash of the code>.md are not measured again.
"""

import argparse
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from record import Record

import tutelage
from tutelage.atomic import atomic_write
from tutelage.errors import InputError
from tutelage.learning import losses
from tutelage.recipe import rl_selftest
from tutelage.rlhf import learner, token_mdp
from tutelage.rlhf.diagnostics import SAMPLER_GAP
from tutelage.rlhf.token_mdp import TWO_TOKENS, TokenMDP, length_problem
from tutelage.sampling import rollout
from tutelage.sampling.rollout import Responses
from tutelage.stages import ppo

HEAD = "| mutant | A: J / KL | B: J / KL | length for 1 / -1 | caught by |"
BETA = rl_selftest.BETA
END = TWO_TOKENS.end


def whole_reward(response: tuple[int, ...]) -> float:
    """The reward of a response as a mutant leaves it: cut after its end token, which is added if it is missing."""
    cut = response[: response.index(END) + 1] if END in response else response
    return TWO_TOKENS.reward(cut if len(cut) == 2 or cut[-1:] == (END,) else (*cut, END))


B = replace(TWO_TOKENS, reward=whole_reward)
A = replace(TWO_TOKENS, reward=lambda response: 0.0 if response[:1] in ((), (END,)) else whole_reward(response))


Change = tuple[ModuleType, str, Callable[[Any], Any]]  # module that uses the function, its name, function -> mutant


class Mutant:
    """One deliberate bug."""

    def __init__(self, name: str, *changes: Change):
        self.name, self.changes = name, changes


def line(old: str, new: str) -> Callable[[Any], Any]:
    """The function with one piece of its source replaced."""

    def change(function: Any) -> Any:
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(old) == 1, f"{function.__name__} no longer contains {old!r}"
        scope = dict(vars(inspect.getmodule(function)))
        exec(compile(source.replace(old, new), f"<{function.__name__}, mutated>", "exec"), scope)
        return scope[function.__name__]

    return change


def at_last_column(original: Any) -> Any:
    def mutant(scores: Any, logprobs: Any, ref_logprobs: Any, mask: Any, *, kl_coef: float) -> Any:
        rewards = original(torch.zeros_like(scores), logprobs, ref_logprobs, mask, kl_coef=kl_coef)
        rewards[:, -1] += scores
        return torch.where(mask, rewards, 0.0)

    return mutant


def without_end(original: Any) -> Any:
    def mutant(*given: Any) -> Responses:
        found = original(*given)
        return replace(found, mask=found.mask & (found.tokens < given[2] - 2))

    return mutant


def padding_counted(original: Any) -> Any:
    """Every row is as long as the longest, filled with end tokens, as if padding and end of turn were one token."""

    def mutant(prompts: Any, responses: Any, pad: int, device: Any) -> Responses:
        longest, end = max(len(r.ids) for r in responses), pad - 2
        filled = [replace(r, ids=r.ids + [end] * (longest - len(r.ids))) for r in responses]
        return original(prompts, filled, pad, device)

    return mutant


def whitened(shift: bool) -> Callable[[Any], Any]:
    def change(original: Any) -> Any:
        def mutant(*given: Any, **named: Any) -> Any:
            rewards, mask = original(*given, **named), given[3]
            flat = rewards[mask]
            white = (rewards - flat.mean()) * (flat.var(unbiased=False) + 1e-8).rsqrt()
            return torch.where(mask, white + (0.0 if shift else flat.mean()), 0.0)

        return mutant

    return change


def kl_as_loss(term: str) -> Callable[[Any], Any]:
    """A KL term in the policy's loss instead of in the reward."""
    added = f"loss = loss + config.kl_coef * _kl_term(logprobs - minibatch.ref_logprobs, mask)[{term!r}]"

    def terms(log_ratio: Any, mask: Any) -> dict[str, Any]:
        found = {"k1": log_ratio, "k2": 0.5 * log_ratio.square(), "k3": (-log_ratio).exp() - 1 + log_ratio}
        return {name: value[mask].mean() for name, value in found.items()}

    def change(original: Any) -> Any:
        mutant = line("    return loss, ", f"    {added}\n    return loss, ")(original)
        mutant.__globals__["_kl_term"] = terms
        return mutant

    return change


def per_response(original: Any) -> Any:
    """The mean over responses of the mean over their tokens."""

    def mutant(logprobs: Any, old: Any, advantages: Any, mask: Any, *, clip: float, total: Any = None) -> Any:
        weights = mask.sum() / (mask.sum(1, keepdim=True).clamp(min=1) * len(mask))
        return original(logprobs, old, advantages * weights, mask, clip=clip, total=total)

    return mutant


def without_kl(original: Any) -> Any:
    return lambda *given, **named: original(*given, **named | {"kl_coef": 0.0})


def not_whitened(original: Any) -> Any:
    return lambda advantages, mask: advantages


def no_gap(original: Any) -> Any:
    """A sampler gap of 0, for mutants whose responses differ from what was sampled: the gap alone would end the run."""
    return lambda *given: 0.0


def at_temperature(t: float) -> Callable[[Any], Any]:
    return lambda original: lambda policy, responses, temperature=1.0: original(policy, responses, t)


def sampling_with(**changed: Any) -> Callable[[Any], Any]:
    return lambda original: lambda **given: original(**given, **changed)


SHAPED, NO_GAP = (ppo, "shaped_rewards"), (token_mdp, "sampler_gap", no_gap)
REFERENCE_AT_7 = line(
    "= logprobs_by(reference)", "= in_parts(lambda part: response_logprobs(reference, part, 0.7), responses, parts)"
)
EARLY = line("responses.starts[rows] - 1 + steps", "(responses.starts[rows] - 2 + steps).clamp(min=0)")
MUTANTS = [
    Mutant("none"),
    Mutant("score at the last column, not at the end of turn", (*SHAPED, at_last_column)),
    Mutant("end of turn outside the mask", (token_mdp, "pad_responses", without_end), NO_GAP),
    Mutant("padding after the end of turn counted", (token_mdp, "pad_responses", padding_counted), NO_GAP),
    Mutant("sign of the KL flipped", (*SHAPED, line("torch.where(mask, -penalty", "torch.where(mask, penalty"))),
    Mutant("no KL in the reward", (*SHAPED, without_kl)),
    Mutant("reference at temperature .7", (token_mdp, "score_rollout", REFERENCE_AT_7)),
    Mutant("sampling with top-k 2", (token_mdp, "SamplingConfig", sampling_with(top_k=2))),
    Mutant("sampling at temperature 1.3", (token_mdp, "SamplingConfig", sampling_with(temperature=1.3))),
    Mutant("rewards whitened, mean kept", (*SHAPED, whitened(shift=False))),
    Mutant("rewards whitened, mean shifted", (*SHAPED, whitened(shift=True))),
    Mutant("GAE takes V of this token for the next", (ppo, "gae", line("gamma * next_value", "gamma * values[:, t]"))),
    Mutant("GAE forgets the later errors", (ppo, "gae", line("delta + gamma * lam * running", "delta"))),
    Mutant("learning at temperature 1.3", (learner, "response_logprobs", at_temperature(1.3))),
    Mutant("log-probabilities one position early", (rollout, "response_positions", EARLY)),
    Mutant("advantages of the wrong sign", (ppo, "policy_loss", line("return -masked_mean", "return masked_mean"))),
    Mutant("no clip", (losses, "clipped_surrogate", line("ratio.clamp(1 - clip, 1 + clip)", "ratio"))),
    Mutant("mean over responses, not over tokens", (ppo, "policy_loss", per_response)),
    Mutant("KL as a k1 loss", (*SHAPED, without_kl), (ppo, "update_loss", kl_as_loss("k1"))),
    Mutant("KL as a k2 loss", (*SHAPED, without_kl), (ppo, "update_loss", kl_as_loss("k2"))),
    Mutant("KL as a k3 loss", (*SHAPED, without_kl), (ppo, "update_loss", kl_as_loss("k3"))),
    *(
        Mutant(
            f"{kind} as a loss, advantages not whitened",
            (*SHAPED, without_kl),
            (ppo, "whiten", not_whitened),
            (ppo, "update_loss", kl_as_loss(kind)),
        )
        for kind in ("k1", "k2", "k3")
    ),
]


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    with ExitStack() as stack:
        for module, function, change in mutant.changes:
            stack.enter_context(patch.object(module, function, change(getattr(module, function))))
        yield


def objective_and_kl(problem: TokenMDP) -> tuple[str, list[str]]:
    """The table cell with the trained table's objective and KL, and the checks that caught the bug."""
    best, exact = problem.optimum(BETA)
    try:
        logits, gap = rl_selftest.train_table(problem, BETA, iterations=150)
    except InputError as error:
        return "–", ["ratio" if "ratio" in str(error) else "stopped"]
    reached, kl = problem.objective(logits, BETA)
    caught = ["J"] if abs(reached - best) > rl_selftest.OBJECTIVE_OFF * best else []
    caught += ["KL"] if abs(kl - exact) > rl_selftest.KL_OFF * exact else []
    return f"{reached:.4f} / {kl:.3f}", caught + (["sampler gap"] if gap > SAMPLER_GAP["torch.float32"] else [])


def lengths() -> tuple[str, list[str]]:
    """The table cell with the mean lengths for a reward of 1 and of -1, and the checks that caught the bug."""
    found = []
    for constant in (1.0, -1.0):
        problem = length_problem(constant)
        try:
            found.append(problem.mean_length(rl_selftest.train_table(problem, 0.05, iterations=50)[0]))
        except InputError:
            return "–", []
    return " / ".join(f"{x:.2f}" for x in found), [] if all(
        rl_selftest.SHORT < x < rl_selftest.LONG for x in found
    ) else ["length"]


def row(mutant: Mutant) -> str:
    with applied(mutant):
        (a, _), (b, caught), (length, long) = objective_and_kl(A), objective_and_kl(B), lengths()
    return f"| {mutant.name} | {a} | {b} | {length} | {', '.join([*caught, *long]) or '–'} |"


def code() -> str:
    """A hash of this file and the package. When either changes, all rows are measured again."""
    sources = [Path(__file__), *sorted(Path(*tutelage.__path__).rglob("*.py"))]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="run only the mutants whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("runs/mutations"), help="folder to write")
    given = parser.parse_args()
    record = Record(given.out / "mutations", given)
    table = given.out / f"{code()}.md"
    table.parent.mkdir(parents=True, exist_ok=True)
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    known = {line.split(" | ")[0].removeprefix("| "): line for line in lines}
    record.say(HEAD + "\n|---|---|---|---|---|")
    chosen = [mutant for mutant in MUTANTS if given.only in mutant.name]
    for mutant in chosen:
        if mutant.name not in known:
            known[mutant.name] = row(mutant)
            with atomic_write(table) as file:
                file.write("".join(f"{line}\n" for line in known.values()))
        record.say(known[mutant.name])
    record.leave({mutant.name: known[mutant.name][:-2].split(" | ")[1:] for mutant in chosen})


if __name__ == "__main__":
    main()
