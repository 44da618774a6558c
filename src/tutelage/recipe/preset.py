"""The demo's sizes and budgets, in tokens and iterations, never in minutes.

    PRESETS[name] -> a config for every stage;  BASED[name] -> the same for an imported base model

`demo` is the full recipe for two CPU cores; `toy` runs every stage in seconds, to test the plumbing. `seconds` is what
each stage took on the machine where the demo was tuned (LOG.md), and `gflops` is that machine's speed. Together they
give the first estimate of the time left.
"""

from dataclasses import dataclass, replace

from tutelage.evals.bench import EvaluateConfig
from tutelage.runs.run import RunConfig
from tutelage.stages.collect import CollectConfig
from tutelage.stages.import_model import ImportConfig
from tutelage.stages.ppo import PPOConfig
from tutelage.stages.pretrain import PretrainConfig
from tutelage.stages.rank import RankConfig
from tutelage.stages.reward import RewardConfig
from tutelage.stages.sft import SFTConfig
from tutelage.stages.tokenizer import TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One config per stage."""

    collect: CollectConfig
    base: tuple[TokenizerConfig, PretrainConfig] | ImportConfig  # pretrained here, or imported
    sft: SFTConfig
    rank: RankConfig
    reward: RewardConfig
    ppo: PPOConfig
    evaluate: EvaluateConfig
    seconds: dict[str, int]
    gflops: float = 0.0  # speed of matrix products on the machine of `seconds`; 0: the time does not depend on it


DEMO = Preset(
    collect=CollectConfig(),
    base=(TokenizerConfig(vocab_size=4_096), PretrainConfig(tokens=2_100_000, batch=16, floor=0.0)),
    sft=SFTConfig(tokens=800_000, floor=0.0, min_answer=5, max_answer=32, max_pieces=2),
    rank=RankConfig(count=3_300, answers=9),
    reward=RewardConfig(batch=4, lr=1.25e-3, floor=0.0),
    ppo=PPOConfig(iterations=38, batch=64, lr=2.25e-4, warmup=5, kl_coef=0.05, ema=0.8, ptx_breaks=False),
    evaluate=EvaluateConfig(),
    seconds={
        "data": 11,
        "tokenizer": 7,
        "pretrain": 227,
        "sft": 74,
        "rank": 55,
        "reward": 79,
        "ppo": 50,
        "ppo-ptx": 74,
        "evaluate": 47,
        "report": 2,
    },
    gflops=820,
)

TOY = Preset(
    collect=CollectConfig(limit=240),
    base=(
        TokenizerConfig(vocab_size=512),
        PretrainConfig(
            width=32,
            layers=2,
            heads=2,
            kv_heads=1,
            head_width=16,
            hidden=64,
            tokens=32_768,
            batch=8,
            evaluate_every=8,
            heldout_windows=4,
        ),
    ),
    sft=SFTConfig(tokens=16_384, batch=4, evaluate_every=8, heldout_rows=4),
    rank=RankConfig(count=24, answers=4, max_tokens=12),
    reward=RewardConfig(batch=8, demonstrations=16),
    ppo=PPOConfig(iterations=3, batch=8, minibatch=4, max_tokens=12, ptx_windows=2, ptx_calibration=1, kl_budget=1e3),
    evaluate=EvaluateConfig(count=12, max_tokens=12, best_of=(4, 16), samples=12, heldout_windows=4),
    seconds=dict.fromkeys(DEMO.seconds, 5),
)

# The corpus of both demos has one line per turn, so a line break learned from it would let another speaker go on.
# For an instruct model of roughly a hundred million parameters: adapters in every stage, rows shorter than its context.
# From the reward model on, adapters are in the top layers only: policy, reference, value network and reward model share
# the layers below, which run once per rollout.
DEMO_BASED = Preset(
    collect=CollectConfig(),
    base=ImportConfig(),
    sft=SFTConfig(
        tokens=100_000,
        row=256,
        batch=4,
        lr=7e-4,
        min_answer=5,
        max_answer=32,
        heldout_rows=16,
        evaluate_every=50,
        lora_rank=16,
    ),
    rank=RankConfig(count=320, answers=9, max_prompt=96),
    reward=RewardConfig(batch=4, lr=1e-3, lora_rank=16, lora_layers=8, demonstrations=64),
    ppo=PPOConfig(
        iterations=24,
        batch=48,
        minibatch=48,
        value_epochs=3,
        max_prompt=96,
        lr=2e-3,
        value_lr=3e-3,
        warmup=8,
        kl_coef=0.05,
        value_clip=5.0,
        ema=0.8,
        ptx_windows=8,
        ptx_window=256,
        ptx_breaks=False,
        ptx_share=0.5,
        lora_rank=16,
        lora_layers=8,
    ),
    evaluate=EvaluateConfig(count=200, heldout_windows=64, heldout_window=256),
    seconds={
        "data": 10,
        "import": 5,
        "sft": 190,
        "rank": 75,
        "reward": 73,
        "ppo": 330,
        "ppo-ptx": 430,
        "evaluate": 335,
        "report": 2,
    },
    gflops=820,
)
TOY_BASED = replace(
    TOY,
    base=ImportConfig(),
    sft=replace(TOY.sft, row=64, lora_rank=2),
    reward=replace(TOY.reward, lora_rank=2, lora_layers=1),
    ppo=replace(TOY.ppo, ptx_window=64, lora_rank=2, lora_layers=1),
    evaluate=replace(TOY.evaluate, heldout_window=64),
    seconds=dict.fromkeys(DEMO_BASED.seconds, 5),
)

PRESETS = {"demo": DEMO, "toy": TOY}
BASED = {"demo": DEMO_BASED, "toy": TOY_BASED}


def seeded(config: RunConfig, seed: int) -> RunConfig:
    """The config with another seed, and permission to replace a run that has other settings."""
    return replace(config, seed=seed, overwrite=True)
