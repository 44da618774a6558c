"""A stage that trains adapters instead of all weights, and what it leaves on disk.

    load -> adapt -> train -> save_tuned: adapter/ in PEFT's format beside the merged model

The frozen weights are kept in the compute precision while training, half the memory and no cast per step; merging
starts from the base on disk, in fp32, and is checked: the merged model must give the adapted one's logits.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from tutelage.atomic import atomic_write
from tutelage.errors import InputError
from tutelage.model.gpt import GPT
from tutelage.model.heads import ScalarGPT
from tutelage.model.lora import ALL, LoRAConfig, adapted_linears, add_adapters, merge_adapters
from tutelage.model.peft import PREFIX, from_peft, to_peft
from tutelage.runs.device import Device
from tutelage.runs.folder import load_policy, load_trunk, read_json, read_safetensors, save_policy, save_scorer
from tutelage.runs.identity import hash_input
from tutelage.runs.run import RunConfig, seed_for
from tutelage.text.tokenizer import Tokenizer

EXACT = Device(torch.device("cpu"), torch.float32, torch.get_num_threads(), "merging is done in fp32")
GATE = 1e-4  # largest difference of a logit, in fp32, relative to the largest logit


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(RunConfig):
    """What every stage that can train adapters is told about them."""

    lora_rank: int = 0
    """Rank of low-rank adapters (Hu et al. 2021); 0 trains all weights."""
    lora_alpha: float = 32.0
    """The adapters' update is multiplied by alpha / rank."""
    lora_targets: tuple[str, ...] = ALL
    """Maps that get an adapter, of q k v out gate up down; the paper has q v, later work all of them."""
    lora_layers: int = 0
    """Adapters in the top layers only, this many: what lies below is the same for all models; 0 is all layers."""
    lora_dropout: float = 0.0
    """Share of an adapter's inputs that are dropped in training."""
    adapter_only: bool = False
    """Save the adapter without the merged model: a few megabytes, but its base must stay where it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.adapted and (self.adapter_only or self.lora_dropout or self.lora_layers):
            raise InputError(
                "--adapter-only, --lora-layers and --lora-dropout are for adapters; give --lora-rank, or leave them out"
            )
        if self.lora_dropout >= 1:
            raise InputError(f"--lora-dropout {self.lora_dropout}: must be below 1")

    @property
    def adapted(self) -> bool:
        return self.lora_rank > 0


def adapt(model: GPT, config: AdapterConfig, generator: torch.Generator) -> GPT:
    """Add adapters if the config asks for any. Raises InputError for maps that the model does not have."""
    if not config.adapted:
        return model
    targets = config.lora_targets
    if targets == ALL and model.config.mlp != "swiglu":
        targets = tuple(name for name in ALL if name != "gate")
    try:
        lora = LoRAConfig(
            rank=config.lora_rank, alpha=config.lora_alpha, targets=targets, dropout=config.lora_dropout,
            layers=config.lora_layers,
        )  # fmt: skip
        add_adapters(model, lora, generator)
    except ValueError as error:
        raise InputError(f"--lora-targets, --lora-layers: {error}") from None
    return lighten(model)


def lighten(model: GPT) -> GPT:
    """Keep the frozen matrices in the compute precision, to which they would be cast at each use: the same numbers."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.ndim == 2:
            parameter.data = parameter.data.to(model.compute_dtype)
    return model


def seed_dropout(config: AdapterConfig, step: int) -> None:
    """The same inputs are dropped in a step however often the run was stopped before it."""
    if config.lora_dropout:
        torch.manual_seed(seed_for(config.seed, f"dropout/{step}"))


def merged(model: GPT, base: GPT) -> GPT:
    """The adapted model's adapters merged into `base`, its own weights in fp32, which becomes the result.

    Raises InputError when the merged model's logits are not the adapted one's.
    """
    lora = next(adapter.config for _, _, adapter in adapted_linears(model))
    add_adapters(base, lora, torch.Generator())
    own = dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapter." in name:
                own[name].copy_(parameter)
        # From all over the vocabulary: its first tokens may all be markers, and a row of these, which no model has
        # met, amplified rounding tenfold in SmolLM2.
        probe = torch.linspace(0, base.config.vocab_size - 1, min(64, base.config.context)).long()[None]
        before = base.eval()(probe)
        gap = (merge_adapters(base)(probe) - before).abs().max() / before.abs().max()
    if not gap <= GATE:
        raise InputError(f"lora: the merged model's logits are off by {gap:.1e} of the largest, {GATE:g} is rounding")
    return base


def save_tuned(out: Path, model: GPT, tokenizer: Tokenizer, base: Path, config: AdapterConfig) -> None:
    """A fine-tuned language model as a run: the model, with its adapter beside it if it has one."""
    if config.adapter_only:
        tokenizer.save(out)
    else:
        whole = merged(model, load_policy(base, EXACT)[0]) if config.adapted else model
        save_policy(out, whole, tokenizer)
    if config.adapted:  # last: a folder with an adapter alone counts as a model
        save_adapter(out / "adapter", model, base)


def save_tuned_scorer(out: Path, model: ScalarGPT, tokenizer: Tokenizer, base: Path, config: AdapterConfig) -> None:
    """The same for a reward model, whose adapter is never without the merged model: later stages start from that."""
    if config.adapted:
        save_adapter(out / "adapter", model.trunk, base, model.score.weight)
        trunk = merged(model.trunk, load_trunk(base, EXACT))
        model, head = ScalarGPT(trunk, model.mean, model.std), model.score
        model.score = head
    save_scorer(out, model, tokenizer)


def load_adapted_scorer(model: GPT, base: Path, folder: Path) -> ScalarGPT | None:
    """A reward model as adapters on `model`, its own base's weights; None where it was not trained as such on them."""
    adapter = folder / "adapter"
    if not (adapter / "base.json").is_file() or read_json(adapter / "base.json").get("sha256") != hash_input(base):
        return None
    tensors = read_safetensors(adapter / "adapter_model.safetensors")
    head = tensors.pop(f"{PREFIX}score.weight", None)
    if head is None:
        return None
    scorer = ScalarGPT(from_peft(model, read_json(adapter / "adapter_config.json"), tensors))
    scorer.score.weight = torch.nn.Parameter(head.to(model.embedding.weight.device))
    config = read_json(folder / "config.json")
    scorer.mean, scorer.std = config["reward_mean"], config.get("reward_std")
    return scorer


def save_adapter(folder: Path, model: GPT, base: Path, head: Tensor | None = None) -> None:
    """Write PEFT's two files, and which base they belong to. `head` is a reward model's, (1, C)."""
    config, tensors = to_peft(model)
    if head is not None:
        config |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
        tensors[f"{PREFIX}score.weight"] = head
    place = os.path.relpath(base.resolve(), folder.resolve())
    with atomic_write(folder / "adapter_model.safetensors", "wb") as file:
        file.write(save({name: t.detach().float().cpu().contiguous().clone() for name, t in tensors.items()}))
    with atomic_write(folder / "base.json") as file:
        json.dump({"path": place, "sha256": hash_input(base)}, file, indent=2)
    with atomic_write(folder / "adapter_config.json") as file:
        json.dump(config | {"base_model_name_or_path": place}, file, indent=2)
