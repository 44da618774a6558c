"""Tiny models of transformers' classes to compare ours with; all weights are random, gains and biases too."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from tutelage.model.families import load_hf_weights
from tutelage.model.gpt import GPT
from tutelage.model.hf_config import from_hf_config

IDS = torch.tensor([[5, 17, 260, 33, 8, 120, 77, 201, 9, 45], [61, 2, 2, 290, 14, 15, 16, 99, 100, 3]])

OPENAI = dict(
    vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
)
LLAMA = dict(
    vocab_size=300, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48, max_position_embeddings=64, rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0},
)  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
NEO = dict(
    vocab_size=300, hidden_size=32, num_layers=4, num_heads=4, intermediate_size=48, max_position_embeddings=64,
    attention_types=[[["global", "local"], 2]], window_size=3, resid_dropout=0.0, embed_dropout=0.0,
    attention_dropout=0.0,
)  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # name -> transformers' class, its settings
    "gpt1": ("OpenAIGPT", OPENAI | dict(afn="gelu")),
    "gpt2": ("GPT2", OPENAI | dict(n_inner=48)),
    "gpt2-untied": ("GPT2", OPENAI | dict(tie_word_embeddings=False)),
    "gpt3": ("GPTNeo", NEO),
    "llama": ("Llama", LLAMA),
    "llama3": ("Llama", LLAMA | dict(rope_parameters=LLAMA3, tie_word_embeddings=True)),
    "smollm2": ("Llama", LLAMA | dict(num_attention_heads=6, num_key_value_heads=3, hidden_size=36,
                                      tie_word_embeddings=True)),
    "mistral": ("Mistral", LLAMA | dict(sliding_window=4)),
    "qwen2": ("Qwen2", LLAMA | dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3", LLAMA | dict(head_dim=12, tie_word_embeddings=True)),
    "qwen3-untied": ("Qwen3", LLAMA | dict(head_dim=12)),
}  # fmt: skip


def make_theirs(case: str) -> Any:
    family, settings = CASES[case]
    config = getattr(transformers, f"{family}Config")(**settings, attn_implementation="eager")
    kind = "LMHeadModel" if family in ("GPT2", "OpenAIGPT") else "ForCausalLM"
    model = getattr(transformers, family + kind)(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            gain = p.ndim == 1 and name.endswith("weight")
            p.copy_(0.2 * torch.randn(p.shape, generator=generator) + float(gain))
    return model


def read(folder: Path) -> GPT:
    """Our model from a folder's config.json and model.safetensors."""
    model = GPT(from_hf_config(json.loads((folder / "config.json").read_text()))).eval()
    load_hf_weights(model, load_file(folder / "model.safetensors"))
    return model
