"""What the tests share: a tokenizer trained on the spot and tiny models of every family, all weights random.

Nothing is downloaded. Gains and biases are random as well, because a swap of two gains that are both 1 shows nowhere.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny tensors lose time on a second thread

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from postgresql import PostgreSQL  # noqa: E402

from tutelage.model.config import GPTConfig  # noqa: E402
from tutelage.model.gpt import GPT  # noqa: E402
from tutelage.text.bpe import train_bpe  # noqa: E402
from tutelage.text.tokenizer import Tokenizer  # noqa: E402

settings.register_profile("tests", deadline=None, derandomize=True)  # the same examples on every machine
settings.load_profile("tests")

TEXTS = [
    "the cat sat on the mat and the dog sat on the cat. what is the cat? the cat is on the mat.",
    "hello there, how are you today? I am fine, thank you, and how is your dog? she is fine, too.",
    "今天天气很好，你好吗？我很好，谢谢你。今天我们去看猫。",
    "one two three four five six seven; counting 1 2 3 4 5 6 7 8 9 10 and then some more words.",
] * 3

VOCABULARY = 300

SHAPES: dict[str, dict[str, Any]] = {
    "modern": dict(kv_heads=2, head_width=12, qk_norm=True),  # 4 heads of 12 are not the width, as Qwen3 allows
    "llama": dict(kv_heads=2),
    "qwen2": dict(kv_heads=2, qkv_bias=True),
    "mistral": dict(kv_heads=2, band=3, band_every=1),
    "gpt1": dict(norm="layer", post_norm=True, learned_positions=True, mlp="gelu", biases=True, norm_eps=1e-5),
    "gpt2": dict(norm="layer", learned_positions=True, mlp="gelu", biases=True, norm_eps=1e-5),
    "gpt3": dict(norm="layer", learned_positions=True, mlp="gelu", biases=True, norm_eps=1e-5, layers=4, band=3),
}

MakeGPT = Callable[..., GPT]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, VOCABULARY)


@pytest.fixture(scope="session")
def make_gpt() -> MakeGPT:
    """make_gpt("gpt2", seed=1, layers=3): a tiny model of that family with random weights, gains and biases."""

    def make(family: str = "modern", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> GPT:
        shape = dict(
            vocab_size=VOCABULARY, width=32, layers=2, heads=4, kv_heads=4, head_width=8, hidden=48, context=64
        )
        model = GPT(GPTConfig(**(shape | SHAPES[family] | changes)), dtype)
        return randomise(model, seed)

    return make


def randomise(model: GPT, seed: int) -> GPT:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            gain = parameter.ndim == 1 and bool((parameter == 1).all())
            parameter.copy_(1 + noise if gain else noise)
    return model.eval()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL of the tests' own; `new_database()` is the URL of an empty one."""
    server = PostgreSQL()
    yield server
    server.stop()


@pytest.fixture(params=sorted(SHAPES))
def family(request: pytest.FixtureRequest) -> str:
    """Each of the families in turn."""
    return request.param
