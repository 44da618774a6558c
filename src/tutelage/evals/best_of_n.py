"""Expected gold score of the best of n samples, for any n up to the N that were drawn.

    scores of N samples of a prompt -> expected gold score of the best of n, over all choices of n of the N

Every choice of n samples counts equally, so all samples are used and the estimate is unbiased (Nakano et al. 2021,
WebGPT, appendix I; Gao et al. 2022 use it for their curves).
"""

import math
from collections.abc import Sequence


def best_of_n(scores: Sequence[float], gold: Sequence[float], n: int) -> float:
    """Expected gold score of the sample with the highest score among n of the N = len(scores) samples; n <= N.

    It is the sum over ranks i = n .. N of C(i-1, n-1) / C(N, n) times the gold score of the i-th lowest-scoring sample:
    that sample is the best of n when the other n - 1 come from the i - 1 below it.
    """
    ranked = [g for _, g in sorted(zip(scores, gold, strict=True), key=lambda pair: pair[0])]
    weighted = sum(math.comb(i, n - 1) * g for i, g in enumerate(ranked))
    return weighted / math.comb(len(ranked), n)
