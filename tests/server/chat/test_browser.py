"""The chat page in Chromium: by mouse and keyboard, in two languages, on a phone, with no requests to other hosts."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from scripted import Models
from sqlalchemy import select

from tutelage.engine.engine import EngineConfig
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.runs.device import choose_device
from tutelage.runs.folder import save_policy
from tutelage.server.registry import Registry
from tutelage.store.tables import ChatMessage, Comparison, Conversation, Feedback, User, WebSession
from tutelage.text.tokenizer import Tokenizer
from tutelage.web import people

playwright_api = pytest.importorskip("playwright.sync_api")
uvicorn = pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow
expect = playwright_api.expect

ANSWER = "the **cat** sat on the mat.\n\n1. one\n2. two\n\n```\nand the dog\n```"
HOSTILE = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "![x](http://evil.example/x.png) [y](javascript:alert(1))",
    "'\"></div></script><svg onload=alert(1)>",
    "</template><iframe src='javascript:alert(1)'></iframe>",
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no Chromium on this machine (Debian, Ubuntu: apt install chromium)")
    with playwright_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def trained_models(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A real engine with a model of random weights."""
    shape = dict(width=16, layers=1, heads=2, kv_heads=2, head_width=8, hidden=32, context=200, qk_norm=True)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape)).initialise(torch.Generator().manual_seed(1))
    folder = tmp_path_factory.mktemp("runs") / "random"
    folder.mkdir()
    save_policy(folder, model, tokenizer)
    registry = Registry(choose_device("cpu", "fp32"), EngineConfig())
    registry.load(str(folder))
    yield registry
    registry.close()


@pytest.fixture
def visit(chromium: Any, site: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """visit("an answer", width=360, lang="zh-CN", theme="dark") -> an admin's page; page.site is the site.

    Errors, dialogs and requests to other hosts fail the test at its end.
    """
    servers, wrong = [], []

    def start(
        *answers: str, width: int = 1280, lang: str = "en-GB", theme: str = "light", kept: bool = True, **more: Any
    ) -> Any:
        made = site(*answers, **more)
        server = uvicorn.Server(uvicorn.Config(made.app, port=0, log_level="critical", timeout_graceful_shutdown=1))
        threading.Thread(target=server.run, daemon=True).start()
        wait(lambda: server.started)
        servers.append(server)
        host = f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        context = chromium.new_context(
            viewport={"width": width, "height": 760}, locale=lang, color_scheme=theme, has_touch=width < 500
        )
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda line: line.type in ("error", "warning") and wrong.append(line.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda asked: elsewhere(asked.url, host) and wrong.append(asked.url))
        page.goto(f"http://{host}/signin/{people.make_link(made.database, people.owner(made.database).id)}")
        page.goto(f"http://{host}/chat")
        page.site, page.wrong, page.host = made, wrong, f"http://{host}"
        if kept:
            allow_keeping(page)
        return page

    yield start
    for server in servers:
        server.should_exit = True
    for context in chromium.contexts:
        context.close()
    assert wrong == []


def elsewhere(url: str, host: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob") and parts.netloc != host


def wait(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def allow_keeping(page: Any) -> None:
    page.click("#recording")
    for box in ("allowed", "record", "train"):
        page.check(f"#{box}")
    page.click("#consent .primary")
    expect(page.locator("#recording.kept")).to_be_visible()


def ask(page: Any, text: str) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")
    done(page)


def done(page: Any) -> None:
    expect(page.locator("#status")).not_to_have_text("")
    expect(page.locator("#send")).to_be_visible()


def start_anew(page: Any) -> None:
    page.click("[data-act=new]")
    expect(page.locator("#empty")).to_be_visible()
    page.wait_for_load_state()


def answer(page: Any) -> Any:
    return page.locator(".turn.assistant").last


def act(page: Any, name: str) -> Any:
    return answer(page).locator(f"[data-act={name}]")


def rows(page: Any, table: Any) -> list[Any]:
    with page.site.database.read() as session:
        return list(session.scalars(select(table).order_by(table.id)))


def test_a_chat_by_mouse(visit) -> None:
    page = visit(ANSWER, "hello there", "how are you today?", "fine, thank you")
    page.click(".starters button >> nth=0")
    done(page)
    expect(answer(page).locator("strong")).to_have_text("cat")
    expect(answer(page).locator("pre")).to_contain_text("and the dog")
    assert page.url.rpartition("/")[2].startswith("cnv_")
    act(page, "copy").click()
    wait(lambda: page.evaluate("navigator.clipboard.readText()") == ANSWER)

    act(page, "thumb-down").click()
    page.get_by_text("Made up").click()
    page.fill("#comment", "not so")
    page.click("#reasons .primary")
    expect(act(page, "thumb-down")).to_have_attribute("aria-pressed", "true")
    wait(lambda: [(f.value, f.reasons, f.text) for f in rows(page, Feedback)] == [(-1, ["untrue"], "not so")])

    act(page, "regenerate").click()
    expect(answer(page).locator(".text")).to_have_text("hello there")
    expect(answer(page).locator(".count")).to_have_text("2/2")
    act(page, "previous").click()
    expect(answer(page).locator("strong")).to_have_text("cat")
    act(page, "following").click()

    act(page, "compare").click()
    expect(page.locator("#pair-choices")).to_be_visible()
    shown = {page.locator(f"#pair-{side}").inner_text() for side in "ab"}
    assert shown == {"hello there", "how are you today?"}
    assert "tiny" not in page.locator("#pair").inner_text()  # the models stay hidden
    page.locator("#pair-reasons").get_by_text("Helpful").click()
    page.click("[data-winner=a]")
    expect(page.locator("#pair-reasons")).to_be_hidden()
    expect(page.locator("#pair-a-origin")).to_contain_text("tiny")
    chosen = page.locator("#pair-a").inner_text()
    page.click("#pair-done button")
    expect(answer(page).locator(".text")).to_have_text(chosen)
    assert [(c.winner, c.reasons) for c in rows(page, Comparison)] == [("a", ["helpful"])]

    act(page, "better").click()
    page.fill("#better-text", "A better one.")
    page.click("#better .primary")
    expect(answer(page).locator(".text")).to_have_text("A better one.")
    assert [f.text for f in rows(page, Feedback) if f.kind == "demonstration"] == ["A better one."]

    page.locator(".turn.user").hover()
    page.click(".turn.user [data-act=edit]")
    page.fill(".edit textarea", "another question")
    page.click(".edit .primary")
    done(page)
    expect(page.locator(".turn.user .bubble")).to_have_text("another question")
    expect(page.locator(".turn.user .count")).to_have_text("2/2")

    page.reload()  # the recorded chat is still there
    expect(page.locator(".turn.user .bubble")).to_have_text("another question")
    page.click(".turn.user [data-act=previous]")
    expect(answer(page).locator(".text")).to_have_text("A better one.")
    page.click("#conversations [data-act=rename]")
    page.fill("#ask-input", "Renamed")
    page.press("#ask-input", "Enter")
    expect(page.locator("#conversations .name")).to_have_text("Renamed")
    page.click("#conversations [data-act=delete]")
    page.click("#ask-yes")
    page.wait_for_url("**/chat")
    assert rows(page, ChatMessage) == []


def tab_to(page: Any, selector: str, back: bool = False) -> None:
    """Press Tab until the focus is there: as many presses as there are stops at most."""
    for _ in range(80):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        if page.evaluate("s => document.activeElement?.matches(s)", selector):
            return
    raise AssertionError(f"the keyboard does not reach {selector}")


def test_a_chat_by_keyboard_alone_in_chinese(visit) -> None:
    page = visit("你好，谢谢你", "今天天气很好", lang="zh-CN", kept=False)
    tab_to(page, "#recording", back=True)
    page.keyboard.press("Enter")
    tab_to(page, "#allowed")
    page.keyboard.press("Space")
    tab_to(page, "#record")
    page.keyboard.press("Space")
    tab_to(page, "#consent .primary")
    page.keyboard.press("Enter")
    expect(page.locator("#recording")).to_have_text("已保存")
    tab_to(page, "#message")
    page.keyboard.type("你好吗？")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("第二行")
    page.keyboard.press("Enter")
    expect(answer(page).locator(".text")).to_have_text("你好，谢谢你")
    expect(page.locator(".turn.user .bubble")).to_have_text("你好吗？\n第二行")
    expect(answer(page).locator(".text")).to_have_attribute("lang", "zh-Hans")
    expect(page.locator("#message")).to_be_focused()
    tab_to(page, ".assistant [data-act=thumb-up]", back=True)
    page.keyboard.press("Enter")
    expect(page.locator("#reasons")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".assistant [data-act=thumb-up]")).to_be_focused()
    tab_to(page, ".assistant [data-act=compare]")
    page.keyboard.press("Enter")
    expect(page.locator("#pair-choices button").first).to_be_focused()
    page.keyboard.press("3")
    page.keyboard.press("3")  # a second press is ignored
    expect(page.locator("#pair-done button")).to_be_focused()
    page.keyboard.press("Enter")
    assert [c.winner for c in rows(page, Comparison)] == ["tie"]
    page.keyboard.press("Control+ArrowUp")
    expect(page.locator(".edit textarea")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".edit")).to_have_count(0)


def test_the_keyboard_is_trapped_nowhere(visit) -> None:
    page = visit("hello")
    ask(page, "one")
    page.evaluate("document.activeElement.blur()")
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            return  # past the last element
    raise AssertionError("Tab never leaves the page")


def test_a_real_model_answers(visit, trained_models: Registry) -> None:
    page = visit(models=trained_models)
    page.click("[data-act=settings]")
    page.fill("#seed", "5")
    page.fill("#max_tokens", "12")
    page.click("#settings .primary")
    ask(page, "hello")
    act(page, "regenerate").click()
    expect(page.locator("#send")).to_be_visible()
    question, first, second = rows(page, ChatMessage)
    assert first.content and first.content == second.content  # the same seed
    assert first.model_id == "random" and first.fingerprint.startswith("fp_") and 0 < first.completion_tokens <= 12
    assert first.prompt_tokens and first.ttft_ms is not None


def test_stop_ends_the_answer_and_keeps_what_there_is(visit) -> None:
    page = visit("the cat sat on the mat and the dog sat on the cat", pause=0.15)
    page.fill("#message", "tell me")
    page.press("#message", "Enter")
    expect(answer(page).locator(".text")).to_contain_text("the")
    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_be_visible()
    expect(answer(page).locator(".note")).to_have_text("Stopped.")
    wait(lambda: page.site.engine.running == 0)
    assert page.site.engine.cancelled == 1
    wait(lambda: [m.finish_reason for m in rows(page, ChatMessage)] == [None, "cancelled"])
    kept = rows(page, ChatMessage)[-1].content
    assert kept and "the cat sat on the mat and the dog sat on the cat".startswith(kept)
    act(page, "regenerate").click()
    page.click("#stop")
    expect(page.locator("#send")).to_be_visible()


def test_reasoning_is_folded_and_can_be_read(visit) -> None:
    """Also while it is being written. The copied answer is without it."""
    page = visit("<think>\n" + "the cat sat on the mat. " * 4 + "\n</think>\n\nthe **dog**", lang="zh-CN", pause=0.02)
    ask(page, "hello")
    expect(answer(page).locator(".thinking summary")).to_have_text("思考过程")
    expect(answer(page).locator(".thinking .plain")).to_contain_text("the cat sat")
    expect(answer(page).locator(".thinking .plain")).to_be_hidden()
    done(page)
    expect(answer(page).locator(".thinking")).to_be_hidden()
    for _ in range(2):
        folded = answer(page).locator(".text details.reasoning")
        expect(answer(page).locator("strong")).to_have_text("dog")
        expect(folded.locator("p")).to_be_hidden()
        folded.locator("summary").click()
        expect(folded.locator("p")).to_contain_text("the cat sat on the mat.")
        page.reload()  # the recorded chat has it, too
    act(page, "copy").click()
    wait(lambda: page.evaluate("navigator.clipboard.readText()") == "the **dog**")


def test_what_no_longer_fits_is_shown(visit) -> None:
    page = visit("one two three")
    for number in range(7):
        ask(page, f"{number} " + "the cat sat on the mat, " * 4)
    expect(page.locator(".dropped")).to_be_visible()
    unseen = page.locator(".turn.unseen").count()
    assert unseen > 0 and unseen % 2 == 0
    expect(page.locator(".dropped")).to_contain_text(f"no longer sees the {unseen} messages above")
    page.reload()
    expect(page.locator(".dropped")).to_be_visible()
    assert page.locator(".turn.unseen").count() == unseen


def test_enter_of_an_input_method_sends_nothing(visit) -> None:
    page = visit("hello")
    page.fill("#message", "ni hao")
    for how in ("isComposing: true", "keyCode: 229"):
        script = f"e => e.dispatchEvent(new KeyboardEvent('keydown', {{key: 'Enter', bubbles: true, {how}}}))"
        page.locator("#message").evaluate(script)
    assert page.input_value("#message") == "ni hao" and page.site.engine.asked == []
    page.press("#message", "Enter")
    done(page)
    assert len(page.site.engine.asked) == 1


def test_a_temporary_chat_is_never_kept(visit) -> None:
    page = visit("hello", "good day")
    page.click("#temporary")
    expect(page.locator("#recording")).to_have_text("Temporary")
    ask(page, "a secret")
    act(page, "thumb-up").click()
    expect(page.locator("#toast")).to_contain_text("temporary chat is not kept")
    act(page, "compare").click()
    page.click("[data-winner=b]")
    page.click("#pair-done button")
    assert rows(page, ChatMessage) == rows(page, Comparison) == rows(page, Feedback) == []
    assert page.url.endswith("/chat")


def test_without_consent_a_thumb_asks_for_it(visit) -> None:
    page = visit("hello", kept=False)
    expect(page.locator("#banner")).to_be_visible()
    page.click("[data-act=no-banner]")
    expect(page.locator("#banner")).to_be_hidden()
    ask(page, "hi")
    act(page, "thumb-up").click()
    expect(page.locator("#consent")).to_be_visible()
    assert rows(page, ChatMessage) == rows(page, Feedback) == []


def test_settings_are_sent_and_remembered(visit) -> None:
    page = visit("one two three four five", kept=False)
    page.click("[data-act=settings]")
    page.fill("#system", "be kind")
    page.locator("#temperature").focus()
    page.keyboard.press("Home")
    page.fill("#max_tokens", "2")
    page.click("#settings .primary")
    ask(page, "hi")
    asked = page.site.engine.asked[-1]
    assert asked.sampling.temperature == 0 and asked.max_new_tokens == 2
    assert "be kind" in page.site.engine.tokenizer.decode(list(asked.prompt))
    expect(answer(page).locator(".note")).to_be_visible()  # says that the answer was cut off
    page.reload()
    assert page.input_value("#system") == "be kind" and page.input_value("#max_tokens") == "2"
    expect(page.locator(".turn")).to_have_count(2)  # the chat is still in its tab, too
    start_anew(page)
    assert page.input_value("#system") == page.input_value("#max_tokens") == ""


def test_the_limit_of_an_answer_is_shown(visit) -> None:
    """The model's context is 400 tokens: an answer gets 100 by default and at most 200."""
    page = visit("one two three four five six seven", kept=False)
    expect(page.locator("#in-force")).to_have_text("Temperature 0.70 · Min p 0.10 · Answers up to 100 tokens")
    page.click("#in-force")
    expect(page.locator("#max_tokens")).to_have_attribute("placeholder", "100")
    expect(page.locator("#max_tokens-hint")).to_have_text(
        "At most 200, which is half of the model's context of 400 tokens. If this is empty: 100."
    )
    page.fill("#max_tokens", "3")
    page.click("#settings .primary")
    expect(page.locator("#in-force")).to_contain_text("Answers up to 3 tokens")
    ask(page, "count")
    expect(answer(page).locator(".note")).to_have_text("Cut off after 3 tokens. The limit is in the settings.")
    page.click("#in-force")
    page.fill("#max_tokens", "")
    page.click("#settings .primary")
    ask(page, "count")
    assert [request.max_new_tokens for request in page.site.engine.asked] == [3, 100]


def test_settings_belong_to_a_chat(visit) -> None:
    page = visit("hello")
    ask(page, "the first")
    first = page.url
    start_anew(page)
    page.click("#in-force")
    page.fill("#system", "speak like a pirate")
    page.locator("#temperature").fill("0.2")
    page.click("#settings .primary")
    ask(page, "the second")
    second = page.url
    words = "Temperature 0.20 · Min p 0.10 · Answers up to 100 tokens · System prompt: speak like a pirate"
    expect(page.locator("#in-force")).to_have_text(words)
    usual = "Temperature 0.70 · Min p 0.10 · Answers up to 100 tokens"
    for url, shown in ((first, usual), (second, words), (f"{page.host}/chat", usual)):
        page.goto(url)
        expect(page.locator("#in-force")).to_have_text(shown)
    page.goto(first)
    page.click("#in-force")
    page.fill("#seed", "7")
    page.keyboard.press("Escape")  # without an answer after it
    expect(page.locator("#in-force")).to_contain_text("Seed 7")
    wait(lambda: [chat.settings.get("seed") for chat in rows(page, Conversation)].count(7) == 1)
    page.goto(second)
    expect(page.locator("#in-force")).to_have_text(words)
    page.goto(first)
    expect(page.locator("#in-force")).to_have_text("Temperature 0.70 · Min p 0.10 · Seed 7 · Answers up to 100 tokens")


def test_another_language_keeps_the_chat(visit) -> None:
    """One that is not kept with its settings, its draft and an edit in progress; and one that is kept by now."""
    page = visit("hello", "good day")
    page.click("#temporary")
    page.click("#in-force")
    page.fill("#system", "be kind")
    page.click("#settings .primary")
    ask(page, "a secret")
    page.locator(".turn.user").hover()
    page.click(".turn.user [data-act=edit]")
    page.fill(".edit textarea", "a big secret")
    page.fill("#message", "half a thought")
    page.click("text=中文")
    expect(page.locator("html")).to_have_attribute("lang", "zh-Hans")
    expect(answer(page).locator(".text")).to_have_text("hello")
    expect(page.locator("#recording")).to_have_text("临时")
    assert (page.input_value("#message"), page.input_value("#system")) == ("half a thought", "be kind")
    assert page.input_value(".edit textarea") == "a big secret"
    page.click(".edit .primary")
    expect(page.locator(".turn.user .count")).to_have_text("2/2")
    assert rows(page, ChatMessage) == []

    start_anew(page)
    ask(page, "this is kept")
    kept = page.url
    page.fill("#message", "and this is not sent")
    page.click("text=English")
    expect(page.locator("html")).to_have_attribute("lang", "en")
    assert page.url.partition("?")[0] == kept
    expect(page.locator(".turn.user .bubble")).to_have_text("this is kept")
    assert page.input_value("#message") == "and this is not sent"


def test_what_was_left_does_not_come_back(visit) -> None:
    page = visit("hello", kept=False)
    ask(page, "hi")
    page.click(".who a")
    page.click("#ask-yes")
    page.wait_for_url("**/account")
    page.goto(page.host + "/chat")
    expect(page.locator("#empty")).to_be_visible()
    ask(page, "hi")
    page.click("form[action='/logout'] button")
    page.wait_for_url("**/login*")
    sign_in(page, people.owner(page.site.database).id)
    page.goto(page.host + "/chat")
    expect(page.locator("#empty")).to_be_visible()


def test_nothing_is_lost_while_the_server_is_away(visit) -> None:
    page = visit("hello")
    page.context.set_offline(True)
    page.fill("#message", "are you there?")
    page.press("#message", "Enter")
    expect(page.locator("#toast")).to_have_text("The server cannot be reached.")
    expect(page.locator("#message")).to_have_value("are you there?")
    page.context.set_offline(False)
    page.press("#message", "Enter")
    expect(answer(page).locator(".text")).to_have_text("hello")
    page.wrong[:] = [line for line in page.wrong if "ERR_INTERNET_DISCONNECTED" not in line]


def test_a_draft_survives_a_reload(visit) -> None:
    page = visit("hello", kept=False)
    page.locator("#message").press_sequentially("half a thought")
    page.reload()
    expect(page.locator("#message")).to_have_value("half a thought")
    page.press("#message", "Enter")
    done(page)
    page.reload()
    expect(page.locator("#message")).to_have_value("")


def test_an_answer_that_a_killed_server_left_says_so(visit) -> None:
    page = visit("hello")
    ask(page, "hi")
    expect(answer(page).locator(".note")).to_be_hidden()
    with page.site.database.write() as session:
        session.query(ChatMessage).filter_by(role="assistant").update({"content": "", "finish_reason": None})
    page.reload()
    expect(answer(page).locator(".note")).to_have_text("This answer is not finished.")


def test_an_edit_that_fails_keeps_its_words(visit) -> None:
    page = visit("hello", "good day")
    ask(page, "hi")
    page.context.set_offline(True)
    page.locator(".turn.user").hover()
    page.click(".turn.user [data-act=edit]")
    page.fill(".edit textarea", "good morning")
    page.click(".edit .primary")
    expect(page.locator("#toast")).to_have_text("The server cannot be reached.")
    expect(page.locator(".edit textarea")).to_have_value("good morning")
    page.context.set_offline(False)
    page.click(".edit .primary")
    expect(answer(page).locator(".text")).to_have_text("good day")
    page.wrong[:] = [line for line in page.wrong if "ERR_INTERNET_DISCONNECTED" not in line]


def test_a_question_asked_after_the_session_ended_is_there_after_signing_in(visit) -> None:
    page = visit("hello")
    with page.site.database.write() as session:
        session.query(WebSession).delete()
    page.fill("#message", "are you there?")
    page.press("#message", "Enter")
    page.wait_for_url("**/login?next=%2Fchat")
    sign_in(page, people.owner(page.site.database).id)
    expect(page.locator("#message")).to_have_value("are you there?")
    page.wrong[:] = [line for line in page.wrong if "401" not in line]


def sign_in(page: Any, user_id: str) -> None:
    page.goto(f"{page.host}/signin/{people.make_link(page.site.database, user_id)}")


def test_the_next_person_at_this_browser_finds_nothing(visit) -> None:
    page = visit("hello")
    page.click("[data-act=settings]")
    page.fill("#system", "my secret")
    page.click("#settings .primary")
    page.locator("#message").press_sequentially("half a thought")
    with page.site.database.write() as session:
        session.add(User(id="usr_other", name="other", role="user"))
    sign_in(page, "usr_other")
    assert page.input_value("#system") == page.input_value("#message") == ""
    sign_in(page, people.owner(page.site.database).id)
    assert (page.input_value("#system"), page.input_value("#message")) == ("my secret", "half a thought")


def test_a_link_away_from_a_chat_that_is_not_kept_asks_first(visit) -> None:
    page = visit("hello", kept=False)
    page.click(".who a")
    page.wait_for_url("**/account")  # nothing to lose yet
    page.go_back()
    page.wait_for_load_state()  # the script that listens for Enter has loaded
    ask(page, "hi")
    page.click(".who a")
    expect(page.locator("#ask-title")).to_have_text("Leave this chat?")
    page.click("#ask [data-act=close-dialog] >> nth=1")
    expect(answer(page).locator(".text")).to_have_text("hello")


def test_code_is_copied_alone_and_that_is_seen(visit) -> None:
    page = visit("see:\n\n```\nx = 1\n```\n\nand [a link](http://example.org)")
    ask(page, "hi")
    page.locator(".code").hover()
    page.click("[data-act=copy-code]")
    wait(lambda: page.evaluate("navigator.clipboard.readText()") == "x = 1\n")
    expect(page.locator("[data-act=copy-code] use")).to_have_attribute("href", "#icon-check")
    expect(page.locator("[data-act=copy-code] use")).to_have_attribute("href", "#icon-copy")
    expect(answer(page).locator("a")).to_have_attribute("target", "_blank")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as without TLS
    page.evaluate("addEventListener('copy', () => (window.copied = String(document.activeElement.value)))")
    act(page, "copy").click()
    wait(lambda: page.evaluate("window.copied").startswith("see:"))
    expect(act(page, "copy")).to_be_focused()


@pytest.mark.parametrize(
    "text, lang, rtl",
    [("مرحبا بالعالم", "", True), ("hello", "en", False), ("你好", "zh-Hans", False), ("こんにちは世界", "ja", False)],
)
def test_text_runs_as_its_script_does(visit, text: str, lang: str, rtl: bool) -> None:
    page = visit(text, kept=False)
    ask(page, text)
    for place in (".bubble", ".answer"):
        found = page.locator(f".thread {place}")
        assert found.evaluate("e => e.matches(':dir(rtl)')") == rtl
        expect(found).to_have_attribute("lang", lang)


def test_a_second_answer_that_is_the_same_is_no_pair(visit) -> None:
    page = visit("hello")
    ask(page, "hi")
    act(page, "compare").click()
    expect(page.locator("#toast")).to_contain_text("the same, word for word")
    expect(page.locator("#pair")).to_be_hidden()
    assert rows(page, Comparison) == []


def test_a_renamed_chat_keeps_the_focus_and_its_name(visit) -> None:
    page = visit("hello")
    ask(page, "hi")
    pen = page.locator("#conversations [data-act=rename]")
    pen.click()
    page.fill("#ask-input", "<b>New</b> name")
    page.press("#ask-input", "Enter")
    expect(page.locator("#conversations .name")).to_have_text("<b>New</b> name")
    expect(pen).to_be_focused()
    expect(page).to_have_title("<b>New</b> name · Tutelage")


def test_without_a_model_nothing_can_be_asked(visit) -> None:
    page = visit(models=Models(), kept=False)
    expect(page.locator("#empty .problem")).to_be_visible()
    page.fill("#message", "hi")
    page.press("#message", "Enter")
    expect(page.locator("#send")).to_be_disabled()
    assert page.input_value("#message") == "hi" and page.locator(".starters").count() == 0


def test_hostile_text_runs_and_loads_nothing(visit) -> None:
    page = visit(*HOSTILE)
    for text in HOSTILE:
        ask(page, text)
    page.reload()
    page.wait_for_timeout(300)
    assert page.locator(".turn").count() == 2 * len(HOSTILE)
    for tag in ("img", "iframe", "script", "svg:not(.icon)", "[onload]", "[href^=javascript]"):
        assert page.locator(f".thread .text {tag}").count() == 0
    assert page.locator(".bubble").first.inner_text() == HOSTILE[0]


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("lang", ["en-GB", "zh-CN"])
def test_every_sheet_fits_and_is_accessible(visit, width: int, lang: str) -> None:
    """axe finds nothing serious in either theme; nothing is wider than the screen."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(ANSWER, "hello there", lang=lang, width=width, kept=False)
    found = []

    def look(where: str) -> None:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), where
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            violations = axe.run(page).response["violations"]
            serious = [v for v in violations if v["impact"] in ("serious", "critical")]
            found.extend((where, theme, v["id"], [node["html"] for node in v["nodes"]][:3]) for v in serious)

    look("empty")
    allow_keeping(page)
    ask(page, "hello")
    look("chat")
    for button, dialog in [
        ("[data-act=settings]:visible", "#settings"),
        ("#recording", "#consent"),
        (".assistant [data-act=thumb-down]", "#reasons"),
        (".assistant [data-act=better]", "#better"),
        (".assistant [data-act=compare]", "#pair-choices"),
    ]:
        page.click(button)
        expect(page.locator(dialog)).to_be_visible()
        look(dialog)
        page.keyboard.press("Escape")
    if width == 360:
        page.click("[data-act=open-sidebar]")
        expect(page.locator("#sidebar [data-act=close-sidebar]")).to_be_focused()
        look("drawer")
        page.keyboard.press("Escape")
        expect(page.locator("#sidebar")).to_be_hidden()
    assert found == []


@pytest.mark.parametrize("width", [360, 1280])
def test_the_pages_around_it_are_accessible(visit, width: int) -> None:
    """Account, people, sign-in, an error: axe finds nothing serious in either theme; none is wider than the screen."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit("hello", lang="zh-CN", width=width, kept=False)
    found = []
    for path in ("/account", "/people", "/nowhere", "/login"):
        page.goto(page.host + path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            violations = axe.run(page).response["violations"]
            found += [(path, theme, v["id"]) for v in violations if v["impact"] in ("serious", "critical")]
    assert found == []
    page.wrong[:] = [line for line in page.wrong if "404" not in line]


def test_light_and_dark_can_be_chosen(visit) -> None:
    page = visit("hello", kept=False)
    paper = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(paper)
    page.click("[data-act=theme]")
    assert page.evaluate(paper) != before
    page.reload()
    assert page.evaluate(paper) != before
    page.goto(page.host + "/account")  # the choice holds on every page
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
