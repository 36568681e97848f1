"""Renders runbooks.md as an HTML page, which Prometheus serves as a console."""

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
    """The anchor of a heading: lower case, hyphens for spaces, no punctuation. Code hosting sites use the same."""
    return re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")


def page(markdown: str) -> str:
    """Render the runbooks as one HTML page with an anchor for every heading.

    Args:
      markdown: the text of runbooks.md.

    Raises:
      ValueError: the text has no heading, or contains "{{", which begins a template in Prometheus.
    """
    # Prometheus expands a console as a Go template, and a whole page cannot be quoted in one.
    if "{{" in markdown:
        raise ValueError("runbooks.md contains '{{', which begins a template in Prometheus; remove it")
    renderer = MarkdownIt("commonmark").enable("table")
    tokens = renderer.parse(markdown)
    title = None
    for opening, text in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            opening.attrSet("id", slug(text.content))
            title = title or text.content
    if title is None:
        raise ValueError("runbooks.md has no heading; alerts link to headings, so add one for each alert")
    return _PAGE.format(title=title, body=renderer.renderer.render(tokens, renderer.options, {}))
