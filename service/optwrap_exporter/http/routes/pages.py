"""What a browser opens: / is the live page, /page/ has its files, /docs shows the API. All files are local."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope as AsgiScope

from optwrap_exporter.http.api_page import api_page
from optwrap_exporter.http.errors import refused
from optwrap_exporter.wire.vocabulary import Scope

PAGE: Final = Path(__file__).parents[2] / "page"

# Browsers revalidate each time, and get 304 if nothing has changed.
_REVALIDATE: Final = {"cache-control": "no-cache"}


class PageFiles(StaticFiles):
    """The files of the page. Browsers revalidate them, so an upgrade shows at once."""

    async def get_response(self, path: str, scope: AsgiScope) -> Response:
        """A file, or Starlette's 404."""
        response = await super().get_response(path, scope)
        response.headers.update(_REVALIDATE)
        return response


def router(
    document: Callable[[], dict[str, Any]], scope: Scope, grafana: str | None = None, page: Path = PAGE
) -> APIRouter:
    """The routes of / and /docs.

    Args:
      document: returns the OpenAPI document.
      scope: what the exporter hears, passed to the page in a meta element.
      grafana: the address of Grafana, passed to the page in a meta element.
      page: the directory with index.html.
    """
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    def index() -> Response:
        path = page / "index.html"
        if not path.is_file():
            raise refused(
                404, "path", "/", "another path: this exporter is installed without its page; the API is under /v1"
            )
        settings = {"scope": scope} | ({} if grafana is None else {"grafana": grafana})
        meta = "".join(f'  <meta name="{name}" content="{escape(value)}">\n' for name, value in settings.items())
        text = path.read_text(encoding="utf-8").replace("</head>", f"{meta}</head>", 1)
        return HTMLResponse(text, headers={"cache-control": "no-store"})

    @routes.get("/docs")
    def docs(request: Request) -> Response:
        return HTMLResponse(api_page(document(), str(request.base_url).rstrip("/")))

    return routes
