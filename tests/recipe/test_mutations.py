"""benchmarks/mutations.py: every deliberate bug is caught, by a check or by a number worked out by hand."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "mutations.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutations", PROGRAM)
    assert spec and spec.loader
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


mutations = load()
BY_HAND = ["no clip", "mean over responses, not over tokens"]  # these leave the optimum where it is
NAMED = {mutant.name: mutant for mutant in mutations.MUTANTS}


@pytest.mark.parametrize("name", [name for name in NAMED if name != "none"])
def test_it_can_be_applied_and_undone(name: str) -> None:
    places = [(module, function) for module, function, _ in NAMED[name].changes]
    before = [getattr(*place) for place in places]
    with mutations.applied(NAMED[name]):
        assert all(getattr(*place) is not original for place, original in zip(places, before, strict=True))
    assert [getattr(*place) for place in places] == before


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMED if name not in BY_HAND])
def test_the_checks_catch_it(name: str) -> None:
    with mutations.applied(NAMED[name]):
        caught = mutations.objective_and_kl(mutations.B)[1] or mutations.lengths()[1]
    assert bool(caught) == (name != "none")


@pytest.mark.parametrize("name", ["none", *BY_HAND])
def test_the_loss_by_hand_catches_it(name: str) -> None:
    """Advantages of 1 on four tokens whose ratio of 1.3 is clipped at 1.2, and of 0 on the one token of another row."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    advantages = torch.tensor([[1.0] * 4, [0.0] * 4])
    with mutations.applied(NAMED[name]):
        logprobs = torch.full((2, 4), math.log(1.3))
        loss, _ = mutations.ppo.policy_loss(logprobs, torch.zeros(2, 4), advantages, mask, clip=0.2)
    expected = {"none": -1.2 * 4 / 5, "no clip": -1.3 * 4 / 5, BY_HAND[1]: -1.2 / 2}
    assert loss.item() == pytest.approx(expected[name], abs=1e-6)
    assert len(set(expected.values())) == 3


def test_what_was_measured_is_not_measured_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []

    def row(mutant: object) -> str:
        measured.append(name := mutant.name)  # type: ignore[attr-defined]
        if len(measured) == 3:
            raise KeyboardInterrupt
        return f"| {name} | 0 / 0 | 0 / 0 | 0 / 0 | {len(measured)} |"

    monkeypatch.setattr(mutations, "row", row)
    monkeypatch.setattr("sys.argv", ["mutations.py", "--only", "KL as a k", "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        mutations.main()
    capsys.readouterr()
    mutations.main()
    names = [name for name in NAMED if "KL as a k" in name]
    assert len(names) == 3 and measured == [*names, names[2]]
    assert [line[-4:] for line in capsys.readouterr().out.splitlines()[2:]] == [" 1 |", " 2 |", " 4 |"]
    monkeypatch.setattr(mutations, "code", lambda: "another")
    mutations.main()
    assert measured[4:] == names
