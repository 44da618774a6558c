"""Numbers without sense are refused: one line that names the option, before any file is read.

Every number that any verb takes is tried with NaN, infinity and far below zero; the single limits follow.
"""

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch

from tutelage import cli
from tutelage.data.epochs import rows_of_tokens
from tutelage.data.packing import Example
from tutelage.errors import InputError
from tutelage.model.gpt import GPT
from tutelage.model.parameters import parameter_count
from tutelage.runs.adapter import AdapterConfig, adapt
from tutelage.stages.pretrain import PretrainConfig, check_memory, size_of, window_order
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
        ("grpo --policy x --reward x --prompts x --out OUT --iterations 3 --warmup 6", "--warmup 6: longer than"),
        ("sft --base x --demos x --out OUT --lora-rank 4 --lora-targets q query",
         "--lora-targets query: is not a linear map of a block; choose from q k v out gate up down"),
        ("sft --base x --demos x --out OUT --lora-rank 4 --lora-dropout 1", "--lora-dropout 1: must be below 1"),
        ("sft --base x --demos x --out OUT --lora-rank 4 --lora-alpha 0", "--lora-alpha 0: must be above 0"),
        ("sft --base x --demos x --out OUT --min-answer 9 --max-answer 8", "--min-answer 9 --max-answer 8"),
        ("tokenizer --corpus x --out OUT --vocab-size 200", "--vocab-size 200: must be at least 262"),
        ("tokenizer --corpus x --out OUT --vocab-size 1000000000", "1000000000: must be at most 1048576"),
        ("pretrain --tokenizer x --corpus x --out OUT --width 1000000000", "1000000000: must be at most 1048576"),
        ("pretrain --tokenizer x --corpus x --out OUT --context 1000000000000", "must be at most 1048576"),
        ("sft --base x --demos x --out OUT --seed 18446744073709551616", "18446744073709551616: must be a whole"),
        (f"sft --base x --demos x --out OUT --seed 1{'0' * 400}", "--seed 10000000... (401 digits): must be"),
        ("sft --base x --demos x --out OUT --batch 1000000000", "1000000000: must be at most 1048576"),
        ("sft --base x --demos x --out OUT --lora-rank 2 --lora-alpha 1e300", "1e+300: must be at most 1000000"),
        ("ppo --policy x --reward x --prompts x --no-ptx --out OUT --clip 1e308", "1e+308: must be at most 1e+30"),
        ("ppo --policy x --reward x --prompts x --no-ptx --out OUT --epochs 1000000000", "must be at most 10000"),
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


def test_a_model_that_no_memory_holds(tmp_path: Path) -> None:
    """The number of parameters is that of the model that would have been made."""
    config = PretrainConfig(width=64, layers=7, heads=2, kv_heads=1, head_width=16, hidden=96, context=32)
    assert size_of(config.shape(300)) == parameter_count(GPT(config.shape(300)))
    named = PretrainConfig(size="gpt2", context=64)
    assert size_of(named.shape(300)) == parameter_count(GPT(named.shape(300)))
    for changes in (
        dict(width=2**20),
        dict(layers=10_000, width=8192),
        dict(width=2**20, head_width=2**20, heads=2**20),
    ):
        shape = replace(config, **changes).shape(300)
        with pytest.raises(InputError, match=r"^pretrain: .*; give a smaller --width"):
            check_memory(shape, torch.device("cpu"))


def test_a_plan_that_no_memory_holds() -> None:
    """10^12 tokens in windows of 64, and in rows of 64 with a batch of a million."""
    ids = np.zeros(10_000, dtype=np.uint16)
    with pytest.raises(InputError, match="--tokens 1000000000000: fill .* windows of 64 tokens"):
        window_order(ids, PretrainConfig(tokens=10**12, context=64), torch.Generator())
    with pytest.raises(InputError, match="--tokens 1000000000000: fill .* rows of 64 tokens"):
        rows_of_tokens([Example([1] * 9, [True] * 9)], 10**12, 8, 64, torch.Generator())


def test_a_rank_above_the_width(make_gpt: Any) -> None:
    """The width is 32; q, k and v of the family are 32 wide, so 32 is the largest rank that means something."""
    with pytest.raises(InputError, match="--lora-rank 33: the model's width is 32"):
        adapt(make_gpt("llama"), SFTConfig(lora_rank=33), torch.Generator())
    adapt(make_gpt("llama"), SFTConfig(lora_rank=32), torch.Generator())
