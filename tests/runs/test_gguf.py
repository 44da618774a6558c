"""GGUF files: transformers reads ours and computes our logits; each quantization is unpacked by its definition."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import quantize
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import normalizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.errors import InputError
from tutelage.model.config import RopeScaling
from tutelage.model.gguf import infer_scaling, rope_factors
from tutelage.model.gpt import GPT
from tutelage.runs import gguf_file
from tutelage.runs.adapter import EXACT
from tutelage.runs.device import Device
from tutelage.runs.export import export
from tutelage.runs.folder import load_policy, save_policy
from tutelage.runs.gguf_file import read_gguf, read_gguf_tokenizer, write_gguf
from tutelage.stages.import_model import import_model
from tutelage.stages.interpolate import interpolate
from tutelage.text.gguf_vocabulary import RULES, from_gguf, to_gguf
from tutelage.text.tokenizer import Tokenizer

IDS = torch.tensor([[15, 17, 260, 33, 8, 120, 77, 201, 9, 45], [61, 22, 22, 290, 14, 15, 16, 99, 100, 33]])
LLAMA3 = RopeScaling(factor=8.0, low_frequency=1.0, high_frequency=4.0, original_context=64)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", dict(norm_eps=1e-5)),
    "llama3": ("llama", dict(norm_eps=1e-5, rope_scaling=LLAMA3, head_width=16)),
    "untied": ("llama", dict(tied=False)),
    "mistral": ("mistral", dict(band=64)),  # a band as wide as the context
    "qwen2": ("qwen2", {}),
    "qwen3": ("modern", dict(head_width=16)),
    "gpt2": ("gpt2", {}),
}
TEXTS = ["Hello there, how are 42 you?\n\n\nFine: I'm ok...  ", "今天天气很好，你好吗？", "  x\t1234 <|end|> É"]


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest, make_gpt: Callable[..., GPT]) -> GPT:
    family, changes = SHAPES[request.param]
    return make_gpt(family, **changes)


def rounded(model: GPT, dtype: torch.dtype) -> GPT:
    """The same model with its matrices rounded as the file's precision rounds them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "positions" not in name:
                parameter.copy_(parameter.to(dtype).float())
    return model


@pytest.mark.parametrize("kind, dtype", [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_what_was_written_comes_back(model: GPT, tokenizer: Tokenizer, tmp_path: Path, kind: Any, dtype: Any) -> None:
    write_gguf(tmp_path / "model.gguf", model, tokenizer, kind)
    again, restored = read_gguf(tmp_path / "model.gguf")
    torch.testing.assert_close(again.eval()(IDS), rounded(model, dtype)(IDS), atol=1e-4, rtol=1e-4)
    assert restored.vocabulary_sha256 == tokenizer.vocabulary_sha256
    assert [restored.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert (restored.pad_id, restored.end_of_turn_id, restored.chat_template) == (
        tokenizer.pad_id, tokenizer.end_of_turn_id, tokenizer.chat_template,
    )  # fmt: skip


@pytest.mark.parametrize("shape", ["llama", "untied", "mistral", "qwen2", "qwen3", "gpt2"])
def test_transformers_reads_our_file_and_computes_our_logits(
    make_gpt: Callable[..., GPT], tokenizer: Tokenizer, tmp_path: Path, shape: str
) -> None:
    """An independent check: their GGUF reader does not know our order of channels."""
    family, changes = SHAPES[shape]
    theirs_only = {"qwen3": {"head_width": 128}, "gpt2": {"hidden": 128, "context": 1024}}  # it reads no others
    ours = make_gpt(family, **changes | theirs_only.get(shape, {}))
    write_gguf(tmp_path / "model.gguf", ours, tokenizer, "f16")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).eval()
    torch.testing.assert_close(theirs(IDS).logits, rounded(ours, torch.float16)(IDS), atol=1e-3, rtol=1e-3)


def test_q8_0_is_near_enough(model: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", model, tokenizer, "q8_0")
    again, _ = read_gguf(tmp_path / "model.gguf")
    for (name, mine), theirs in zip(again.named_parameters(), model.parameters(), strict=True):
        width = theirs.abs().max() / 127  # of a step: half of it is the most that rounding moves a weight
        assert (mine - theirs).abs().max() <= 0.51 * width, name


def test_the_folder_reader_takes_a_file(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", make_gpt(), tokenizer, "f16")
    loaded, _ = load_policy(tmp_path / "model.gguf", Device(torch.device("cpu"), torch.bfloat16, 1, "the tests"))
    assert loaded.compute_dtype == torch.bfloat16 and loaded.embedding.weight.dtype == torch.float32


# --- quantizations, unpacked by hand


def half(value: float) -> bytes:
    return struct.pack("<e", value)


def q4_0(rng: np.random.Generator) -> tuple[bytes, list[float]]:
    d, nibbles = 0.25, rng.integers(0, 16, 32)
    packed = bytes(int(nibbles[i]) | int(nibbles[i + 16]) << 4 for i in range(16))
    return half(d) + packed, [d * (int(q) - 8) for q in nibbles]


def q4_1(rng: np.random.Generator) -> tuple[bytes, list[float]]:
    d, least, nibbles = 0.125, -1.5, rng.integers(0, 16, 32)
    packed = bytes(int(nibbles[i]) | int(nibbles[i + 16]) << 4 for i in range(16))
    return half(d) + half(least) + packed, [d * int(q) + least for q in nibbles]


def q8_0(rng: np.random.Generator) -> tuple[bytes, list[float]]:
    d, values = 0.5, rng.integers(-127, 128, 32)
    return half(d) + bytes(int(v) & 255 for v in values), [d * int(v) for v in values]


def q4_k(rng: np.random.Generator) -> tuple[bytes, list[float]]:
    """256 weights: eight groups of 32, each with a scale and a minimum of 6 bits."""
    d, dmin = 0.5, 0.25
    scales, minima, nibbles = rng.integers(0, 64, 8), rng.integers(0, 64, 8), rng.integers(0, 16, 256)
    packed = [0] * 12
    for j in range(4):
        packed[j] = int(scales[j]) | int(scales[j + 4] >> 4) << 6
        packed[j + 4] = int(minima[j]) | int(minima[j + 4] >> 4) << 6
        packed[j + 8] = int(scales[j + 4] & 15) | int(minima[j + 4] & 15) << 4
    quants = []
    for pair in range(4):  # two groups of 32 share 32 bytes: the first in the low halves
        low, high = nibbles[64 * pair : 64 * pair + 32], nibbles[64 * pair + 32 : 64 * pair + 64]
        quants += [int(a) | int(b) << 4 for a, b in zip(low, high, strict=True)]
    values = [d * int(scales[i // 32]) * int(nibbles[i]) - dmin * int(minima[i // 32]) for i in range(256)]
    return half(d) + half(dmin) + bytes(packed) + bytes(quants), values


def q6_k(rng: np.random.Generator) -> tuple[bytes, list[float]]:
    """256 weights of 6 bits, four lower and two upper, in sixteen groups of 16 with a scale of 8 bits."""
    d, scales, values = 0.125, rng.integers(-128, 128, 16), rng.integers(0, 64, 256)
    low, high = [0] * 128, [0] * 64
    for n in range(2):
        v = values[128 * n : 128 * n + 128]
        for i in range(32):
            low[64 * n + i] = int(v[i] & 15) | int(v[i + 64] & 15) << 4
            low[64 * n + i + 32] = int(v[i + 32] & 15) | int(v[i + 96] & 15) << 4
            high[32 * n + i] = sum(int(v[i + 32 * k] >> 4) << 2 * k for k in range(4))
    unpacked = [d * int(scales[i // 16]) * (int(values[i]) - 32) for i in range(256)]
    return bytes(low) + bytes(high) + bytes(int(s) & 255 for s in scales) + half(d), unpacked


BLOCKS = {"Q4_0": q4_0, "Q4_1": q4_1, "Q8_0": q8_0, "Q4_K": q4_k, "Q6_K": q6_k}


@pytest.mark.parametrize("kind", [*BLOCKS, "F32", "F16", "BF16"])
def test_a_quantized_matrix_is_unpacked_by_its_definition(
    kind: str, make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = make_gpt("llama", width=256, heads=4, head_width=64, hidden=64)
    rows, rng, how = [], np.random.default_rng(0), gguf.GGMLQuantizationType[kind]
    if kind in BLOCKS:
        size = 256 if kind.endswith("K") else 32
        blocks = [[BLOCKS[kind](rng) for _ in range(256 // size)] for _ in range(64)]
        rows = [[value for _, values in row for value in values] for row in blocks]
        stored = np.array([list(b"".join(data for data, _ in row)) for row in blocks], dtype=np.uint8)
    else:
        rows = rng.integers(-64, 64, (64, 256)).tolist()  # exact in any of them
        stored = quantize(np.array(rows, dtype=np.float32), how)
    original = gguf.GGUFWriter.add_tensor

    def add_tensor(self: Any, name: str, tensor: Any, raw_dtype: Any = None) -> None:
        if name == "blk.1.ffn_up.weight":
            return original(self, name, stored, raw_dtype=how)
        return original(self, name, tensor, raw_dtype=raw_dtype)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", add_tensor)
    write_gguf(tmp_path / "model.gguf", ours, tokenizer, "f16")
    again, _ = read_gguf(tmp_path / "model.gguf")
    up = again.blocks[1].mlp.up.weight[64:]  # gate, then up
    torch.testing.assert_close(up, torch.tensor(rows, dtype=torch.float32), atol=1e-6, rtol=1e-6)


# --- tokenizers


def with_rule(tokenizer: Tokenizer, rule: str, **switches: bool) -> Tokenizer:
    """The same vocabulary, cut by a rule that llama.cpp knows."""
    backend = BackendTokenizer.from_str(tokenizer.to_json())
    backend.pre_tokenizer = RULES[rule]()
    if rule == "qwen2":
        backend.normalizer = normalizers.NFC()
    state = json.loads(backend.to_str())
    state["model"] |= {"ignore_merges": rule == "llama-bpe"} | switches
    return Tokenizer(BackendTokenizer.from_str(json.dumps(state)), tokenizer.settings)


@pytest.mark.parametrize("rule", RULES)
def test_a_vocabulary_in_gguf_cuts_text_as_before(tokenizer: Tokenizer, rule: str, tmp_path: Path) -> None:
    ruled = with_rule(tokenizer, rule)
    metadata, exact = to_gguf(ruled, 300)
    assert exact and metadata["tokenizer.ggml.pre"] == rule and "tokenizer.huggingface.json" not in metadata
    again = from_gguf(metadata)
    assert [again.encode(text) for text in TEXTS] == [ruled.encode(text) for text in TEXTS]
    assert again.special == ruled.special
    again.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert [theirs(text, split_special_tokens=True)["input_ids"] for text in TEXTS] == [again.encode(t) for t in TEXTS]


def test_a_rule_of_our_own_is_written_whole_and_said_to_be_inexact(tokenizer: Tokenizer) -> None:
    assert not to_gguf(with_rule(tokenizer, "llama-bpe", ignore_merges=False), 300)[1]
    metadata, exact = to_gguf(tokenizer, 300)
    assert not exact and metadata["tokenizer.ggml.pre"] in RULES
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"][:-1], "other"]
    with pytest.raises(InputError, match="other tokens"):
        from_gguf(metadata)


@pytest.mark.parametrize("key, value", [("model", "llama"), ("pre", "tekken")])
def test_another_kind_of_tokenizer_is_refused(tokenizer: Tokenizer, key: str, value: str) -> None:
    metadata, _ = to_gguf(tokenizer, 300)
    with pytest.raises(InputError, match=f"{value!r}.*Hugging Face folder"):
        from_gguf(metadata | {f"tokenizer.ggml.{key}": value})


def test_llama_cpp_is_told_every_end(tokenizer: Tokenizer) -> None:
    """It stops at eos, eot and eom (llama.cpp, gguf-py/gguf/constants.py: Keys.Tokenizer)."""
    keys = gguf.Keys.Tokenizer
    settings = tokenizer.settings | {"chat_template": tokenizer.chat_template + "{{ eos_token }}"}
    several = Tokenizer(tokenizer._backend, settings | {"eos_token": "<|endoftext|>"}, ends=(2,))
    metadata, _ = to_gguf(several, 300)
    assert [metadata[key] for key in (keys.EOS_ID, keys.EOT_ID, keys.EOM_ID)] == [0, 5, 2]


def test_spare_rows_get_names_and_lose_them_again(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ours = make_gpt("qwen2", vocab_size=303)
    write_gguf(tmp_path / "model.gguf", ours, tokenizer, "f16")
    again, restored = read_gguf(tmp_path / "model.gguf")
    assert (again.config.vocab_size, restored.vocab_size) == (303, 300)
    assert read_gguf_tokenizer(tmp_path / "model.gguf").vocabulary_sha256 == tokenizer.vocabulary_sha256


def test_pieces_of_text_are_not_written_as_bytes(tokenizer: Tokenizer) -> None:
    """A SentencePiece vocabulary written as a byte-level one would split nearly all text wrongly."""
    state = json.loads(tokenizer.to_json()) | {"decoder": {"type": "Metaspace", "replacement": "▁",
                                                           "prepend_scheme": "always", "split": True}}  # fmt: skip
    with pytest.raises(InputError, match="only byte-level BPE"):
        to_gguf(Tokenizer(BackendTokenizer.from_str(json.dumps(state)), tokenizer.settings), 300)


# --- what a file says of ends, of BOS and of numbers


def test_every_end_that_a_file_names_ends_an_answer(tokenizer: Tokenizer) -> None:
    """As in Llama 3's files: eos ends a text, eot a turn, eom a call. The template decides which one is trained on."""
    metadata, _ = to_gguf(tokenizer, 300)
    names = {"eos": "<|endoftext|>", "eot": "<|end|>", "eom": "<|system|>"}
    ids = {f"tokenizer.ggml.{key}_token_id": tokenizer.special[token] for key, token in names.items()}
    again = from_gguf(metadata | ids)
    assert again.end_of_turn_id == tokenizer.special["<|end|>"]
    assert set(again.end_ids) == set(ids.values())
    written, _ = to_gguf(again, 300)
    assert {written[f"tokenizer.ggml.{key}_token_id"] for key in names} == set(ids.values())
    assert set(from_gguf(written).end_ids) == set(ids.values())
    alone, _ = to_gguf(tokenizer, 300)  # one end: llama.cpp finds it under both keys
    assert alone["tokenizer.ggml.eot_token_id"] == alone["tokenizer.ggml.eos_token_id"] == tokenizer.end_of_turn_id


def with_bos(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """The same tokenizer with a post-processor as Llama's: BOS before every text."""
    backend = BackendTokenizer.from_str(with_rule(tokenizer, "gpt-2").to_json())
    backend.post_processor = processors.TemplateProcessing(
        single=["<|endoftext|>", "$A"], special_tokens=[("<|endoftext|>", 0)]
    )
    return Tokenizer(backend, tokenizer.settings | {"bos_token": "<|endoftext|>", "chat_template": template})


def test_bos_comes_back(tokenizer: Tokenizer) -> None:
    """llama.cpp begins chats with it, too. A file whose chats begin without BOS therefore says that none is added."""
    first = "{{ bos_token }}" + tokenizer.chat_template
    metadata, _ = to_gguf(with_bos(tokenizer, first), 300)
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert from_gguf(metadata).encode_text("the cat") == [0, *tokenizer.encode("the cat")]
    never, _ = to_gguf(with_bos(tokenizer, tokenizer.chat_template), 300)
    assert never["tokenizer.ggml.add_bos_token"] is False
    llama = {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": None}
    unsaid = {key: value for key, value in (metadata | llama).items() if value is not None}
    assert from_gguf(unsaid).encode_text("a")[0] == 0  # llama.cpp's default for this rule


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 1e-12, 5e-6, 1.3e-5])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_epsilon_comes_back_as_config_json_has_it(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, family: str, eps: float
) -> None:
    """GGUF holds it in fp32, where 1e-05 reads as 9.99999974737875e-06."""
    write_gguf(tmp_path / "model.gguf", make_gpt(family, norm_eps=eps), tokenizer, "f16")
    assert float(np.float32(eps)) != eps
    assert read_gguf(tmp_path / "model.gguf")[0].config.norm_eps == eps


@pytest.mark.parametrize("shape", ["llama3", "mistral", "qwen2", "qwen3", "gpt2"])
def test_a_file_and_its_original_interpolate(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, shape: str) -> None:
    family, changes = SHAPES[shape]
    save_policy(tmp_path / "folder", make_gpt(family, **changes), tokenizer)
    export(tmp_path / "folder", tmp_path / "model.gguf", "gguf")
    import_model(tmp_path / "model.gguf", tmp_path / "run")
    interpolate(tmp_path / "folder", tmp_path / "run", tmp_path / "between")
    assert load_policy(tmp_path / "between", EXACT)[0](IDS).isfinite().all()


# --- Llama 3's factors


def test_the_scaling_is_found_from_its_factors() -> None:
    llama = RopeScaling(factor=32.0, low_frequency=1.0, high_frequency=4.0, original_context=8192)
    found = infer_scaling(rope_factors(llama, 64, 500_000.0), 500_000.0)
    assert found == llama
    other = RopeScaling(factor=8.0, low_frequency=1.0, high_frequency=4.0, original_context=1000)
    assert infer_scaling(rope_factors(other, 128, 10_000.0), 10_000.0) == other
    with pytest.raises(ValueError, match="not those of Llama 3"):
        infer_scaling(torch.linspace(1, 8, 32), 10_000.0)


# --- what is not read, what is not written


def a_file(folder: Path, make_gpt: Any, tokenizer: Tokenizer) -> Path:
    write_gguf(folder / "model.gguf", make_gpt("llama"), tokenizer, "f16")
    return folder / "model.gguf"


def endless_array(whole: bytes) -> bytes:
    """A file whose list of token types claims 2^60 entries."""
    key = b"tokenizer.ggml.token_type"
    at = whole.index(key) + len(key) + 8
    return whole[:at] + struct.pack("<Q", 2**60) + whole[at + 8 :]


def test_a_broken_file_is_refused_in_one_line(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = a_file(tmp_path, make_gpt, tokenizer)
    whole = path.read_bytes()
    many = struct.pack("<Q", 2**60)
    for broken in (
        b"", b"GGUF", whole[:100], whole[: len(whole) // 2], whole[:-2000], b"PK\x03\x04" + whole[4:],
        whole[:8] + many + whole[16:], whole[:16] + many + whole[24:], endless_array(whole),
        whole.replace(b"blk.0.attn_q.weight\x02\x00\x00\x00\x20", b"blk.0.attn_q.weight\x02\x00\x00\x00\xff"),
    ):  # fmt: skip
        path.write_bytes(broken)
        with pytest.raises(InputError) as refused:
            read_gguf(path)
        assert "\n" not in str(refused.value)


def test_a_header_may_not_list_without_end(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library takes 300 bytes for each value, so their number is limited, not only by the size of the file."""
    path = a_file(tmp_path, make_gpt, tokenizer)
    for name, limit, words in (
        ("MOST_VALUES", 500, "values in lists; at most 500"),
        ("MOST_ENTRIES", 20, "at most 20"),
    ):
        with monkeypatch.context() as patch, pytest.raises(InputError, match=words):
            patch.setattr(gguf_file, name, limit)
            read_gguf(path)


def test_a_tensor_without_numbers_is_refused_in_one_line(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """The query matrix has no columns, and its offset lies behind the end of all files."""
    path = a_file(tmp_path, make_gpt, tokenizer)
    whole = path.read_bytes()
    at = whole.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight")
    for begin, number in ((at + 4, 0), (at + 24, 2**64 - 32)):
        path.write_bytes(whole[:begin] + struct.pack("<Q", number) + whole[begin + 8 :])
        with pytest.raises(InputError, match="^[^\n]*$"):
            read_gguf(path)
    assert not [one for one in recwarn if issubclass(one.category, RuntimeWarning)]


def test_text_that_is_no_text_is_refused_in_one_line(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = a_file(tmp_path, make_gpt, tokenizer)
    path.write_bytes(path.read_bytes().replace(b"<|assistant|>", b"\xff\xfe<ssistant|>"))
    for read in (read_gguf, read_gguf_tokenizer):
        with pytest.raises(InputError, match=f"{path}: cannot be read as GGUF .UnicodeDecodeError"):
            read(path)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("llama.context_length", "64", "context_length is '64'; it must be a whole number"),
        ("llama.attention.head_count", 4.0, "head_count is 4.0"),
        ("llama.attention.layer_norm_rms_epsilon", "x", "epsilon is 'x'; it must be a number above 0"),
        ("llama.rope.freq_base", 0.0, "freq_base is 0.0"),
        ("tokenizer.ggml.eos_token_id", 2**31, "eos_token_id is 2147483648"),
        ("tokenizer.ggml.eos_token_id", 10**6, "cannot be read .* index out of range"),
        ("tokenizer.ggml.tokens", "all", "tokens is 'all'; it must be a list"),
        ("tokenizer.ggml.merges", ["a"], "cannot be read"),
        ("tokenizer.chat_template", 5, "chat_template is 5; it must be a string"),
        ("general.architecture", "mamba", "'mamba' is not supported"),
        ("llama.embedding_length", 48, "asks for"),
        ("llama.attention.head_count", 3, "does not describe|asks for"),
        ("llama.block_count", 3, "lack"),
        ("llama.block_count", 2**31, "layers"),
        ("llama.context_length", 2**31, "positions"),
        ("llama.feed_forward_length", 2**31, "asks for"),
        ("llama.attention.head_count", 0, "does not describe"),
        ("llama.expert_count", 8, "mixture of experts"),
        ("llama.rope.scaling.type", "yarn", "'yarn'"),
        ("llama.rope.dimension_count", 4, "4 of 8 channels"),
        ("tokenizer.chat_template", "", "no chat template"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any,
    words: str,
) -> None:  # fmt: skip
    from tutelage.runs import gguf_file

    original = gguf_file.to_metadata
    monkeypatch.setattr(gguf_file, "to_metadata", lambda config: original(config))
    add = gguf_file._add
    changed: set[str] = set()

    def lie(writer: Any, name: str, told: Any) -> None:
        changed.add(name)
        add(writer, name, value if name == key else told)

    monkeypatch.setattr(gguf_file, "_add", lie)
    if key == "general.architecture":
        monkeypatch.setattr(gguf_file, "architecture_of", lambda config: value)
    elif key not in (*original(make_gpt("llama").config), "tokenizer.chat_template"):
        monkeypatch.setattr(gguf_file, "to_metadata", lambda config: original(config) | {key: value})
    path = a_file(tmp_path, make_gpt, tokenizer)
    with pytest.raises(InputError, match=words) as refused:
        read_gguf(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("family", ["gpt1", "gpt3", "mistral"])
def test_what_llama_cpp_does_not_have_is_not_written(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, family: str
) -> None:
    with pytest.raises(InputError, match="llama.cpp does not support this"):
        write_gguf(tmp_path / "model.gguf", make_gpt(family), tokenizer, "f16")
    assert not list(tmp_path.iterdir())
