"""The files of the page, and its document: it names all of them, so that a browser asks for them at once.

Without that a browser learns from each module which ones it imports, and waits for an answer five times in a row. Each
file is read and compressed once: a page has sixty of them, and Starlette's StaticFiles takes 3 ms of CPU time for each.
"""

import gzip
import hashlib
import mimetypes
import re
from pathlib import Path
from typing import Final

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

STYLES: Final = "style.css"
"""All style sheets that the document names, in one file."""
CHARTS: Final = "vendor/uPlot.min.css"
"""The style sheet of the chart library. It comes first, so that the page's own may differ."""
_LINK: Final = re.compile(r' *<link rel="stylesheet" href="/page/([^"]+)">\n')
_COMPRESSED_BYTES: Final = 512
# Browsers revalidate each time, and get 304 if nothing has changed.
_HEADERS: Final = {"cache-control": "no-cache", "vary": "accept-encoding"}


class PageFiles:
    """An ASGI app with the files of a directory as they were when it was made. An upgrade shows at once.

    Args:
      directory: what is served; it need not exist.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._names = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
        self._held: dict[str, tuple[dict[str, str], bytes, bytes | None]] = {}
        """By name: headers, content, and content compressed by gzip if that is worth it."""

    def document(self) -> str | None:
        """index.html with one style sheet and a preload of each module; None if there is none."""
        if "index.html" not in self._names:
            return None
        text = self._text("index.html")
        links = [f'<link rel="stylesheet" href="/page/{STYLES}">']
        # Those that ask for data have no folder. They come first.
        modules = sorted(self._names, key=lambda name: (name.count("/"), name))
        links += [f'<link rel="modulepreload" href="/page/{name}">' for name in modules if name.endswith(".js")]
        head = "".join(f"  {link}\n" for link in links)
        return _LINK.sub("", text).replace("</head>", f"{head}</head>", 1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer GET with a file, or 404."""
        if scope["method"] not in {"GET", "HEAD"}:
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        name = scope["path"].removeprefix("/page/")
        if name not in self._names and name != STYLES:
            raise HTTPException(404)
        headers, content, compressed = self._file(name)
        asked = Headers(scope=scope)
        if headers["etag"] in asked.get("if-none-match", ""):
            answer = Response(status_code=304, headers=headers)
        elif compressed is not None and "gzip" in asked.get("accept-encoding", ""):
            answer = Response(compressed, headers={**headers, "content-encoding": "gzip"})
        else:
            answer = Response(content, headers=headers)
        await answer(scope, receive, send)

    def _file(self, name: str) -> tuple[dict[str, str], bytes, bytes | None]:
        if name not in self._held:
            content = self._styles() if name == STYLES else (self._directory / name).read_bytes()
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            kind += "; charset=utf-8" if kind.startswith("text/") else ""
            headers = _HEADERS | {"etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', "content-type": kind}
            self._held[name] = headers, content, gzip.compress(content) if len(content) > _COMPRESSED_BYTES else None
        return self._held[name]

    def _styles(self) -> bytes:
        names = _LINK.findall(self._text("index.html"))
        return "\n".join(map(self._text, [*([CHARTS] if CHARTS in self._names else []), *names])).encode()

    def _text(self, name: str) -> str:
        return (self._directory / name).read_text(encoding="utf-8")
