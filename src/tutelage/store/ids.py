"""Names of rows: a prefix that says what it is, then 24 characters that sort by the time they were made.

    new_id("msg_")  ->  "msg_0042Lw8bnKxEaPOYk2U91q0Z"

48 bits of milliseconds and 80 random bits in base 62. Two names of the same millisecond count on from each other, so
that a list by name is a list by creation within one process.
"""

import secrets
import threading
import time

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # in the order of ASCII
LENGTH = 24

_lock = threading.Lock()
_last = 0


def now_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def new_id(prefix: str) -> str:
    """A name that no other row has, larger than all that this process gave out before."""
    global _last
    with _lock:
        _last = max(_last + 1, now_ms() << 80 | secrets.randbits(80))
        number = _last
    digits = []
    for _ in range(LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return prefix + "".join(reversed(digits))
