"""From a template to a page: its language, its person, and what every page has.

    pages.render(request, "chat.html", conversation=...)  ->  HTML

Each room brings its own folder of templates; all build on `base.html`. Text from people and models is escaped unless
it went through `markdown`, which sanitises. A template has `_` (translate), `caller`, `csrf`, `locale`, `lang`,
`path` and `languages`.
"""

from functools import cache
from pathlib import Path
from typing import Any

import nh3
from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from tutelage.web.errors import ApiError
from tutelage.web.problems import problems
from tutelage.web.translations import HTML_LANG, NAMES, choose, translations

YEAR = 365 * 24 * 3600
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SAFE_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}


class Pages:
    """Renders the templates of all rooms."""

    def __init__(self, *folders: Path):
        self._folders = [Path(__file__).parent / "templates", *folders]
        self._environment = cache(self._make)

    def _make(self, locale: str) -> Environment:
        environment = Environment(
            loader=FileSystemLoader(self._folders), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True, extensions=["jinja2.ext.i18n"],
        )  # fmt: skip
        environment.install_gettext_translations(translations(locale), newstyle=True)  # type: ignore[attr-defined]
        environment.filters["markdown"] = markdown
        return environment

    def render(self, request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        """The page in the language of its reader; `?lang=zh` anywhere chooses one, and a cookie remembers it."""
        wish = request.query_params.get("lang")
        locale = language(request)
        caller = getattr(request.state, "caller", None)
        common = {
            "caller": caller, "csrf": caller.csrf if caller else "", "locale": locale, "lang": HTML_LANG[locale],
            "languages": NAMES, "path": request.url.path,
        }  # fmt: skip
        html = self._environment(locale).get_template(template).render(common | context)
        response = HTMLResponse(html, status, SAFE_HEADERS)
        if wish == locale:
            response.set_cookie("lang", locale, max_age=YEAR, samesite="lax")
        return response

    def error(self, request: Request, error: ApiError) -> HTMLResponse:
        known = problems(translations(language(request)).gettext)
        message = known.get(error.body["code"] or "", error.detail)
        return self.render(request, "error.html", error.status_code, code=error.status_code, message=message)


def language(request: Request) -> str:
    """en or zh: asked for in the address, remembered in a cookie, or what the browser prefers."""
    accept = request.headers.get("accept-language", "")
    return choose(request.query_params.get("lang"), request.cookies.get("lang"), accept=accept)


_markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("image")


def markdown(text: str) -> Markup:
    """What a model wrote, as HTML that can neither run nor load anything."""
    return Markup(nh3.clean(_markdown.render(text), link_rel="noopener noreferrer nofollow"))


class Files(StaticFiles):
    """Files for browsers, asked for anew each time (unchanged ones cost no body): old scripts never meet new pages."""

    def file_response(self, *args: Any, **more: Any) -> Response:
        response = super().file_response(*args, **more)
        response.headers.update({"cache-control": "no-cache", "x-content-type-options": "nosniff"})
        return response
