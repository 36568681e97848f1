"""Hostile names, narrow screens, light and dark colours."""

import re

import pytest
from playwright.sync_api import expect

from tests.e2e.page.desk import BAD, DESK, PHONE, MakeReporter, OpenDesk

pytestmark = pytest.mark.programs("chromium")

HOSTILE = {
    "<img src=x onerror=alert(1)>": 4,
    "</script><script>alert(2)</script>": 3,
    '"><svg/onload=alert(3)>': 3,
    "javascript:alert(4)": 2,
    "a\u202egnp.exe": 2,
    "constructor": 2,
    "deep/" * 200 + "w": 1,
}


def test_hostile_names_are_shown_as_text(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """Markup in a path stays text, direction marks are written out, and long paths do not widen the page."""
    for viewport in (DESK, PHONE):
        desk, training = open_desk(viewport), reporter(f"constructor-{viewport['width']}")
        training.good(3)
        training.bad(**HOSTILE)
        page = desk.open(training.run)
        rows = desk.part("parameters").locator("tbody tr")
        expect(rows).to_have_count(len(HOSTILE))
        shown = desk.part("parameters").locator("td bdi").all_text_contents()
        assert sorted(shown) == sorted(name.replace("\u202e", "\\u202e") for name in HOSTILE)
        expect(desk.every_event().locator("li").filter(has_text="Skipped, non-finite").first).to_be_visible()
        assert page.locator("main img, main script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.usefixtures("exporter")
def test_page_fits_a_phone(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """The empty page, one run and several runs fit into 390 pixels."""
    fits = "document.documentElement.scrollWidth <= innerWidth"
    desk, training = open_desk(PHONE), reporter()
    page = desk.open()
    expect(desk.part("empty")).to_be_visible()
    assert page.evaluate(fits)
    training.good(50)
    training.bad(decoder__layer_3__self_attention__query__kernel=12)
    desk.health("skipping")
    expect(desk.chart()).to_have_attribute("data-marks", "1")
    assert page.evaluate(fits)
    reporter("a-rather-long-name-of-a-run.with-its-hyperparameters:lr-3e-4.bs-2048.seed-17").good(3)
    reporter("short").good(3)
    expect(page.locator("#runs tbody tr")).to_have_count(3)
    assert page.evaluate(fits)


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_enough_contrast(open_desk: OpenDesk, reporter: MakeReporter, scheme: str) -> None:
    """Text has a contrast of at least 4.5:1 to its background, marks at least 3:1 (WCAG AA)."""
    desk, training = open_desk(scheme=scheme), reporter()
    training.good(90)
    training.bad(w=1)
    page = desk.open(training.run)
    desk.health("skipping")
    tiers = ["critical", "warning", "idle", "good"]
    pairs = [(tier, back, 4.5) for tier in tiers for back in (f"{tier}-back", "surface")]
    pairs += [("ink", f"{tier}-back", 4.5) for tier in tiers]
    pairs += [(text, back, 4.5) for text in ("ink", "muted", "link") for back in ("surface", "page")]
    pairs += [(f"kind-{kind.replace('_', '-')}", "surface", 3.0) for kind in (*BAD, "applied")]
    for text, back, least in pairs:
        front, behind = (
            luminance(
                page.evaluate("(n) => getComputedStyle(document.documentElement).getPropertyValue(n)", f"--{name}")
            )
            for name in (text, back)
        )
        contrast = (max(front, behind) + 0.05) / (min(front, behind) + 0.05)
        assert contrast >= least, f"{text} on {back}, {scheme}: {contrast:.2f}"
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) > 384) == (scheme == "light")
