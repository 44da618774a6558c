"""Reward models that others trained: read where transformers' own sequence classification reads them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from tutelage.model.heads import ScalarGPT
from tutelage.rewards.open import foreign_models, load_frozen, places_read
from tutelage.rewards.reward import ModelReward
from tutelage.rewards.score import ScoreConfig, score
from tutelage.runs.adapter import EXACT
from tutelage.runs.folder import holds_scorer, save_policy, save_scorer
from tutelage.sampling.rollout import pad_responses
from tutelage.sampling.sampler import Response
from tutelage.text.chat import encode_chat
from tutelage.text.template import CHAT_TEMPLATE
from tutelage.text.tokenizer import Tokenizer

CONVERSATIONS = [
    [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on the mat"}],
    [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "你好"},
     {"role": "user", "content": "and the dog?"}, {"role": "assistant", "content": "too"}],
]  # fmt: skip
TEMPLATES = {
    "nothing after the turn": CHAT_TEMPLATE,
    "a newline after it": CHAT_TEMPLATE.replace("'<|end|>'", "'<|end|>\n'"),
    "the end of text after it": CHAT_TEMPLATE.replace("'<|end|>'", "'<|end|>\n<|endoftext|>'"),
}


@pytest.fixture(params=TEMPLATES)
def template(request: pytest.FixtureRequest) -> str:
    return TEMPLATES[request.param]


def foreign(make_gpt: Any, tokenizer: Tokenizer, folder: Path, template: str, **config: Any) -> Path:
    """A folder as transformers writes it: no reward_mean, a head and a padding token of its own."""
    plain = Tokenizer(tokenizer._backend, tokenizer.settings | {"chat_template": template})
    save_scorer(folder, ScalarGPT(make_gpt("llama")).initialise(torch.Generator().manual_seed(1)), plain)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    for name in ("reward_mean", "reward_std", "vocabulary_sha256"):
        delattr(theirs.config, name)
    theirs.config.update(config)
    theirs.save_pretrained(folder)
    return folder


def expected(folder: Path, conversations: Sequence[Any]) -> list[float]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [words.apply_chat_template(one, return_tensors="pt", return_dict=True)["input_ids"] for one in conversations]
    return [float(model(one).logits) for one in ids]


@pytest.mark.parametrize("pad", ["its own", "the end of the turn", "none"])
def test_scores_are_those_of_transformers(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, template: str, pad: str
) -> None:
    """A padding token that also ends turns is skipped by transformers, so the score is read before it."""
    pads = {"its own": tokenizer.pad_id, "the end of the turn": tokenizer.end_of_turn_id, "none": None}
    folder = foreign(make_gpt, tokenizer, tmp_path, template, pad_token_id=pads[pad])
    reward = load_frozen(folder, EXACT)
    right = torch.tensor(expected(folder, CONVERSATIONS))
    torch.testing.assert_close(reward.score(CONVERSATIONS), right, atol=1e-5, rtol=1e-4)
    prompts = [encode_chat(reward.tokenizer, one[:-1], add_generation_prompt=True).ids for one in CONVERSATIONS]
    sampled = [[*reward.tokenizer.encode(one[-1]["content"]), tokenizer.end_of_turn_id] for one in CONVERSATIONS]
    groups = [[[*prompt, *ids]] for prompt, ids in zip(prompts, sampled, strict=True)]
    by_group = reward.score_groups(groups, [[one] for one in CONVERSATIONS])
    torch.testing.assert_close(torch.cat(by_group), right, atol=1e-5, rtol=1e-4)
    responses = [Response(ids, [0.0] * len(ids), True) for ids in sampled]
    rollout = pad_responses(prompts, responses, tokenizer.pad_id, torch.device("cpu"))
    torch.testing.assert_close(reward.score_responses(rollout, CONVERSATIONS), right, atol=1e-5, rtol=1e-4)


def test_ours_are_read_at_the_end_of_the_turn(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """With a template that goes on after the turn, another place than transformers': the token that we train at."""
    words = Tokenizer(tokenizer._backend, tokenizer.settings | {"chat_template": TEMPLATES["a newline after it"]})
    model = ScalarGPT(make_gpt("llama"), 0.5).initialise(torch.Generator().manual_seed(1))
    save_scorer(tmp_path, model, words)
    reward = load_frozen(tmp_path, EXACT)
    ids = encode_chat(words, CONVERSATIONS[0]).ids
    end = max(i for i, token in enumerate(ids) if token == words.end_of_turn_id)
    assert end < len(ids) - 1 and places_read(reward) == {"reward_read_at": ["end of turn"]}
    torch.testing.assert_close(reward.score(CONVERSATIONS[:1]), model(torch.tensor([ids]))[:, end])
    assert foreign_models(reward) is None


def test_a_reward_model_that_peft_saved_is_read_as_peft_reads_it(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Only an adapter and a head: the base is a language model, whose padding token is skipped."""
    save_policy(tmp_path / "base", make_gpt("llama"), tokenizer)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    settings = peft.LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj", "embed_tokens"])
    adapted = peft.get_peft_model(base, settings).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    adapted.save_pretrained(tmp_path / "adapter")
    assert holds_scorer(tmp_path / "adapter")
    reward = load_frozen(tmp_path / "adapter", EXACT)
    ids = [encode_chat(tokenizer, one).ids for one in CONVERSATIONS]
    with torch.no_grad():
        right = torch.cat([adapted(torch.tensor([one])).logits[:, 0] for one in ids])
    torch.testing.assert_close(reward.score(CONVERSATIONS), right, atol=1e-5, rtol=1e-4)
    assert reward.model.read_at == "last token"


def test_the_run_says_where(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = foreign(make_gpt, tokenizer, tmp_path / "rm", TEMPLATES["a newline after it"])
    (tmp_path / "one.jsonl").write_text(json.dumps({"messages": CONVERSATIONS[0]}) + "\n")
    score(str(folder), tmp_path / "one.jsonl", config=ScoreConfig(device="cpu", dtype="fp32"))
    said = capsys.readouterr()
    assert "read at the last token of a conversation, as in transformers" in said.err
    right = expected(folder, CONVERSATIONS[:1])
    assert json.loads(said.out)["data"][0]["score"] == pytest.approx(right[0], abs=1e-5)
    assert places_read(load_frozen(folder, EXACT)) == {"reward_read_at": ["last token"]}


def test_a_response_without_its_end_is_scored_as_if_it_had_one(
    make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Its score is not used, but its place must exist."""
    reward: ModelReward = load_frozen(foreign(make_gpt, tokenizer, tmp_path, CHAT_TEMPLATE), EXACT)
    whole = reward.encode(CONVERSATIONS[0])
    assert reward.up_to_score(whole[:-1]) == whole
