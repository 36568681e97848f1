"""Renders runbooks.md as HTML: a console of Prometheus, and a file of the exporter's page."""

import itertools
import re
from typing import Final

from markdown_it import MarkdownIt

_CONSOLE: Final = """\
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

_OF_THE_EXPORTER: Final = """\
<!doctype html>
<!-- Made from deploy/runbooks.md by `python -m deploy.build`. -->
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} - optwrap</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/page/css/colours.css">
<link rel="stylesheet" href="/page/css/base.css">
<link rel="stylesheet" href="/page/css/runbooks.css">
</head>
<body>
<main>
{body}</main>
</body>
</html>
"""


def slug(heading: str) -> str:
    """The anchor of a heading on code hosting sites: lower case, hyphens for spaces, no punctuation."""
    return re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")


def console(markdown: str) -> str:
    """Render the runbooks as a page that Prometheus serves, with styles of its own.

    Args:
      markdown: the text of runbooks.md.

    Raises:
      ValueError: the text has no heading, or contains "{{", which begins a template in Prometheus.
    """
    # Prometheus expands a console as a Go template, and a whole page cannot be quoted in one.
    if "{{" in markdown:
        raise ValueError("runbooks.md contains '{{', which begins a template in Prometheus; remove it")
    return _rendered(_CONSOLE, markdown)


def of_the_exporter(markdown: str) -> str:
    """Render the runbooks as a file of the exporter's page, which links it where there is trouble.

    Args:
      markdown: the text of runbooks.md.

    Raises:
      ValueError: the text has no heading.
    """
    return _rendered(_OF_THE_EXPORTER, markdown)


def _rendered(form: str, markdown: str) -> str:
    """The text in HTML. The anchor of an alert is its name, as the API's field `runbook` has it.

    Links within runbooks.md have the anchors of code hosting sites, and are changed to these.
    """
    renderer = MarkdownIt("commonmark").enable("table")
    tokens = renderer.parse(markdown)
    headings = [text.content for opening, text in itertools.pairwise(tokens) if opening.type == "heading_open"]
    if not headings:
        raise ValueError("runbooks.md has no heading; alerts link to headings, so add one for each alert")
    anchors = {f"#{slug(heading)}": f"#{heading}" for heading in headings}
    for opening, text in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            opening.attrSet("id", text.content)
        for child in text.children or ():
            if child.type == "link_open":
                child.attrSet("href", anchors.get(str(child.attrs["href"]), str(child.attrs["href"])))
    return form.format(title=headings[0], body=renderer.renderer.render(tokens, renderer.options, {}))
