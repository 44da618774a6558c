"""Training of LoRA adapters (Hu et al. 2021) instead of all weights, and how they are saved.

    load -> adapt -> train -> save_tuned: the merged model, and adapter/ in PEFT's format next to it

During training the frozen weights are held in the compute precision: in bf16 this halves their memory and saves a cast
per step. Merging starts from the base on disk in fp32. It is checked: the merged model must give the same logits as
the model with adapters.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from safetensors.torch import save
from torch import Tensor

from tutelage.atomic import atomic_write
from tutelage.errors import InputError, located
from tutelage.json_file import read_object
from tutelage.model.gpt import GPT
from tutelage.model.heads import ScalarGPT
from tutelage.model.lora import ALL, LoRAConfig, adapted_linears, add_adapters, merge_adapters
from tutelage.model.peft import from_peft, to_peft
from tutelage.model.peft_file import PREFIX
from tutelage.options import Advanced, Natural, PartialShare, Range
from tutelage.runs.device import Device
from tutelage.runs.files import read_safetensors
from tutelage.runs.folder import load_policy, load_trunk, read_config, save_policy, save_scorer, set_head
from tutelage.runs.identity import hash_input
from tutelage.runs.run import RunConfig, seed_for
from tutelage.text.tokenizer import Tokenizer

EXACT = Device(torch.device("cpu"), torch.float32, torch.get_num_threads(), "merging is done in fp32")
TOLERANCE = 1e-4  # largest difference of a logit, in fp32, relative to the largest logit


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(RunConfig):
    """Adapter settings of the stages that can train adapters."""

    lora_rank: Natural = 0
    """Rank of low-rank adapters (Hu et al. 2021); 0 trains all weights."""
    lora_alpha: Advanced[Annotated[float, Range(above=0, most=1e6)]] = 32.0
    """The adapters' update is multiplied by alpha / rank."""
    lora_targets: Advanced[tuple[str, ...]] = ALL
    """Linear maps that get an adapter, out of q k v out gate up down. The paper uses q v; later work uses all."""
    lora_layers: Advanced[Natural] = 0
    """Number of top layers that get adapters; 0 is all. The layers below stay the same in all models."""
    lora_dropout: Advanced[PartialShare] = 0.0
    """Dropout rate on the adapters' inputs during training."""
    adapter_only: Advanced[bool] = False
    """Save the adapter without the merged model. This takes a few megabytes, but the base must stay where it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.adapted and (self.adapter_only or self.lora_dropout or self.lora_layers):
            raise InputError(
                "--adapter-only, --lora-layers and --lora-dropout need adapters; give --lora-rank, or leave them out"
            )
        if unknown := [name for name in self.lora_targets if name not in ALL]:
            raise InputError(
                f"--lora-targets {unknown[0]}: is not a linear map of a block; choose from {' '.join(ALL)}"
            )
        if not self.lora_targets:
            raise InputError(f"--lora-targets: names no map; choose from {' '.join(ALL)}")

    @property
    def adapted(self) -> bool:
        """Whether adapters are trained instead of all weights."""
        return self.lora_rank > 0


def adapt(model: GPT, config: AdapterConfig, generator: torch.Generator) -> GPT:
    """Add adapters to the model if the config asks for them. Raises InputError for maps the model does not have."""
    if not config.adapted:
        return model
    if config.lora_rank > model.config.width:
        raise InputError(
            f"--lora-rank {config.lora_rank}: the model's width is {model.config.width}, and no map has a higher rank; "
            "give a lower rank, or leave --lora-rank out to train all weights"
        )
    targets = config.lora_targets
    if targets == ALL and model.config.mlp != "swiglu":
        targets = tuple(name for name in ALL if name != "gate")
    try:
        lora = LoRAConfig(
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            targets=targets,
            dropout=config.lora_dropout,
            layers=config.lora_layers,
        )
        add_adapters(model, lora, generator)
    except ValueError as error:
        raise InputError(f"--lora-targets, --lora-layers: {error}") from None
    return lighten(model)


def lighten(model: GPT) -> GPT:
    """Convert the frozen matrices to the compute precision. Results stay the same: each use casts them anyway."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.ndim == 2:
            parameter.data = parameter.data.to(model.compute_dtype)
    return model


def seed_dropout(config: AdapterConfig, step: int) -> None:
    """Seed dropout for this step, so that a resumed run drops the same inputs."""
    if config.lora_dropout:
        torch.manual_seed(seed_for(config.seed, f"dropout/{step}"))


def merged(model: GPT, base: GPT) -> GPT:
    """Merge the model's adapters into `base`, the same base model in fp32, and return it.

    Raises InputError if merging changes the logits by more than TOLERANCE.
    """
    lora = next(adapter.config for _, _, adapter in adapted_linears(model))
    add_adapters(base, lora, torch.Generator())
    parameters = dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapter." in name:
                parameters[name].copy_(parameter)
        # Tokens from the whole vocabulary. The first ones may all be special tokens; no model has seen a row of these,
        # and in SmolLM2 it amplified rounding tenfold.
        probe = torch.linspace(0, base.tokens - 1, min(64, base.config.context)).long()[None]
        before = base.eval()(probe)
        gap = (merge_adapters(base)(probe) - before).abs().max() / before.abs().max()
    if not gap <= TOLERANCE:
        sizes = f"{gap:.1e} of the largest logit; at most {TOLERANCE:g} is allowed for rounding"
        raise InputError(f"lora: the merged model's logits differ from the adapted model's by {sizes}")
    return base


def save_tuned(out: Path, model: GPT, tokenizer: Tokenizer, base: Path, config: AdapterConfig) -> None:
    """Save a fine-tuned language model: the merged model unless --adapter-only, and the adapter if there is one."""
    if config.adapter_only:
        tokenizer.save(out)
    else:
        full = merged(model, load_policy(base, EXACT)[0]) if config.adapted else model
        save_policy(out, full, tokenizer)
    if config.adapted:  # last, because a folder that holds only an adapter counts as a model
        save_adapter(out / "adapter", model, base)


def save_tuned_scorer(out: Path, model: ScalarGPT, tokenizer: Tokenizer, base: Path, config: AdapterConfig) -> None:
    """Save a reward model, always with its merged weights, because later stages start from them."""
    if config.adapted:
        save_adapter(out / "adapter", model.trunk, base, model.score.weight)
        trunk = merged(model.trunk, load_trunk(base, EXACT))
        model, head = ScalarGPT(trunk, model.mean, model.std), model.score
        model.score = head
    save_scorer(out, model, tokenizer)


def load_adapted_scorer(model: GPT, base: Path, folder: Path) -> ScalarGPT | None:
    """A reward model as adapters on `model`, which holds its base's weights.

    None if the reward model was not trained as adapters on this base.
    """
    adapter = folder / "adapter"
    if not (adapter / "base.json").is_file() or read_object(adapter / "base.json").get("sha256") != hash_input(base):
        return None
    tensors = read_safetensors(adapter / "adapter_model.safetensors")
    head = tensors.pop(f"{PREFIX}score.weight", None)
    if head is None:
        return None
    config = read_config(folder)
    with located(str(adapter)):
        adapted = from_peft(model, read_object(adapter / "adapter_config.json"), tensors)
    scorer = ScalarGPT(adapted, config.get("reward_mean", 0.0), config.get("reward_std"))
    set_head(scorer, head, adapter)
    scorer.score.to(model.embedding.weight.device)
    return scorer


def save_adapter(folder: Path, model: GPT, base: Path, head: Tensor | None = None) -> None:
    """Write PEFT's two files and base.json, which names the base. `head` is a reward model's, (1, C)."""
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
