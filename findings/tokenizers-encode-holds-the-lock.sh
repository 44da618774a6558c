#!/bin/bash
# tokenizers 0.23.3: `encode` keeps Python's interpreter lock for the whole text; `encode_batch` of one text does not.
#
# Guess:     the work is done in Rust, so other Python threads run while a text is encoded.
# Behaviour: `encode` and `decode` hold the lock until they are done: no other thread runs for seconds on a long text.
#            `encode_batch([text])` does the same work without the lock. `encode_batch_fast`, which leaves the offsets
#            out, also takes half of the time and hands its result over at once.
# Seen:      a thread that sleeps 1 ms at a time beside the encoding of 3.6 MB, seconds and its longest gap:
#                encode               3.041 2.849
#                encode_batch         3.157 0.158
#                encode_batch_fast    1.646 0.009
# So a server that calls `encode` on a thread pool stops all its streams while somebody sends a long text.
# Exit status 0: still so. 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import threading
import time

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
trainer = trainers.BpeTrainer(
    vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
)
tokenizer.train_from_iterator(["the cat sat on the mat"] * 20, trainer)
text = "the cat sat on the mat. " * 150_000


def beside(work):
    """Seconds of the work, and the longest gap of a thread that sleeps 1 ms at a time."""
    gaps, stop = [], threading.Event()

    def tick():
        last = time.monotonic()
        while not stop.is_set():
            time.sleep(0.001)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    thread = threading.Thread(target=tick)
    thread.start()
    time.sleep(0.05)
    begun = time.monotonic()
    work()
    seconds = time.monotonic() - begun
    stop.set()
    thread.join()
    return seconds, max(gaps)


share = {}
for name, given in (("encode", text), ("encode_batch", [text]), ("encode_batch_fast", [text])):
    seconds, gap = beside(lambda: getattr(tokenizer, name)(given))
    print(f"{name:20} {seconds:.3f} {gap:.3f}")
    share[name] = gap / seconds
assert share["encode"] > 0.7, "encode lets other threads run now"
assert share["encode_batch"] < 0.3 and share["encode_batch_fast"] < 0.3, "encode_batch holds the lock now"
PYTHON
