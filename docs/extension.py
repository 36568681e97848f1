"""What the site needs beside Sphinx and MyST. What a check finds is a warning, and `make docs` fails on warnings.

- Every public name of optwrap is in the API reference.
- No page loads anything from another origin.
- Code in docstrings is marked as in Markdown, by single backticks.
- A link to a file of the repository that a page includes leads to that page.
"""

import re
from typing import Any, Final

from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import optwrap

LOGGER: Final = logging.getLogger(__name__)

PAGES: Final = {"../../deploy/runbooks.md": "runbooks.md", "../deploy/runbooks.md": "guides/runbooks.md"}
"""Files outside docs/ that a page of the site includes: their links, which a reader of the repository follows."""

LOADED: Final = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=\"(?:https?:)?//[^\"]*\""
    r"|<link\b[^>]*\bhref=\"(?:https?:)?//[^\"]*\""
    r"|(?:@import\s|url\()[\"']?(?:https?:)?//[^\"')]*"
)
"""What makes a browser ask another host."""

CODE: Final = re.compile(r"(?<![`:\w])`([^`]+)`(?!`)(?=(\w?))")
"""Code between single backticks, which may go over the end of a line; and a letter after it, as in `int`s."""


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this when it loads the extension."""
    app.connect("source-read", lead_to_pages)
    app.connect(
        "autodoc-process-docstring", mark_code, priority=400
    )  # before napoleon, which would split code at a colon
    app.connect("autodoc-process-signature", leave_out_private)
    app.connect("env-check-consistency", check_public_names)
    app.connect("build-finished", check_origins)
    return {"parallel_read_safe": True}


def lead_to_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace links to files of the repository by links to the pages that include them."""
    del app, docname
    for path, page in PAGES.items():
        source[0] = source[0].replace(f"]({path}", f"]({page}")


def mark_code(app: Sphinx, *event: Any) -> None:
    """Turn `code` into reStructuredText's ``code``, on one line: napoleon reads sections line by line."""
    del app
    *_, lines = event

    def marked(found: re.Match[str]) -> str:
        return f"``{' '.join(found[1].split())}``" + ("\\ " if found[2] else "")

    lines[:] = CODE.sub(marked, "\n".join(lines)).split("\n")


def leave_out_private(app: Sphinx, *event: Any) -> tuple[str | None, str | None]:
    """Leave parameters that begin with an underscore out of a signature."""
    del app
    *_, signature, returns = event
    return signature and re.sub(r", _\w+(=[^,)]+)?", "", signature), returns


def check_public_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn about public names that the API reference does not list, and about listed ones that are not public."""
    del app
    domain = env.get_domain("py")
    assert isinstance(domain, PythonDomain)
    listed = {name.removeprefix("optwrap.") for name in domain.objects if name.count(".") == 1}
    public = {*optwrap.__all__, "keras"}  # a module that `import optwrap` does not import
    for name in sorted(public - listed):
        LOGGER.warning("docs/reference/api.md does not list optwrap.%s: add it", name)
    for name in sorted(listed - public):
        LOGGER.warning("docs/reference/api.md lists optwrap.%s, which is not in optwrap.__all__", name)


def check_origins(app: Sphinx, exception: Exception | None) -> None:
    """Warn about whatever a page or a style sheet loads from another host."""
    if exception is not None:
        return
    for path in sorted(app.outdir.rglob("*")):
        if path.suffix in {".html", ".css"}:
            for loaded in LOADED.findall(path.read_text("utf-8")):
                LOGGER.warning("%s loads from another origin: %s", path.relative_to(app.outdir), loaded)
