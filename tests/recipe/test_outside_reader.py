"""benchmarks/outside_reader.py: its figures, against transformers and by hand."""

from pathlib import Path

import pytest
import torch
from outside_reader import SPEAKER, Reader, measure, repeats

from tutelage.data.records import Prompt
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.runs.folder import save_policy
from tutelage.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
SAID = [{"role": "user", "content": "hi, who is there?"}]


@pytest.fixture
def reader(tokenizer: Tokenizer) -> Reader:
    shape = GPTConfig(
        vocab_size=tokenizer.vocab_size, context=128, width=32, layers=2, heads=2, kv_heads=1, head_width=16, hidden=48
    )
    return Reader(GPT(shape).initialise(torch.Generator().manual_seed(0)).eval(), tokenizer)


def test_nats_are_those_of_transformers(reader: Reader, tmp_path: Path) -> None:
    """Of the answer's tokens alone: neither the prompt's nor the end of turn's."""
    save_policy(tmp_path, reader.model, reader.tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    answer = "nobody, and you?"
    before = theirs.apply_chat_template(SAID, add_generation_prompt=True, return_dict=False)
    ids = before + theirs(answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [-float(logprobs[at - 1, ids[at]]) for at in range(len(before), len(ids))]
    assert reader.nats(SAID, answer).tolist() == pytest.approx(expected, rel=1e-4)


def test_figures_of_given_answers(reader: Reader) -> None:
    prompt = Prompt(SAID, "test", "test", None)
    given = [
        (prompt, "no no, it is me", True),
        (prompt, "me\nPat: who?", False),
        (prompt, "me", True),
        (prompt, "", True),
    ]
    figures = measure(reader, given)
    assert (figures.answers, figures.repeats, figures.other_speaker, figures.cut_off) == (4, 0.25, 0.25, 0.25)
    assert figures.line_break == 0.25 and figures.words == (5 + 3 + 1) / 4
    nats = torch.cat([reader.nats(SAID, answer) for _, answer, _ in given])
    assert figures.nats == pytest.approx(float(nats.mean()))  # over all tokens, not over answers


@pytest.mark.parametrize(
    "text, found",
    [
        ("how are are you", True),
        ("How how", True),
        ("ha ha!", True),
        ("haha you", False),
        ("are you?????", False),
        ("", False),
    ],
)
def test_a_word_said_twice_in_a_row(text: str, found: bool) -> None:
    assert repeats(text) is found


@pytest.mark.parametrize(
    "text, found",
    [
        ("fine\nPat: and you?", True),
        ("Pat: and you?", True),
        ("fine\n小明：好", False),
        ("fine\n小明: 好", True),
        ("at 10:30 then", False),
        ("I like: cats", False),
        ("see http://x", False),
    ],
)
def test_another_speakers_line(text: str, found: bool) -> None:
    assert bool(SPEAKER.search(text)) is found
