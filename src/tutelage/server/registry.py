"""The models that are served, by name: policies, which have an engine, and reward models.

    "runs/demo/sft", "judge=runs/demo/reward" -> load -> Served (tokenizer, engine) -> unload

A model's name is the last part of its run's path, unless NAME=RUN gives another. Each set of weights has one engine,
shared by runs that are served twice and by adapters on the same base. All engines and reward models take turns on the
device.
"""

import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tutelage.engine.engine import Engine, EngineConfig
from tutelage.engine.fairness import FairLock
from tutelage.errors import InputError
from tutelage.model.lora import shallow_copy
from tutelage.rewards.open import load_frozen
from tutelage.rewards.reward import ModelReward
from tutelage.runs.adapter_base import adapter_base
from tutelage.runs.base import find_base
from tutelage.runs.device import Device
from tutelage.runs.folder import holds_scorer, load_policy, read_adapter, shares_base
from tutelage.runs.identity import find_adapter, hash_input
from tutelage.runs.machine import version
from tutelage.sampling.sampler import for_inference
from tutelage.server.encoder import Encoder, Encoders
from tutelage.server.suggestions import suggestions_of
from tutelage.server.vocabulary import Vocabulary
from tutelage.text.tokenizer import Tokenizer
from tutelage.web.errors import ApiError


@dataclass(frozen=True)
class Served:
    """One model under one name."""

    name: str
    kind: Literal["policy", "reward"]
    tokenizer: Tokenizer
    context: int  # maximum length of a prompt with its completion, in tokens
    created: int  # when the run was made, in seconds since 1970
    fingerprint: str  # equal for equal weights, tokenizer, precision and version
    base: Path  # the run or folder that holds the weights
    encoder: Encoder  # renders and encodes what callers send
    table: Sequence[bytes] = ()  # policies: the bytes of each token
    engine: Engine | None = None  # policies only
    vocabulary: Vocabulary | None = None  # policies: compiles grammars
    adapter: str = ""  # policies: name of the engine's adapter; "" is the base itself
    reward: ModelReward | None = None  # reward models only
    suggestions: tuple[str, ...] = ()  # policies: questions from the held-out prompts beside the run


class Registry:
    """All models of one server. Its methods may be called from any thread; `load` and `score` are slow."""

    def __init__(self, device: Device, config: EngineConfig = EngineConfig()):
        self.device, self.config = device, config
        self.turns = FairLock()
        self.changing = threading.Lock()  # held while a model is loaded or unloaded
        self.served: dict[str, Served] = {}
        self.engines: dict[Path, tuple[Engine, Tokenizer]] = {}  # by the folder of their weights
        self.encoders = Encoders()

    def names(self) -> list[str]:
        return list(self.served)

    def get(self, name: str) -> Served:
        """The model with this name. Raises KeyError."""
        return self.served[name]

    def load(self, named_run: str) -> Served:
        """Serve one more run: RUN or NAME=RUN. Raises InputError if the name is taken or the run cannot be read."""
        name, run = name_and_run(named_run)
        with self.changing:
            if name in self.served:
                raise InputError(f"{named_run}: a model named {name} is already served; choose another: NAME={run}")
            served = self._load_reward(name, run) if holds_scorer(run) else self._load_policy(name, run)
            self.served = self.served | {name: served}  # a new dict, because readers hold no lock
            return served

    def _load_reward(self, name: str, run: Path) -> Served:
        reward = load_frozen(run, self.device)
        return Served(
            name=name,
            kind="reward",
            tokenizer=reward.tokenizer,
            context=reward.model.trunk.config.context,
            created=created(run),
            fingerprint=self._fingerprint(run, ""),
            base=run,
            encoder=self.encoders.of(reward.tokenizer),
            reward=reward,
        )

    def _load_policy(self, name: str, run: Path) -> Served:
        adapter = self._adapter_to_share(run)
        base = adapter_base(adapter).resolve() if adapter else run.resolve()
        engine, tokenizer = self.engines[base] if base in self.engines else self._start(base)
        if adapter:
            try:
                tokenizer = self._add_adapter(engine, name, run, adapter) or tokenizer
            except BaseException:
                self._stop_unused()
                raise
        padding = engine.model.config.vocab_size - tokenizer.vocab_size  # embedding rows without a token, never drawn
        table = [*tokenizer.token_bytes(), *[b""] * padding]
        return Served(
            name=name,
            kind="policy",
            tokenizer=tokenizer,
            context=engine.context,
            created=created(run),
            # Adapters and merged weights are rounded differently.
            fingerprint=self._fingerprint(run, "adapter" if adapter else "merged"),
            base=base,
            encoder=self.encoders.of(tokenizer),
            table=table,
            engine=engine,
            vocabulary=self._vocabulary(tokenizer, table[: engine.model.tokens]),
            adapter=name if adapter else "",
            suggestions=suggestions_of(run),
        )

    def _vocabulary(self, tokenizer: Tokenizer, table: Sequence[bytes]) -> Vocabulary:
        """Made once for all models with this tokenizer, because it takes half a second for 49,152 tokens."""
        models = (served for served in self.served.values() if served.tokenizer is tokenizer)
        known = next((served.vocabulary for served in models if served.vocabulary), None)
        return known or Vocabulary(
            tokenizer, table, tuple(dict.fromkeys((*tokenizer.end_ids, tokenizer.end_of_text_id)))
        )

    def _add_adapter(self, engine: Engine, name: str, run: Path, adapter: Path) -> Tokenizer | None:
        """Add a run's adapter to the engine of its base. Returns the run's own tokenizer, if it has one."""
        with self.turns:  # during a forward pass, the adapters of running requests are attached to the model
            base_copy = shallow_copy(engine.model)
        adapted, adapter_tokenizer = read_adapter(adapter, base_copy)
        tokenizer = Tokenizer.load(run) if (run / "tokenizer.json").is_file() else adapter_tokenizer
        engine.add_adapter(name, adapted)
        return tokenizer

    def _adapter_to_share(self, run: Path) -> Path | None:
        """The run's adapter, if the run has no merged weights, or an engine with its base is running."""
        if not run.is_dir():
            return None
        if alone := find_adapter(run):
            return alone if shares_base(alone) else None
        adapter = run / "adapter"
        if not (adapter / "adapter_config.json").is_file():
            return None
        try:
            return adapter if adapter_base(adapter).resolve() in self.engines else None
        except InputError:  # the base was deleted; the run's merged weights do not need it
            return None

    def _start(self, base: Path) -> tuple[Engine, Tokenizer]:
        model, tokenizer = load_policy(base, self.device, frozen=True)
        engine = Engine(for_inference(model), self.config, self.turns)
        engine.start()
        self.engines[base] = engine, tokenizer
        return engine, tokenizer

    def unload(self, name: str) -> None:
        """Stop serving a model, and free its weights if no other model needs them. Raises KeyError."""
        with self.changing:
            unloaded = self.served[name]
            self.served = {other: served for other, served in self.served.items() if other != name}
            shared = any(served.vocabulary is unloaded.vocabulary for served in self.served.values())
            if unloaded.vocabulary and not shared:
                unloaded.vocabulary.close()
            if unloaded.engine and unloaded.adapter:
                unloaded.engine.remove_adapter(unloaded.adapter)
            self._stop_unused()

    def _stop_unused(self) -> None:
        self.encoders.keep({served.encoder for served in self.served.values()})
        used = {served.base for served in self.served.values()}
        for base in [base for base in self.engines if base not in used]:
            self.engines.pop(base)[0].close()

    def score(self, name: str, texts: Sequence[Sequence[int]]) -> list[float]:
        """A reward model's scores of conversations, given as ids up to the token at which the score is read.

        Raises KeyError, or InputError.
        """
        reward = self.served[name].reward
        if reward is None:
            raise InputError(f"{name}: a language model, not a reward model; name a reward model")
        with self.turns:
            return reward.score_ids(texts).tolist()

    def close(self) -> None:
        """Unload all models."""
        for name in self.names():
            self.unload(name)
        self.encoders.keep(set())

    def _fingerprint(self, run: Path, form: str) -> str:
        content = f"{hash_input(run)}/{form}/{self.device.compute_dtype}/{version('tutelage')}"
        return f"fp_{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def find_model(models: Registry, name: str, kind: str = "policy") -> Served:
    """The model with this name. Raises ApiError if there is none, or it is of another kind."""
    try:
        served = models.get(name)
    except KeyError:
        raise no_such_model(name) from None
    if served.kind != kind:
        does = "is a reward model: use POST /v1/scores" if served.kind == "reward" else "is not a reward model"
        raise ApiError(400, f"The model '{name}' {does}.", param="model", code="invalid_value")
    return served


def no_such_model(name: str) -> ApiError:
    """OpenAI's error for an unknown model."""
    message = f"The model '{name}' does not exist or you do not have access to it."
    return ApiError(404, message, param="model", code="model_not_found")


def name_and_run(named_run: str) -> tuple[str, Path]:
    """Split "NAME=RUN" or "RUN" into the model's name and the run's path. Raises InputError if there is no such run."""
    name, equals, run = named_run.partition("=")
    if not equals or Path(named_run).exists():
        base = find_base(Path(named_run))
        return (Path(named_run).resolve() if Path(named_run).exists() else Path(named_run)).name, base
    if not name or not run:
        raise InputError(f"{named_run}: give NAME=RUN, or the run alone")
    return name, find_base(Path(run))


def created(run: Path) -> int:
    """When the model was written, by its file's time; the present time if there is no file."""
    times = [path.stat().st_mtime for path in (run / "config.json", run) if path.exists()]
    return int(times[0] if times else time.time())
