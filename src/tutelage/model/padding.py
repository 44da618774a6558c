"""Lengths of padded batches.

On a CPU torch generates code for each new shape of a bf16 matrix product (oneDNN). For a small model this took as long
as the products: half of the demo's reward training (LOG.md). With few different lengths the shapes repeat, and their
code is reused.
"""

STEP = 16  # tokens; 32 and 64 took as long


def rounded(length: int) -> int:
    """The next multiple of STEP."""
    return -(-length // STEP) * STEP
