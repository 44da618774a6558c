"""Prompts: which turns become prompts, how prompts are cut to fit, and which are selected."""

from tutelage.data import prompts
from tutelage.data.records import Prompt
from tutelage.data.sources import Conversation
from tutelage.text.chat import encode_chat


def turns(*contents: str):
    return [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


def test_every_user_turn_with_a_real_word():
    conversation = Conversation(
        "c", ("p", "q"), turns("hi you", "b", "?!", "d", "e5", "f", "今", "h", "last one"), None
    )
    found = list(prompts.from_conversation(conversation, "test"))
    assert [p.prompt[-1]["content"] for p in found] == ["hi you", "今", "last one"]
    assert all(p.conversation == "c" and p.split == "test" for p in found)
    assert [m["content"] for m in found[-1].prompt] == [
        "e5",
        "f",
        "今",
        "h",
        "last one",
    ]  # five: the sixth, d, is an assistant turn


def length(tokenizer, messages) -> int:
    return len(encode_chat(tokenizer, messages, add_generation_prompt=True).ids)


def test_fit_drops_the_oldest_turns(tokenizer):
    messages = turns("hello there " * 10, "fine", "how are you", "thank you", "fine today?")
    prompt = Prompt(messages, "here", "test")
    sizes = [length(tokenizer, messages[start:]) for start in (0, 2, 4)]
    for limit in range(sizes[0] + 2):
        fitted = prompts.fit(prompt, tokenizer, limit)
        longest = next((2 * i for i, size in enumerate(sizes) if size <= limit), None)
        assert (fitted and fitted.prompt) == (None if longest is None else messages[longest:])
    assert prompts.fit(Prompt(messages[:1], "here", "test"), tokenizer, 10) is None


def test_fit_keeps_the_system_turn(tokenizer):
    system = {"role": "system", "content": "you are fine"}
    messages = [system, *turns("hello there " * 10, "fine", "today?")]
    kept = [system, messages[-1]]
    fitted = prompts.fit(Prompt(messages, "here", "test"), tokenizer, length(tokenizer, kept))
    assert fitted is not None and fitted.prompt == kept


def test_choice_is_by_hash_and_limited_by_conversation():
    pool = [Prompt(turns(f"text {i}"), "here", "test", str(i % 10)) for i in range(200)]
    chosen = prompts.choose(pool, 15, 2, "a")
    assert len(chosen) == 15 and len({p.prompt[0]["content"] for p in chosen}) == 15
    assert max(sum(p.conversation == str(c) for p in chosen) for c in range(10)) <= 2
    assert prompts.choose(list(reversed(pool)), 15, 2, "a") == chosen  # the order of the pool does not matter
    assert prompts.choose(pool, 15, 2, "b") != chosen
    assert prompts.choose(pool, 10, 2, "a") == chosen[:10]
    assert len(prompts.choose(pool, 100, 2, "a")) == 20


def test_prompts_without_a_conversation_do_not_limit_each_other():
    pool = [Prompt(turns(f"text {i}"), "here", "test") for i in range(9)]
    assert len(prompts.choose(pool, 9, 1, "a")) == 9
