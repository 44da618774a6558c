"""The chat page without a browser: its texts, size, content policy, and references to elements and files."""

import gzip
import json
import re
from html import unescape

import pytest

from tutelage.server.chat.strings import strings
from tutelage.terminal.conversation import ChatConfig
from tutelage.web.translations import FOLDER, translations

STATIC = FOLDER.parent.parent / "server" / "chat" / "static"
WEIGHT = 60_000  # compressed bytes of everything that a first visit loads


def page_of(site, lang: str = "en") -> str:
    person = site().person("admin")
    return person.client.get(f"/chat?lang={lang}", headers={"accept": "text/html"}).text


def test_the_page_is_light_and_all_its_own(site) -> None:
    html = page_of(site)
    named = re.findall(r'(?:src|href)="(/static/[^"]+)"', html)
    imported = {f"/static/server/{path.name}" for path in STATIC.glob("*.js")}
    styles = {f"/static/server/{path.name}" for path in STATIC.glob("*.css")}
    assert set(named) <= imported | styles | {"/static/app.css", "/static/theme.js", "/static/icon.svg"}
    loaded = [html.encode()]
    for path in {*named, *imported}:
        folder = STATIC if "/server/" in path else FOLDER.parent / "static"
        loaded.append((folder / path.rpartition("/")[2]).read_bytes())
    assert sum(len(gzip.compress(part)) for part in loaded) <= WEIGHT


def test_nothing_is_inline(site) -> None:
    html = page_of(site)
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", html)
    assert html.count("<h1") == 1 and '<html lang="en">' in html


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_scripts_find_their_words(site, lang: str) -> None:
    html = page_of(site, lang)
    given = json.loads(unescape(html.split("data-strings='")[1].split("'")[0]))
    assert given == strings(translations(lang).gettext)
    code = "\n".join(path.read_text(encoding="utf-8") for path in STATIC.glob("*.js"))
    assert set(re.findall(r"\bstrings\.(\w+)", code)) == set(given)


def test_every_button_has_its_act(site) -> None:
    """The actions in the templates are those that the script knows."""
    acts = set(re.findall(r'data-act="([\w-]+)"', page_of(site)))
    table = (STATIC / "chat.js").read_text(encoding="utf-8").split("const ACTS = {")[1].split("\n};")[0]
    known = {quoted or plain for quoted, plain in re.findall(r'^  (?:"([\w-]+)"|(\w+))[:,]', table, re.MULTILINE)}
    assert acts == known | {"cancel-edit"}  # the edit form handles it


def test_every_element_that_the_scripts_name_exists(site) -> None:
    html = page_of(site)
    there = set(re.findall(r'\bid="([\w-]+)"', html))
    code = "\n".join(path.read_text(encoding="utf-8") for path in STATIC.glob("*.js"))
    named = set(re.findall(r'(?:byId|sheet|field|getElementById|open)\("([\w-]+)"\)', code))
    assert named - there == set()


def test_browsers_reload_scripts_after_an_upgrade(site) -> None:
    client = site().person().client
    for path in ("/static/server/chat.js", "/static/app.css"):
        first = client.get(path)
        assert first.headers["cache-control"] == "no-cache" and first.headers["x-content-type-options"] == "nosniff"
        again = client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert again.status_code == 304 and again.headers["cache-control"] == "no-cache"


def test_other_people_do_not_see_the_policy_switch(site) -> None:
    made = site()
    assert 'id="allowed"' in made.person("admin").client.get("/chat").text
    assert 'id="allowed"' not in made.person("user").client.get("/chat").text


def test_an_unknown_chat_is_not_found(site) -> None:
    person = site().person()
    assert person.client.get("/chat/cnv_nothing", headers={"accept": "text/html"}).status_code == 404


def test_markdown_is_made_safe(site) -> None:
    status, made = site().person().send("POST", "/chat/markdown", {"text": "**a** <script>alert(1)</script>"})
    assert status == 200 and made["html"].startswith("<p><strong>a</strong>") and "<script" not in made["html"]


def test_the_page_suggests_the_models_own_questions(site) -> None:
    """Of the first model; the others' are in the page, hidden. A model without any gets general ones, translated."""
    opened = site()
    models = opened.app.state.registry
    models.engines["other"] = models.engines["tiny"]
    models.suggestions["other"] = ("Where are you right now?",)
    for lang, general in (("en", "How was your day?"), ("zh", "你今天过得怎么样？")):
        html = opened.person().client.get(f"/chat?lang={lang}", headers={"accept": "text/html"}).text
        lists = dict(re.findall(r'<ul class="starters" data-model="(\w+)"(?: hidden)?>(.*?)</ul>', html, re.DOTALL))
        texts = {model: re.findall(r">([^<]+)</button>", found) for model, found in lists.items()}
        assert texts["other"] == ["Where are you right now?"]
        assert texts["tiny"][0] == general and len(texts["tiny"]) == 4
        assert 'data-model="other" hidden>' in html and 'data-model="tiny">' in html


def test_the_page_and_the_terminal_sample_alike(site) -> None:
    """The page sends its settings, which are those of `tutelage chat`."""
    given = json.loads(unescape(page_of(site).split("data-page='")[1].split("'")[0]))["defaults"]
    terminal = ChatConfig()
    assert given == {"temperature": terminal.temperature, "top_p": terminal.top_p, "min_p": terminal.min_p}
    assert 0 < terminal.temperature < 1 and 0 < terminal.min_p < 1
