"""What a browser opens: / is the live page, /page/ has its files, /docs shows the API. All files are local."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from optwrap_exporter.http.api_page import api_page
from optwrap_exporter.http.errors import refused
from optwrap_exporter.http.page_files import PageFiles
from optwrap_exporter.wire.vocabulary import Scope

PAGE: Final = Path(__file__).parents[2] / "page"


def router(
    document: Callable[[], dict[str, Any]], files: PageFiles, scope: Scope, grafana: str | None = None
) -> APIRouter:
    """The routes of / and /docs.

    Args:
      document: returns the OpenAPI document.
      files: the page.
      scope: what the exporter hears, passed to the page in a meta element.
      grafana: the address of Grafana, passed to the page in a meta element.
    """
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    def index() -> Response:
        text = files.document()
        if text is None:
            raise refused(
                404, "path", "/", "another path: this exporter is installed without its page; the API is under /v1"
            )
        settings = {"scope": scope} | ({} if grafana is None else {"grafana": grafana})
        meta = "".join(f'  <meta name="{name}" content="{escape(value)}">\n' for name, value in settings.items())
        return HTMLResponse(text.replace("</head>", f"{meta}</head>", 1), headers={"cache-control": "no-store"})

    @routes.get("/docs")
    def docs(request: Request) -> Response:
        return HTMLResponse(api_page(document(), str(request.base_url).rstrip("/")))

    return routes
