"""The OpenAPI document as a page for people: every route with its parameters, answers and a curl line."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final
from urllib.parse import quote, urlencode

_TAGS: Final = {
    "queries": "Queries",
    "changes": "Changes",
    "stream": "Stream",
    "ingest": "Reports",
    "operation": "Operation",
}
"""The groups of routes, in order."""
_TOKEN: Final = '-H "Authorization: Bearer $TOKEN"'

Operation = Mapping[str, Any]


def api_page(document: Mapping[str, Any], address: str) -> str:
    """The page.

    Args:
      document: the OpenAPI document.
      address: how the reader reaches the exporter, for the curl lines.
    """
    info = document["info"]
    title = f"{info['title']} {info['version']}: the API"
    routes = [
        (method.upper(), path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    groups = {tag: [route for route in routes if route[2]["tags"][0] == tag] for tag in _TAGS}
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(info.get('description', ''))}</p>",
        "<p>Every time is in seconds since 1970, and beside it in RFC 3339. Numbers that are not finite are the "
        "strings <code>NaN</code>, <code>Infinity</code> and <code>-Infinity</code>. No answer is larger than 2 MiB: "
        "what is left out is counted. A parameter that a route does not have is refused with 422. Only reports and "
        "changes need a token, and only if the exporter has one.</p>",
        '<p>For programs: <a href="/openapi.json">/openapi.json</a>. <a href="/">The live page</a>.</p>',
        "<nav><ul>",
        *(
            f"<li>{heading}: {', '.join(_link(*route[:2]) for route in groups[tag])}</li>"
            for tag, heading in _TAGS.items()
        ),
        "</ul></nav>",
    ]
    for tag, heading in _TAGS.items():
        parts.append(f"<h2>{heading}</h2>")
        for method, path, operation in groups[tag]:
            parts += [
                f'<section><h3 id="{_anchor(method, path)}"><code>{method} {escape(path)}</code></h3>',
                *_operation(method, path, operation, address),
                "</section>",
            ]
    parts += ["<h2>Models</h2>", *_models(document["components"]["schemas"])]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        '<link rel="stylesheet" href="/page/css/colours.css"><link rel="stylesheet" href="/page/css/docs.css">'
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body><main>{"".join(parts)}</main></body></html>'


def _anchor(method: str, path: str) -> str:
    return escape(f"{method}{path}")


def _link(method: str, path: str) -> str:
    return f'<a href="#{_anchor(method, path)}"><code>{method} {escape(path)}</code></a>'


def curl_line(method: str, path: str, operation: Operation, address: str) -> str:
    """A curl command that asks this route, with an example of each parameter that has one."""
    query: list[tuple[str, str]] = []
    for parameter in operation.get("parameters", ()):
        example = _example(parameter["schema"])
        if parameter["in"] == "path":
            path = path.replace("{" + parameter["name"] + "}", quote(str(example or "NAME")))
        elif parameter["in"] == "query" and example is not None:
            values = example if isinstance(example, list) else [example]
            query += [(parameter["name"], str(value)) for value in values]
    words = ["curl"]
    if method not in {"GET", "POST"}:
        words += ["-X", method]
    if method == "POST" and "requestBody" in operation:
        words += ["--json", "@report.json"]
    elif method == "POST":
        words += ["-X", "POST"]
    if "security" in operation:
        words.append(_TOKEN)
    words.append(shlex.quote(f"{address}{path}{'?' + urlencode(query, safe=':') if query else ''}"))
    return " ".join(words)


def _example(schema: Mapping[str, Any]) -> Any:
    if "examples" in schema:
        return schema["examples"][0]
    return None


def _operation(method: str, path: str, operation: Operation, address: str) -> Iterator[str]:
    yield from _paragraphs(operation.get("description", operation.get("summary", "")))
    yield f"<pre>{escape(curl_line(method, path, operation, address))}</pre>"
    yield from _table(
        ("parameter", "type", "meaning"),
        [
            (f"{one['name']} ({one['in']})", _kind(one["schema"]), _meaning(one))
            for one in operation.get("parameters", ())
        ],
    )
    for body in operation.get("requestBody", {}).get("content", {}).values():
        yield f"<p>Body: {_kind(body['schema'])}</p>"
    answers = []
    for status, answer in operation["responses"].items():
        kinds = [
            _kind(content.get("schema", {})) if kind == "application/json" else escape(kind)
            for kind, content in answer.get("content", {}).items()
        ]
        when = answer.get("description", "").replace("Successful Response", "")
        answers.append((status, " or ".join(kinds), when))
    yield from _table(("status", "body", "when"), answers)


def _meaning(parameter: Mapping[str, Any]) -> str:
    """The description, the default and an example of a parameter."""
    schema, parts = parameter["schema"], [parameter.get("description", "")]
    if schema.get("default") not in (None, "", []):
        parts.append(f"Default: {json.dumps(schema['default']).strip(chr(34))}.")
    if (example := _example(schema)) is not None:
        parts.append(f"Example: {example[0] if isinstance(example, list) else example}")
    return " ".join(part for part in parts if part)


def _models(schemas: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in schemas.items():
        yield f'<section><h3 id="{escape(name)}"><code>{escape(name)}</code></h3>'
        yield from _paragraphs(schema.get("description", ""))
        required = schema.get("required", ())
        yield from _table(
            ("field", "type", "meaning"),
            [
                (f"{field}{'' if field in required else ' (optional)'}", _kind(of), of.get("description", ""))
                for field, of in schema.get("properties", {}).items()
            ],
        )
        yield "</section>"


def _paragraphs(text: str) -> list[str]:
    return [f"<p>{_text(part)}</p>" for part in text.split("\n\n") if part]


def _text(text: str) -> str:
    """Text with `code` in it."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _table(titles: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> list[str]:
    """An HTML table. The first and the last column are text, the middle one is HTML from `_kind`."""
    if not rows:
        return []
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "".join(f"<tr><td><code>{escape(a)}</code></td><td>{b}</td><td>{_text(c)}</td></tr>" for a, b, c in rows)
    return [f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>']


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
