"""Renders templates to pages, in the reader's language.

    pages.render(request, "chat.html", conversation=...)  ->  HTML

Every package brings its own folder of templates, and all of them extend `base.html`. Text from people and models is
escaped, except the output of `markdown`, which is sanitised. Templates can use `_` (translate), `caller`, `csrf`,
`locale`, `lang`, `path` and `languages`.
"""

from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from tutelage.web.errors import ApiError
from tutelage.web.markdown import markdown
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
    """Renders the templates of the folders given and of this package."""

    def __init__(self, *folders: Path):
        self._folders = [Path(__file__).parent / "templates", *folders]
        self._environment = cache(self._make)

    def _make(self, locale: str) -> Environment:
        environment = Environment(
            loader=FileSystemLoader(self._folders),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.i18n"],
        )
        environment.install_gettext_translations(translations(locale), newstyle=True)  # type: ignore[attr-defined]
        environment.filters["markdown"] = markdown
        return environment

    def render(self, request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        """A template as a page in the reader's language. `?lang=zh` on any page selects one; a cookie remembers it."""
        locale = language(request)
        caller = getattr(request.state, "caller", None)
        common = {
            "caller": caller,
            "csrf": caller.csrf if caller else "",
            "locale": locale,
            "lang": HTML_LANG[locale],
            "languages": NAMES,
            "path": request.url.path,
        }
        html = self._environment(locale).get_template(template).render(common | context)
        response = HTMLResponse(html, status, SAFE_HEADERS)
        if request.query_params.get("lang") == locale:
            response.set_cookie("lang", locale, max_age=YEAR, samesite="lax")
        return response

    def error(self, request: Request, error: ApiError) -> HTMLResponse:
        """The page that shows an error."""
        known = problems(translations(language(request)).gettext)
        message = known.get(error.body["code"] or "", error.detail)
        return self.render(request, "error.html", error.status_code, code=error.status_code, message=message)


def language(request: Request) -> str:
    """en or zh: from the URL's `lang`, else the cookie, else the browser's preference."""
    accept = request.headers.get("accept-language", "")
    return choose(request.query_params.get("lang"), request.cookies.get("lang"), accept=accept)


class Files(StaticFiles):
    """Static files that browsers revalidate on every use, so that a new page never runs an old script."""

    def file_response(self, *args: Any, **more: Any) -> Response:
        response = super().file_response(*args, **more)
        response.headers.update({"cache-control": "no-cache", "x-content-type-options": "nosniff"})
        return response
