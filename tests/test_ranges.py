"""Numbers without sense are refused: one line that names the option, before any file is read.

Every number that any verb takes is tried with NaN, infinity and far below zero; the single limits follow.
"""

import dataclasses
import math
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
import torch

from tutelage import cli
from tutelage.errors import InputError
from tutelage.runs.adapter import AdapterConfig, adapt
from tutelage.stages.sft import SFTConfig

SENSELESS: dict[type, tuple[float, ...]] = {int: (), float: (math.nan, math.inf)}


def numbers(cls: type[Any]) -> dict[str, type]:
    """{field: int or float}, tuples of numbers included."""
    found = {}
    for name, hint in get_type_hints(cls).items():
        kinds = {hint, *get_args(hint)} - {NoneType, ...}
        if len(kinds & {int, float}) == 1 and kinds <= {int, float, hint}:
            found[name] = (kinds & {int, float}).pop()
    return found


def configs() -> list[type[Any]]:
    """The config dataclasses of all verbs."""
    functions = [cli.load(verb) for verb in cli.VERBS]
    kinds = [kind for function in functions for kind in get_type_hints(function).values()]
    return sorted({kind for kind in kinds if dataclasses.is_dataclass(kind)}, key=lambda kind: kind.__name__)


def refused(cls: type[Any], name: str, value: float) -> bool:
    """Whether the config refuses this value in one line that names the option."""
    several = isinstance(next(f.default for f in dataclasses.fields(cls) if f.name == name), tuple)
    try:
        cls(**{name: (value,) if several else value})
    except InputError as error:
        return name in str(error).replace("-", "_") and "\n" not in str(error)
    return False


@pytest.mark.parametrize("cls", configs(), ids=lambda cls: cls.__name__)
def test_no_number_is_taken_that_means_nothing(cls: type[Any]) -> None:
    found = numbers(cls)
    values = [(name, value) for name, kind in found.items() for value in (-(10**9), *SENSELESS[kind])]
    taken = [case for case in values if not refused(cls, *case)]
    assert taken == []


def test_the_numbers_are_found() -> None:
    found = {name for cls in configs() for name in numbers(cls)}
    assert {"lr", "batch", "heldout", "temperature", "min_p", "epochs", "best_of", "port", "warmup"} <= found


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sft --base x --demos x --out OUT --lr 1e6", "--lr 1000000: must be at most 1"),
        ("pretrain --tokenizer x --corpus x --out OUT --muon-lr 20", "--muon-lr 20: must be at most 1"),
        ("pretrain --tokenizer x --corpus x --out OUT --lr 5", "--lr 5: must be at most 1"),
        ("ppo --policy x --reward x --prompts x --no-ptx --out OUT --lr 0", "--lr 0: must be above 0"),
        ("ppo --policy x --reward x --prompts x --no-ptx --out OUT --value-lr 2", "--value-lr 2: must be at most 1"),
        ("reward --base x --comparisons x --demos x --out OUT --heldout 1", "--heldout 1: must be below 1"),
        ("dpo --policy x --comparisons x --out OUT --heldout 1.5", "--heldout 1.5: must be below 1"),
        ("dpo --policy x --comparisons x --out OUT --warmup 30", "--warmup 30: must be at most 1"),
        ("dpo --policy x --comparisons x --out OUT --beta -1", "--beta -1: must be at least 0"),
        ("kto --policy x --feedback x --out OUT --epochs 0", "--epochs 0: must be at least 1"),
        ("rank --policy x --prompts x --panel x --out OUT --temperature 0", "--temperature 0: must be at least 0.01"),
        ("rloo --policy x --reward x --prompts x --out OUT --warmup 31", "--warmup 31: longer than the run of"),
        ("grpo --policy x --reward x --prompts x --out OUT --iterations 3 --warmup 4", "--warmup 4: longer than"),
        ("sft --base x --demos x --out OUT --lora-rank 4 --lora-targets q query",
         "--lora-targets query: is not a linear map of a block; choose from q k v out gate up down"),
        ("sft --base x --demos x --out OUT --lora-rank 4 --lora-dropout 1", "--lora-dropout 1: must be below 1"),
        ("sft --base x --demos x --out OUT --lora-rank 4 --lora-alpha 0", "--lora-alpha 0: must be above 0"),
        ("sft --base x --demos x --out OUT --min-answer 9 --max-answer 8", "--min-answer 9 --max-answer 8"),
        ("tokenizer --corpus x --out OUT --vocab-size 200", "--vocab-size 200: must be at least 262"),
        ("chat x --min-p 1.5", "min_p 1.5: must be between 0 and 1"),
        ("serve x --port 70000", "--port 70000: must be at most 65535"),
    ],
)  # fmt: skip
def test_single_limits(line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(line.replace("OUT", str(tmp_path / "out")).split())
    complaint = capsys.readouterr().err
    assert end.value.code == 2 and said in complaint and complaint.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_lies_at_the_limits_is_taken() -> None:
    SFTConfig(lr=1.0, warmup=1.0, floor=0.0, weight_decay=10.0, min_answer=8, max_answer=8)
    AdapterConfig(lora_rank=1, lora_targets=("q",), lora_dropout=0.999)


def test_a_rank_above_the_width(make_gpt: Any) -> None:
    """The width is 32; q, k and v of the family are 32 wide, so 32 is the largest rank that means something."""
    with pytest.raises(InputError, match="--lora-rank 33: the model's width is 32"):
        adapt(make_gpt("llama"), SFTConfig(lora_rank=33), torch.Generator())
    adapt(make_gpt("llama"), SFTConfig(lora_rank=32), torch.Generator())
