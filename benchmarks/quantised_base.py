"""Measure whether an int8 or int4 frozen base would make adapters faster here: products of SmolLM2's shapes.

    python benchmarks/quantised_base.py [--run RUN] [--out runs/benchmarks]

The number of rows stands for a use: 1 is a step of chat, 32 a step of sampling for PPO, 2,048 a step of SFT. The
kinds of weights:
    bf16          what adapters train on
    packed bf16   what sampling uses
    int8, int4    torch's own weight-only products
    int8 both     activations in int8, too, with one scale for all rows: FBGEMM's products, which AVX512-VNNI computes

Each cell is the time of all four products of a block, for thirty blocks with separate weights, so that no cache holds
them. It is the median over rounds that alternate. Prints a Markdown table and writes it to OUT (record.py).

With --run, for example an imported SmolLM2, the script also measures how inexact sampling from int8 maps would be. The
model samples responses in bf16, and the table shows the error of their log-probabilities when every linear map but the
head is rounded to int8.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from record import Record, add_out
from torch import Tensor

from tutelage.model.gpt import GPT, Linear
from tutelage.model.prepack import ROWS, can_pack
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.rollout import Responses, pad_responses, response_logprobs
from tutelage.sampling.sampler import generate, inference_copy

SHAPES = [(576, 960), (576, 576), (576, 3072), (1536, 576)]  # columns, rows: query-key-value, out, gate and up, down
BLOCKS, ROUNDS = 30, 7
Product = Callable[[Tensor], Tensor]


def products(kind: str, columns: int, rows: int) -> Product | None:
    """x -> x W^T with a weight of this kind, or None if this torch has no such product."""
    weight = torch.randn(rows, columns).bfloat16()
    if kind == "bf16":
        return lambda x: F.linear(x, weight)
    if kind == "packed bf16":
        if not can_pack():
            return None
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    scale = weight.abs().amax(1).float() / 127
    if kind == "int8":
        whole, scales = (weight.float() / scale[:, None]).round().to(torch.int8), scale.bfloat16()
        return lambda x: torch._weight_int8pack_mm(x, whole, scales)
    if kind == "int8 both":
        if "fbgemm" not in torch.backends.quantized.supported_engines:
            return None
        torch.backends.quantized.engine = "fbgemm"
        zero = torch.zeros(rows, dtype=torch.long)
        whole = torch.quantize_per_channel(weight.float(), scale, zero, 0, torch.qint8)
        small = torch.ops.quantized.linear_prepack(whole, None)
        return lambda x: torch.ops.quantized.linear_dynamic(x.float(), small, False).bfloat16()
    nibbles = torch.randint(0, 16, (rows, columns), dtype=torch.int32)
    small = torch._convert_weight_to_int4pack_for_cpu(nibbles, 1)
    zeros = torch.ones(columns // 32, rows, 2).bfloat16()
    return lambda x: torch._weight_int4pack_mm_for_cpu(x, small, 32, zeros)


def rounded(x: Tensor, each: int | None) -> Tensor:
    """x rounded to int8 and back, with a scale per row (`each` -1) or one for the whole tensor (None)."""
    scale = (x.abs().max() if each is None else x.abs().amax(each, keepdim=True)).float() / 127
    return ((x.float() / scale).round() * scale).to(x.dtype)


def gaps(run: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, gap) per kind: log p - log p in bf16, (tokens,), of the model's own responses; first of bf16 itself."""
    policy, tokenizer = load_policy(run, choose_device("cpu", "bf16"))
    chance = torch.Generator().manual_seed(0)
    prompts = torch.randint(20, policy.config.vocab_size, (ROWS, 40), generator=chance).tolist()
    groups = generate(inference_copy(policy), prompts, range(ROWS), tokenizer.end_ids, SamplingConfig(max_tokens=48))
    flat = [response for group in groups for response in group]
    responses = pad_responses(prompts, flat, tokenizer.pad_id, torch.device("cpu"))
    exact = response_logprobs(policy, responses)[responses.mask]
    sampled = torch.tensor([p for response in flat for p in response.logprobs])
    yield "the sampler in bf16", sampled - exact
    maps = [module for module in policy.modules() if isinstance(module, Linear)]
    for module in maps:
        module.weight.data = rounded(module.weight.data, -1)
    yield "weights in int8, a scale per row", gap_to(exact, policy, responses)
    for each, name in ((-1, "a scale per token"), (None, "one scale for all")):
        hooks = [m.register_forward_pre_hook(lambda _, given, each=each: (rounded(given[0], each),)) for m in maps]
        yield f"weights and activations in int8, {name}", gap_to(exact, policy, responses)
        for hook in hooks:
            hook.remove()


def gap_to(exact: Tensor, policy: GPT, responses: Responses) -> Tensor:
    """log p of the responses' tokens minus `exact`, (tokens,)."""
    return response_logprobs(policy, responses)[responses.mask] - exact


def say_gaps(record: Record, run: Path) -> dict[str, list[float]]:
    """Print the first table. Returns each row's mean |gap| and mean gap, in nats per token, and worst |ratio - 1|."""
    record.say(
        "| sampled from | mean absolute gap, nats per token | mean gap | largest error of a ratio |\n|---|---|---|---|"
    )
    figures = {}
    for name, gap in gaps(run):
        figures[name] = [float(gap.abs().mean()), float(gap.mean()), float((gap.exp() - 1).abs().max())]
        record.say("| {} | {:.3f} | {:+.3f} | {:.2f} |".format(name, *figures[name]))
    record.say("")
    return figures


def say_times(record: Record) -> dict[int, dict[str, list[float]]]:
    """Print the second table. Returns the milliseconds of all blocks' products: {rows: {kind: [of each round]}}."""
    kinds = ["bf16", "packed bf16", "int8", "int8 both", "int4"]
    models = {kind: [[products(kind, *shape) for shape in SHAPES] for _ in range(BLOCKS)] for kind in kinds}
    known = [kind for kind in kinds if models[kind][0][0]]
    record.say(f"| rows | {' | '.join(f'{kind}, ms' for kind in known)} |\n|---|{'---|' * len(known)}")
    figures = {}
    for rows in (1, 32, 2048):
        given = {columns: torch.randn(rows, columns).bfloat16() for columns, _ in SHAPES}
        times: dict[str, list[float]] = {kind: [] for kind in known}
        for turn in range(ROUNDS + 1):  # the first is a warm-up
            for kind in known:
                start = time.perf_counter()
                for block in models[kind]:
                    for product, (columns, _) in zip(block, SHAPES, strict=True):
                        assert product is not None
                        product(given[columns])
                if turn:
                    times[kind].append(1e3 * (time.perf_counter() - start))
        figures[rows] = times
        record.say(f"| {rows:,} | {' | '.join(f'{statistics.median(found):.1f}' for found in times.values())} |")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--run", type=Path, help="model whose log-probabilities in int8 are compared with those in bf16"
    )
    add_out(parser)
    given = parser.parse_args()
    record = Record(given.out / "quantised_base", given)
    torch.set_grad_enabled(False)
    found = say_gaps(record, given.run) if given.run else {}
    record.leave({"gaps": found, "milliseconds": say_times(record)})


if __name__ == "__main__":
    main()
