"""Models as GGUF files, the format of llama.cpp: read in any quantization, written as F16, BF16 or Q8_0.

    read_gguf(path) -> GPT, Tokenizer;  write_gguf(path, GPT, Tokenizer, kind)

The library `gguf` reads and writes the file. `model/gguf.py` translates names and shapes, `text/gguf_vocabulary.py` the
tokenizer. Weights are dequantized to fp32 when the file is read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tutelage.atomic import atomic_path
from tutelage.errors import InputError, located
from tutelage.model.families import build
from tutelage.model.gguf import architecture_of, from_metadata, load_gguf_weights, to_gguf_weights, to_metadata
from tutelage.model.gpt import GPT
from tutelage.text.gguf_vocabulary import from_gguf, to_gguf
from tutelage.text.tokenizer import Tokenizer

Kind = Literal["f16", "bf16", "q8_0"]
MOST_VALUES, MOST_ENTRIES = 2**22, 2**16  # Gemma 3 has 1.3 million values in lists: tokens, scores, types, merges
LLAMA_FILE_TYPE = {"f16": 1, "q8_0": 7, "bf16": 32}


def read_gguf(path: Path, make_chat: bool = False) -> tuple[GPT, Tokenizer]:
    """The model in fp32 and its tokenizer; with make_chat the tokenizer gets our chat template and its tokens.

    Raises InputError for a truncated file, a header that does not fit the content, and an unsupported model.
    """
    metadata, tensors = _read_file(path)
    with located(str(path)):
        return _model(path, metadata, tensors, make_chat)


def _model(path: Path, metadata: dict[str, Any], tensors: dict[str, Tensor], make_chat: bool) -> tuple[GPT, Tokenizer]:
    config, tokenizer = from_metadata(metadata, tensors), from_gguf(metadata, make_chat)
    if (tokens := len(metadata["tokenizer.ggml.tokens"])) != config.vocab_size:
        raise InputError(
            f"{path}: lists {tokens} tokens, its embedding has {config.vocab_size} rows; download it again"
        )
    model = build(config, lambda model: load_gguf_weights(model, tensors), tensors, torch.float32)
    return model, tokenizer


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    reader = _open(path)
    return _metadata(path, reader), _guarded(path, lambda: {t.name: _dequantized(t) for t in reader.tensors})


def read_gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a GGUF file, without its weights."""
    with located(str(path)):
        return from_gguf(_metadata(path, _open(path)))


def _metadata(path: Path, reader: Any) -> dict[str, Any]:
    return _guarded(path, lambda: {name: field.contents() for name, field in reader.fields.items()})


def _open(path: Path) -> Any:
    """The library's reader, changed to raise ValueError when the header asks for more than the file can have.

    It slices a plain array view of the file, because slicing the memory map 800,000 times takes four times as long.
    """
    library: Any = _library()
    array = library.GGUFValueType.ARRAY

    class Reader(library.GGUFReader):
        listed = 0

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            plain = self.__dict__.setdefault("plain", np.asarray(self.data))
            kind = np.dtype(dtype).newbyteorder(override_order or self.byte_order)
            end = int(offset) + kind.itemsize * int(count)
            if end > len(plain):
                raise ValueError("the file is shorter than its header says")
            return plain[int(offset) : end].view(kind)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == array:
                self.listed += int(self._get(orig_offs + 4, np.uint64)[0])
                most(self.listed, MOST_VALUES, "values in lists")
            return super()._get_field_parts(orig_offs, raw_type)

        def _build_fields(self, offs: int, count: int) -> Any:
            return super()._build_fields(offs, most(count, MOST_ENTRIES, "keys"))

        def _build_tensor_info(self, offs: int, count: int) -> Any:
            return super()._build_tensor_info(offs, most(count, MOST_ENTRIES, "tensors"))

        def _build_tensors(self, start_offs: int, fields: Any) -> None:
            # The library adds offsets in 64 bits: one near 2^64 would wrap round to the header's bytes.
            if any(int(field.parts[-1][0]) > len(self.data) for field in fields):
                raise ValueError("a tensor lies outside the file")
            super()._build_tensors(start_offs, fields)

    return _guarded(path, lambda: Reader(path))


def most(count: int, limit: int, what: str) -> int:
    """The count. Raises ValueError if it is beyond the limit, because the library takes 300 bytes for each."""
    if count > limit:
        raise ValueError(f"its header says that there are {count} {what}; at most {limit} are read")
    return count


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """Call `read`; turn the library's errors about the content into InputError."""
    try:
        return read()
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a wrong byte can make the library raise anything
        raise InputError(
            f"{path}: cannot be read as GGUF ({type(error).__name__}: {error}); it may be cut short; download it again"
        ) from None


def _dequantized(tensor: Any) -> Tensor:
    """The tensor in fp32, in the shape that the header gives."""
    from gguf.quants import dequantize

    values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    return torch.from_numpy(values.reshape(tuple(int(n) for n in reversed(tensor.shape))))


def write_gguf(path: Path, model: GPT, tokenizer: Tokenizer, kind: Kind) -> bool:
    """Write the file atomically. Returns whether llama.cpp will split text exactly as our tokenizer does.

    Vectors and learned position embeddings stay fp32, as do matrices that do not fit the blocks of Q8_0. Raises
    InputError for a model that llama.cpp does not support.
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
    keep_fp32 = values.ndim < 2 or name.startswith("position_embd") or (kind == "q8_0" and values.shape[-1] % 32)
    if keep_fp32:
        writer.add_tensor(name, values)
        return
    dtype = GGMLQuantizationType[kind.upper()]
    writer.add_tensor(name, quantize(values, dtype), raw_dtype=dtype)


def _library() -> Any:
    try:
        import gguf
    except ModuleNotFoundError:
        raise InputError("GGUF files need the package gguf: pip install 'tutelage[gguf]'") from None
    return gguf
