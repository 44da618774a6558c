"""Would an int8 or int4 frozen base make adapters faster here? Products of SmolLM2's shapes, by number of rows.

    python benchmarks/quantised_base.py  ->  a table on the screen

One row is a step of chat, 32 a step of sampling for PPO, 2,048 a step of SFT. bf16 is what adapters train on, packed
bf16 what sampling uses; int8 and int4 are torch's own weight-only products. Each cell: all four products of a block,
thirty blocks with weights of their own so that no cache holds them, median of rounds that take turns.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.model.prepack import ROWS, can_pack

SHAPES = [(576, 960), (576, 576), (576, 3072), (1536, 576)]  # columns, rows: query-key-value, out, gate and up, down
BLOCKS, ROUNDS = 30, 7
Product = Callable[[Tensor], Tensor]


def products(kind: str, columns: int, rows: int) -> Product | None:
    """x -> x W^T with a weight of this kind, or None where this torch has no such product."""
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
    nibbles = torch.randint(0, 16, (rows, columns), dtype=torch.int32)
    small = torch._convert_weight_to_int4pack_for_cpu(nibbles, 1)
    zeros = torch.ones(columns // 32, rows, 2).bfloat16()
    return lambda x: torch._weight_int4pack_mm_for_cpu(x, small, 32, zeros)


def main() -> None:
    torch.set_grad_enabled(False)
    kinds = ["bf16", "packed bf16", "int8", "int4"]
    models = {kind: [[products(kind, *shape) for shape in SHAPES] for _ in range(BLOCKS)] for kind in kinds}
    for rows in (1, 32, 2048):
        given = {columns: torch.randn(rows, columns).bfloat16() for columns, _ in SHAPES}
        times: dict[str, list[float]] = {kind: [] for kind in kinds if models[kind][0][0]}
        for turn in range(ROUNDS + 1):  # the first warms up
            for kind in times:
                start = time.perf_counter()
                for block in models[kind]:
                    for product, (columns, _) in zip(block, SHAPES, strict=True):
                        assert product is not None
                        product(given[columns])
                if turn:
                    times[kind].append(1e3 * (time.perf_counter() - start))
        medians = {kind: statistics.median(found) for kind, found in times.items()}
        print(f"{rows:5} rows  " + "  ".join(f"{kind} {ms:.1f} ms" for kind, ms in medians.items()), flush=True)


if __name__ == "__main__":
    main()
