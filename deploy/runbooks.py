"""The runbooks as a page: Prometheus serves it as a console, so an alert's `runbook_url` needs no further server."""

import itertools
import re
from typing import Final

from markdown_it import MarkdownIt

_PAGE: Final = """\
<!doctype html>
<!-- Made from deploy/runbooks.md by `python -m deploy.build`. -->
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.55 system-ui, sans-serif; }}
h2 {{ margin-top: 2.5rem; }}
h2:target {{ border-left: .3rem solid; padding-left: .6rem; }}
pre {{ overflow-x: auto; padding: .6rem; border: 1px solid; }}
code {{ font-family: ui-monospace, monospace; font-size: .9em; }}
</style>
</head>
<body>
{body}</body>
</html>
"""


def slug(heading: str) -> str:
    """The anchor that code hosting sites, too, give a heading: lower case, spaces to hyphens, no punctuation."""
    return re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")


def page(markdown: str) -> str:
    """The runbooks as one HTML page with an anchor for every heading.

    Args:
      markdown: the text of runbooks.md.

    Raises:
      ValueError: it has no heading, or contains two braces in a row, which Prometheus takes for a template's.
    """
    # Prometheus expands a console as a Go template, and a Go template has no way to quote a whole page.
    if "{{" in markdown:
        raise ValueError("runbooks.md contains '{{': Prometheus would take it for a template; write it another way")
    renderer = MarkdownIt("commonmark").enable("table")
    tokens = renderer.parse(markdown)
    title = None
    for opening, text in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            opening.attrSet("id", slug(text.content))
            title = title or text.content
    if title is None:
        raise ValueError("runbooks.md has no heading: an alert's link needs one to lead to")
    return _PAGE.format(title=title, body=renderer.renderer.render(tokens, renderer.options, {}))
