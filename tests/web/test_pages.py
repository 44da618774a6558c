"""Pages: two languages, escaped text, and no references to other hosts."""

import re
from pathlib import Path

import pytest
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po

from tutelage.web.pages import markdown
from tutelage.web.problems import problems
from tutelage.web.translations import FOLDER, choose

PACKAGE = FOLDER.parent.parent
PAGE_PARTS = (
    "chat/answers",
    "chat/page",
    "chat/context",
    "chat/conversations",
    "chat/feedback",
    "chat/consent",
    "generation",
)

METHODS = [("**/templates/**.html", "jinja2"), ("**.py", "python")]


def messages_of_the_code() -> set[str]:
    return {
        message
        for _, _, message, _, _ in extract_from_dir(PACKAGE, METHODS, keywords={"_": None})
        if isinstance(message, str)
    }


def test_every_message_has_its_chinese_and_no_other() -> None:
    with open(FOLDER / "zh.po", "rb") as file:
        catalogue = {message.id: message.string for message in read_po(file) if message.id}
    assert messages_of_the_code() == set(catalogue)
    assert [key for key, value in catalogue.items() if not value] == []


@pytest.mark.parametrize(
    "header, locale",
    [("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("en-GB,zh;q=0.5", "en"), ("de", "en"), ("", "en"), ("fr, zh-TW;q=0.1", "zh")],
)
def test_the_browser_says_which_language(browser, header: str, locale: str) -> None:
    page = browser(None, **{"accept-language": header}).get("/login").text
    assert ("登录" in page, "Sign in" in page) == (locale == "zh", locale == "en")
    assert f'<html lang="{"zh-Hans" if locale == "zh" else "en"}">' in page


def test_a_chosen_language_is_remembered(browser) -> None:
    client = browser(None)
    assert "登录" in client.get("/login?lang=zh").text
    assert "登录" in client.get("/login").text
    assert "Sign in" in client.get("/login?lang=en").text
    assert choose("xx", None) == "en"


def test_an_error_speaks_the_readers_language(browser) -> None:
    person = browser("user")
    assert "There is no such page." in person.get("/nowhere").text
    assert "没有这个页面。" in person.get("/nowhere?lang=zh").text
    assert "你的角色无权进行此操作。" in person.get("/people").text
    assert "已被使用" in browser(None).post("/signin/x?lang=zh").text


def test_there_are_words_for_every_error_of_a_page() -> None:
    """Every error code that pages can raise has a sentence, except those about a single field."""
    raised = set()
    for name in ("web/auth", "web/login", "web/envelope", "web/errors", *(f"server/{part}" for part in PAGE_PARTS)):
        raised |= set(re.findall(r'code="(\w+)"', (PACKAGE / f"{name}.py").read_text(encoding="utf-8")))
    said_in_detail = {
        "invalid_value", "invalid_json", "missing_required_parameter", "method_not_supported", "invalid_api_key",
        "unsupported_media_type", "format_failed",
    }  # fmt: skip
    assert raised - said_in_detail == set(problems(str))


@pytest.mark.parametrize("path", ["/login", "/account", "/people", "/nowhere"])
def test_pages_carry_their_policy_and_load_nothing_from_elsewhere(browser, path: str) -> None:
    response = browser("admin").get(path)
    assert "default-src 'none'; script-src 'self'" in response.headers["content-security-policy"]
    assert not re.search(r"""(src|href|action)=["']?(https?:)?//""", response.text)
    assert not re.search(r"<script(?! src=./static)| on\w+=|style=", response.text)


def test_names_are_escaped(browser, csrf) -> None:
    admin = browser("admin")
    page = admin.post("/people", data={"csrf": csrf(admin), "name": "<script>alert(1)</script>", "role": "user"}).text
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


@pytest.mark.parametrize(
    "text, absent",
    [
        ("<script>alert(1)</script>", "<script"),
        ("[x](javascript:alert(1))", "href"),
        ("![x](http://evil.example/x.png)", "<img"),
        ('<img src=x onerror="alert(1)">', "<img"),
        ("[x](data:text/html;base64,xxxx)", "href"),
        ("<b onclick=x>y</b>", "<b"),
    ],
)
def test_markdown_of_a_model_runs_and_loads_nothing(text: str, absent: str) -> None:
    assert absent not in markdown(text)


def test_markdown_is_markdown() -> None:
    assert markdown("**a**\n\n| x | y |\n|---|---|\n| 1 | 2 |").count("<td>") == 2
    assert "<strong>a</strong>" in markdown("**a**")


def test_no_file_for_browsers_names_another_host() -> None:
    for folder in ("web", "server"):
        for path in Path(PACKAGE / folder).rglob("*"):
            if path.suffix in (".html", ".css", ".js"):
                assert not re.search(r"https?://", path.read_text(encoding="utf-8")), path
