"""Row ids: a prefix that names the kind of row, then 24 characters that sort by creation time.

    new_id("msg_")  ->  "msg_0042Lw8bnKxEaPOYk2U91q0Z"

The 24 characters are 48 bits of milliseconds and 80 random bits in base 62. Within one process each id is larger than
the one before, even in the same millisecond, so sorting by id is sorting by creation.
"""

import secrets
import threading
import time

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # in ASCII order
LENGTH = 24

_lock = threading.Lock()
_last = 0


def now_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def new_id(prefix: str) -> str:
    """A unique id, larger than every id that this process made before."""
    global _last
    with _lock:
        _last = max(_last + 1, now_ms() << 80 | secrets.randbits(80))
        number = _last
    digits = []
    for _ in range(LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return prefix + "".join(reversed(digits))
