"""Python functions as rewards: how they are found and called, and how their results are checked."""

import sys
from pathlib import Path

import pytest
from world import assistant, user

from tutelage import cli
from tutelage.errors import InputError
from tutelage.rewards.function import FunctionReward, function_identity
from tutelage.rewards.open import reward_input

TALKS = [[user("hi"), assistant("yes")], [user("so?"), assistant("it is")]]


def write(path: Path, body: str) -> str:
    path.write_text(f"import math\nLIMIT = 9\ndef score(talks):\n    {body}\n")
    return f"{path}:score"


def test_it_is_called_with_the_conversations(tmp_path: Path) -> None:
    named = write(tmp_path / "mine.py", "return [len(t[-1]['content']) / 2 for t in talks]")
    assert FunctionReward(named)(TALKS) == [1.5, 2.5]
    torch_named = write(tmp_path / "theirs.py", "import torch; return torch.tensor([len(t) + .25 for t in talks])")
    assert FunctionReward(torch_named)(TALKS) == [2.25, 2.25]


def test_a_module_is_found_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards").mkdir()
    write(tmp_path / "rewards" / "of_mine.py", "return [LIMIT for _ in talks]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    assert FunctionReward("rewards.of_mine:score")(TALKS) == [9.0, 9.0]


def test_it_may_change_its_argument(tmp_path: Path) -> None:
    named = write(tmp_path / "mine.py", "[t[-1].clear() or t.clear() for t in talks]; return [0] * len(talks)")
    before = [[dict(message) for message in talk] for talk in TALKS]
    FunctionReward(named)(TALKS)
    assert before == TALKS


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [1.0]", "returned 1 scores for 2 conversations"),
        ("return [1.0, math.nan]", "score 1 is nan; return finite numbers"),
        ("return [-math.inf, 1]", "score 0 is -inf"),
        ("return [1e39, 1]", "score 0 is 1e+39"),
        ("return [10**400, 1]", "must return a list of numbers"),
        ("return ['a', 1]", "must return a list of numbers, one per conversation"),
        ("return None", "must return a list of numbers, one per conversation"),
        ("return 3", "must return a list of numbers, one per conversation"),
        ("raise KeyError('no such word')", "KeyError: 'no such word' (mine.py, line 4)"),
        ("return math.sqrt(-1)", "ValueError: "),
        ("return '12'", "it returned a str"),
        ("return {0: 1.0, 1: 2.0}", "it returned a dict"),
        ("return {1.0, 2.0}", "it returned a set"),
        ("return (len(t[9]) for t in talks)", "IndexError: list index out of range (mine.py, line 4)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_an_invalid_result_is_one_line(tmp_path: Path, body: str, said: str) -> None:
    named = write(tmp_path / "mine.py", body)
    with pytest.raises(InputError) as error:
        FunctionReward(named)(TALKS)
    assert said in str(error.value) and named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ("x = 1", "score", "has no function 'score'"),
        ("score = 1", "score", "has no function 'score'"),
        ("def score(:", "score", "cannot be imported (SyntaxError"),
        (
            "import nosuch_package",
            "score",
            "cannot be imported (ModuleNotFoundError: No module named 'nosuch_package')",
        ),
    ],
)
def test_a_missing_function_is_one_line(tmp_path: Path, content: str, name: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(InputError) as error:
        FunctionReward(f"{tmp_path / 'mine.py'}:{name}")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("def score(prompts, responses)", "takes (prompts, responses), and is called with one argument"),
        ("def score()", "takes (), and is called with one argument"),
        ("def score(*, talks)", "takes (*, talks), and is called"),
        ("def score(prompts, completions, **kwargs)", "missing a required argument: 'completions'"),
        ("async def score(talks)", "is an async function"),
    ],
)
def test_another_signature_is_explained_before_any_call(tmp_path: Path, head: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(f"{head}:\n    return [0.0]\n")
    with pytest.raises(InputError) as error:
        FunctionReward(f"{tmp_path / 'mine.py'}:score")
    assert said in str(error.value) and "it must be def NAME(conversations) -> list[float]" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "head", ["def score(talks)", "def score(talks, scale=2)", "def score(*talks)", "def score(completions, **more)"]
)
def test_signatures_that_one_argument_fits(tmp_path: Path, head: str) -> None:
    (tmp_path / "mine.py").write_text(f"{head}:\n    return [1.0, 2.0]\n")
    assert FunctionReward(f"{tmp_path / 'mine.py'}:score")(TALKS) == [1.0, 2.0]


def test_a_file_without_its_function_and_a_wrong_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def brief(talks):\n    return [0.0 for _ in talks]\n")
    with pytest.raises(InputError, match=r"mine.py: names a file; name the function in it, too: .*mine.py:FUNCTION"):
        reward_input(str(tmp_path / "mine.py"))
    with pytest.raises(InputError, match=r"has no function 'short' \(it has brief\); name one"):
        FunctionReward(f"{tmp_path / 'mine.py'}:short")
    (tmp_path / "mine.py").write_text("import sys; sys.exit(2)")
    with pytest.raises(InputError, match="cannot be imported \\(SystemExit: 2\\)"):
        FunctionReward(f"{tmp_path / 'mine.py'}:brief")


@pytest.mark.parametrize("verb", ["ppo", "rloo", "grpo", "best-of-n", "score", "evaluate"])
def test_the_help_shows_the_signature(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["help", verb])
    assert "def f(conversations) -> list[float]" in " ".join(capsys.readouterr().out.split())


def test_its_identity_is_its_name_and_its_file_and_needs_no_call(tmp_path: Path) -> None:
    named = write(tmp_path / "mine.py", "return [0] * len(talks)")
    first = function_identity(named)
    assert first == function_identity(named) and first.name == named
    other = function_identity(named.replace(":score", ":other"))
    write(tmp_path / "mine.py", "return [1] * len(talks)")
    assert len({first.text, other.text, function_identity(named).text}) == 3
    (tmp_path / "mine.py").write_text("raise SystemExit('was run')")
    function_identity(named)
    for missing in (f"{tmp_path / 'none.py'}:f", "no.such.module:f", "nosuch:f", ":f", "..a:f"):
        with pytest.raises(InputError, match="check the part before the colon|is neither a run nor a module"):
            function_identity(missing)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "raise RuntimeError('no\\nlicence')",
            "cannot be imported (RuntimeError: no licence); fix it, or install what it imports",
        ),
        ("raise ValueError('no')", "cannot be imported (ValueError: no)"),
        ("import nosuch_package", "cannot be imported (ModuleNotFoundError: No module named 'nosuch_package')"),
        ("from json import nosuch", "cannot be imported (ImportError: cannot import name"),
        ("", "is neither a run nor a module that Python finds from this folder"),
    ],
)
def test_a_package_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, said: str
) -> None:
    """Hashing the inputs before a run imports a module's parent packages, which may fail."""
    (tmp_path / "fails").mkdir()
    (tmp_path / "fails" / "__init__.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fails", raising=False)
    with pytest.raises(InputError) as error:
        function_identity("fails.inside:score")
    assert f"reward fails.inside: {said}" in str(error.value) and "\n" not in str(error.value)
