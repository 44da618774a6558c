"""What the best of n samples is worth, for every n up to the N that were drawn.

    scores of N samples per prompt -> how good the favourite of n would be, on average over all choices of n of the N

Every choice of n among the N counts equally, so no sample is wasted and the estimate is unbiased (Nakano et al. 2021,
WebGPT, appendix I; Gao et al. 2022 use it for their curves).
"""

import math
from collections.abc import Sequence


def best_of_n(scores: Sequence[float], gold: Sequence[float], n: int) -> float:
    """Expected gold of the sample with the highest score among n of the N = len(scores) that were drawn; n <= N.

    sum over ranks i = n .. N of C(i-1, n-1) / C(N, n) gold of the i-th lowest score: it is the favourite when the other
    n - 1 come from the i - 1 below it.
    """
    ranked = [g for _, g in sorted(zip(scores, gold, strict=True), key=lambda pair: pair[0])]
    ways = sum(math.comb(i, n - 1) * g for i, g in enumerate(ranked))
    return ways / math.comb(len(ranked), n)
