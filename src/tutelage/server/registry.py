"""What is served, by name: policies, each behind an engine, and reward models.

    "runs/demo/sft", "judge=runs/demo/reward" -> load -> Served (tokenizer, engine) -> unload

A model's name is the last part of its run's path, unless NAME=RUN gives another. One set of weights has one engine:
a run that is served twice, and adapters beside their base, share it. Everything on one machine takes turns.
"""

import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tutelage.data.records import Messages
from tutelage.engine.engine import Engine, EngineConfig
from tutelage.engine.fairness import FairLock
from tutelage.errors import InputError
from tutelage.model.lora import sharing
from tutelage.rewards.open import load_frozen
from tutelage.rewards.reward import ModelReward
from tutelage.runs.base import find_base
from tutelage.runs.device import Device
from tutelage.runs.folder import adapter_base, holds_scorer, load_policy, read_adapter
from tutelage.runs.identity import find_adapter, hash_input
from tutelage.runs.machine import version
from tutelage.sampling.sampler import for_inference
from tutelage.text.tokenizer import Tokenizer
from tutelage.web.errors import ApiError

SCORED_AT_ONCE = 16  # conversations, before engines have their turn again


@dataclass(frozen=True)
class Served:
    """One model under one name."""

    name: str
    kind: Literal["policy", "reward"]
    tokenizer: Tokenizer
    context: int  # longest prompt with its answer, in tokens
    created: int  # when the run was made, in seconds since 1970
    fingerprint: str  # the same for the same weights, tokenizer, precision and version
    base: Path  # whose weights they are
    table: Sequence[bytes] = ()  # the text of each token that a policy may write
    engine: Engine | None = None  # None: a reward model
    adapter: str = ""  # which of the engine's adapters it is; "" is the base itself
    reward: ModelReward | None = None


class Registry:
    """All models of one server. Its methods may be called from any thread; `load` and `score` take their time."""

    def __init__(self, device: Device, config: EngineConfig = EngineConfig()):
        self.device, self.config = device, config
        self.turns = FairLock()
        self.changing = threading.Lock()  # one model is loaded or unloaded at a time
        self.served: dict[str, Served] = {}
        self.engines: dict[Path, tuple[Engine, Tokenizer]] = {}  # by the weights they hold

    def names(self) -> list[str]:
        return list(self.served)

    def get(self, name: str) -> Served:
        """Raises KeyError."""
        return self.served[name]

    def load(self, named: str) -> Served:
        """Serve one more. Raises InputError when the name is taken or the run cannot be read."""
        name, place = name_and_place(named)
        with self.changing:
            if name in self.served:
                raise InputError(f"{named}: a model named {name} is served already; give NAME={place} another name")
            served = self._load_reward(name, place) if holds_scorer(place) else self._load_policy(name, place)
            self.served = self.served | {name: served}  # a new one: readers hold no lock
            return served

    def _load_reward(self, name: str, place: Path) -> Served:
        reward = load_frozen(place, self.device)
        context = reward.model.trunk.config.context
        return Served(
            name,
            "reward",
            reward.tokenizer,
            context,
            created(place),
            self._fingerprint(place, ""),
            place,
            reward=reward,
        )

    def _load_policy(self, name: str, place: Path) -> Served:
        adapter = self._adapter_to_share(place)
        base = adapter_base(adapter).resolve() if adapter else place.resolve()
        engine, tokenizer = self.engines[base] if base in self.engines else self._start(base)
        if adapter:
            try:
                with self.turns:  # in the middle of a pass others' adapters hang in the model
                    base_copy = sharing(engine.model)
                adapted, own = read_adapter(adapter, base_copy)
                tokenizer = Tokenizer.load(place) if (place / "tokenizer.json").is_file() else own or tokenizer
                engine.add_adapter(name, adapted)
            except BaseException:
                self._stop_unused()
                raise
        form = "adapter" if adapter else "merged"  # which are rounded differently
        spare = [b""] * (
            engine.model.config.vocab_size - tokenizer.vocab_size
        )  # rows of the embedding that mean nothing
        return Served(
            name, "policy", tokenizer, engine.context, created(place), self._fingerprint(place, form), base,
            [*tokenizer.bytes_of_tokens(), *spare], engine, adapter=name if adapter else "",
        )  # fmt: skip

    def _adapter_to_share(self, place: Path) -> Path | None:
        """The run's adapter, if it has no weights of its own or its base's are here already."""
        if not place.is_dir() or (alone := find_adapter(place)):
            return alone if place.is_dir() else None
        beside = place / "adapter"
        if not (beside / "adapter_config.json").is_file():
            return None
        try:
            return beside if adapter_base(beside).resolve() in self.engines else None
        except InputError:  # the base has gone; the run's own weights need it no more
            return None

    def _start(self, place: Path) -> tuple[Engine, Tokenizer]:
        model, tokenizer = load_policy(place, self.device, frozen=True)
        engine = Engine(for_inference(model), self.config, self.turns)
        engine.start()
        self.engines[place] = engine, tokenizer
        return engine, tokenizer

    def unload(self, name: str) -> None:
        """Stop serving it, and free its weights when no other model needs them. Raises KeyError."""
        with self.changing:
            gone = self.served[name]
            self.served = {other: served for other, served in self.served.items() if other != name}
            if gone.engine and gone.adapter:
                gone.engine.remove_adapter(gone.adapter)
            self._stop_unused()

    def _stop_unused(self) -> None:
        used = {served.base for served in self.served.values()}
        for place in [place for place in self.engines if place not in used]:
            self.engines.pop(place)[0].close()

    def score(self, name: str, conversations: Sequence[Messages]) -> list[float]:
        """A reward model's scores of conversations that end with an answer. Raises KeyError, or InputError."""
        reward = self.served[name].reward
        if reward is None:
            raise InputError(f"{name}: holds a language model, not a reward model")
        scores: list[float] = []
        for first in range(0, len(conversations), SCORED_AT_ONCE):
            with self.turns:
                scores += reward.score(conversations[first : first + SCORED_AT_ONCE]).tolist()
        return scores

    def close(self) -> None:
        """Stop everything."""
        for name in self.names():
            self.unload(name)

    def _fingerprint(self, place: Path, form: str) -> str:
        made_of = f"{hash_input(place)}/{form}/{self.device.compute_dtype}/{version('tutelage')}"
        return f"fp_{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


def find_model(models: Registry, name: str, kind: str = "policy") -> Served:
    """What is served under a name. Raises ApiError unless it is of the kind that is asked for."""
    try:
        served = models.get(name)
    except KeyError:
        raise no_such_model(name) from None
    if served.kind != kind:
        does = "scores answers (POST /v1/scores)" if served.kind == "reward" else "writes answers"
        raise ApiError(400, f"The model '{name}' {does}; it does not do this.", param="model", code="invalid_value")
    return served


def no_such_model(name: str) -> ApiError:
    message = f"The model '{name}' does not exist or you do not have access to it."
    return ApiError(404, message, param="model", code="model_not_found")


def name_and_place(named: str) -> tuple[str, Path]:
    """ "NAME=RUN" or "RUN" -> a name and where the run lies. Raises InputError where nothing lies there."""
    name, given, run = named.partition("=")
    if not given or Path(named).exists():
        place = find_base(Path(named))
        return (Path(named).resolve() if Path(named).exists() else Path(named)).name, place
    if not name or not run:
        raise InputError(f"{named}: give NAME=RUN, or the run alone")
    return name, find_base(Path(run))


def created(place: Path) -> int:
    """When the model was written, as far as the disk knows; now, where it does not."""
    newest = [path.stat().st_mtime for path in (place / "config.json", place) if path.exists()]
    return int(newest[0] if newest else time.time())
