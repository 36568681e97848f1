"""What a browser opens: / is the live page, /page/ has its files, /docs shows the API. All files are local."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope as AsgiScope

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
    def docs() -> Response:
        return HTMLResponse(api_page(document()))

    return routes


def api_page(document: dict[str, Any]) -> str:
    """The OpenAPI document as one HTML page."""
    info = document["info"]
    parts = [
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info.get('description', ''))}</p>",
        '<p>For programs: <a href="/openapi.json">/openapi.json</a>.</p>',
        "<h2>Routes</h2>",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += [f"<h3><code>{escape(method.upper())} {escape(path)}</code></h3>", *_operation(operation)]
    parts.append("<h2>Models</h2>")
    for name, schema in document["components"]["schemas"].items():
        parts += [
            f'<h3 id="{escape(name)}"><code>{escape(name)}</code></h3>',
            *_paragraphs(schema.get("description", "")),
        ]
        required = schema.get("required", ())
        rows = [
            (f"{field}{'' if field in required else ' (optional)'}", _kind(of), of.get("description", ""))
            for field, of in schema.get("properties", {}).items()
        ]
        parts += _table(("field", "type", "meaning"), rows)
    head = f'<head><meta charset="utf-8"><title>{escape(info["title"])}: the API</title></head>'
    return f'<!doctype html><html lang="en">{head}<body>{"".join(parts)}</body></html>'


def _operation(operation: dict[str, Any]) -> list[str]:
    parts = _paragraphs(operation.get("description", operation.get("summary", "")))
    rows = [
        (f"{one['name']} ({one['in']})", _kind(one["schema"]), one.get("description", ""))
        for one in operation.get("parameters", ())
    ]
    parts += _table(("parameter", "type", "meaning"), rows)
    for body in operation.get("requestBody", {}).get("content", {}).values():
        parts.append(f"<p>Body: {_kind(body['schema'])}</p>")
    answers = []
    for status, answer in operation["responses"].items():
        kinds = [
            _kind(content.get("schema", {})) or escape(kind) for kind, content in answer.get("content", {}).items()
        ]
        answers.append((status, " or ".join(kinds), answer.get("description", "")))
    return parts + _table(("status", "body", "when"), answers)


def _paragraphs(text: str) -> list[str]:
    return [f"<p>{escape(part)}</p>" for part in text.split("\n\n") if part]


def _table(titles: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> list[str]:
    """An HTML table. The first and the last column are text, the middle one is HTML from `_kind`."""
    if not rows:
        return []
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join(f"<tr><td>{escape(a)}</td><td>{b}</td><td>{escape(c)}</td></tr>" for a, b, c in rows)
    return [f'<table border="1"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>']


def _kind(schema: dict[str, Any]) -> str:
    """A short HTML description of a schema, with links to models."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}"><code>{name}</code></a>'
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(_kind(one) for one in schema[union])
    if "enum" in schema or "const" in schema:
        return escape(", ".join(map(str, schema.get("enum", [schema.get("const")]))))
    kind = schema.get("type", "")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}"
    bounds = [f"{word} {schema[key]}" for key, word in _BOUNDS.items() if key in schema]
    return escape(" ".join([str(kind), *bounds]))


_BOUNDS: Final = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "minLength": "of length from",
    "maxLength": "of length to",
    "pattern": "matching",
}
