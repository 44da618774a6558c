"""A model in one GGUF file, the format of llama.cpp: read whatever its quantization, written in F16, BF16 or Q8_0.

    read_gguf(path) -> GPT, Tokenizer;  write_gguf(path, GPT, Tokenizer, kind)

The library `gguf` reads and writes the file; names and shapes are translated by `model/gguf.py`, the tokenizer by
`text/gguf_vocabulary.py`. Weights are fp32 in memory: a quantized file is unpacked once, when it is imported.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tutelage.atomic import atomic_path
from tutelage.errors import InputError
from tutelage.model.families import build
from tutelage.model.gguf import architecture_of, from_metadata, load_gguf_weights, to_gguf_weights, to_metadata
from tutelage.model.gpt import GPT
from tutelage.text.gguf_vocabulary import from_gguf, to_gguf
from tutelage.text.tokenizer import Tokenizer

Kind = Literal["f16", "bf16", "q8_0"]
LLAMA_FILE_TYPE = {"f16": 1, "q8_0": 7, "bf16": 32}


def read_gguf(path: Path) -> tuple[GPT, Tokenizer]:
    """The model in fp32 and its tokenizer.

    Raises InputError for a file that is cut short or whose header lies, and for a model that is not computed here.
    """
    metadata, tensors = _read_file(path)
    config, tokenizer = from_metadata(metadata, tensors), from_gguf(metadata)
    if (told := len(metadata["tokenizer.ggml.tokens"])) != config.vocab_size:
        raise InputError(f"{path}: names {told} tokens, its embedding has {config.vocab_size} rows; download it again")
    model = build(config, lambda model: load_gguf_weights(model, tensors), len(tensors), torch.float32)
    return model, tokenizer


def read_gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer alone."""
    return from_gguf(_metadata(_open(path)))


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    reader = _open(path)
    return _metadata(reader), _guarded(path, lambda: {t.name: _unpacked(t) for t in reader.tensors})


def _metadata(reader: Any) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def _open(path: Path) -> Any:
    """The library's reader, which stops where the file ends, whatever the header promises.

    It takes its pieces out of a plain view of the file: 800,000 of them out of a memory map take four times as long.
    """
    library: Any = _library()

    class Reader(library.GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            plain = self.__dict__.setdefault("plain", np.asarray(self.data))
            kind = np.dtype(dtype).newbyteorder(override_order or self.byte_order)
            end = int(offset) + kind.itemsize * int(count)
            if end > len(plain):
                raise ValueError("it ends before its header says")
            return plain[int(offset) : end].view(kind)

    return _guarded(path, lambda: Reader(path))


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a wrong byte makes the library stumble over
        raise InputError(
            f"{path}: cannot be read as GGUF ({type(error).__name__}: {error}); it may be cut short: download it again"
        ) from None


def _unpacked(tensor: Any) -> Tensor:
    """fp32, in the shape that the header gives, whatever the bytes on disk are."""
    from gguf.quants import dequantize

    values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    return torch.from_numpy(values.reshape(tuple(int(n) for n in reversed(tensor.shape))))


def write_gguf(path: Path, model: GPT, tokenizer: Tokenizer, kind: Kind) -> bool:
    """Write the file whole or not at all. Returns whether llama.cpp cuts text exactly as our tokenizer does.

    Vectors and learned positions stay fp32. Raises InputError for a model that llama.cpp does not have.
    """
    gguf = _library()
    metadata, (vocabulary, exact) = to_metadata(model.config), to_gguf(tokenizer, model.config.vocab_size)
    weights = to_gguf_weights(model)
    with atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture_of(model.config))
        writer.add_file_type(LLAMA_FILE_TYPE[kind])
        for name, value in (metadata | vocabulary).items():
            _add(writer, name, value)
        for name, tensor in weights.items():
            _add_tensor(writer, name, tensor, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return exact


def _add(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def _add_tensor(writer: Any, name: str, tensor: Tensor, kind: Kind) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    values = tensor.detach().float().cpu().contiguous().numpy()
    whole = values.ndim < 2 or name.startswith("position_embd") or (kind == "q8_0" and values.shape[-1] % 32)
    if whole:
        writer.add_tensor(name, values)
        return
    how = GGMLQuantizationType[kind.upper()]
    writer.add_tensor(name, quantize(values, how), raw_dtype=how)


def _library() -> Any:
    try:
        import gguf
    except ModuleNotFoundError:
        raise InputError("a GGUF file needs the package gguf: pip install 'tutelage[gguf]'") from None
    return gguf
