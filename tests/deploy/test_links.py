"""Links between the repository's Markdown files, also those that are no page of the site, lead somewhere."""

import itertools
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.deploy.places import ROOT

LISTED: Final = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
PAGES: Final = [ROOT / name for name in LISTED.split()]


def tokens(path: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(path.read_text("utf-8"))


def links(path: Path) -> list[str]:
    """Where links and pictures lead, but for those to other hosts."""
    inline = [child for token in tokens(path) for child in token.children or []]
    found = [str(token.attrs[name]) for token in inline for name in ("href", "src") if name in token.attrs]
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(path: Path) -> set[str]:
    """The headings' anchors, as GitHub and the site make them."""
    parsed = tokens(path)
    headings = [after.content for token, after in itertools.pairwise(parsed) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_pages() -> None:
    assert ROOT / "README.md" in PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link
