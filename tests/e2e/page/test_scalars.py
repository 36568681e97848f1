"""Scalars under the norm, and a spike that names its parameters."""

import math

import pytest
from playwright.sync_api import expect

from tests.e2e.page.desk import MakeReporter, OpenDesk, Reporter

pytestmark = pytest.mark.programs("chromium")


def train(training: Reporter, losses: list[float | str]) -> None:
    """Take a good step for each loss, and send a report."""
    for _ in losses:
        training.job.step()
    count = len(losses)
    training.job.columns |= {
        "scalars": {"loss": losses, "b1": [0.9] * count},  # type: ignore[dict-item]
        "update_norm": [0.1 + i / 10 for i in range(count)],
    }
    training.send()


def test_scalars_are_drawn_under_the_norm(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """A NaN loss is a cross; what does not change is text; the crosshair is that of the norm's chart."""
    desk, training = open_desk(), reporter()
    train(training, [3 * math.exp(-i / 20) for i in range(60)])
    page = desk.open(training.run)
    panel = desk.part("scalars")
    expect(panel.locator("figcaption b")).to_have_text(["loss", "update norm"])
    expect(panel.locator(".constants")).to_have_text("Unchanged in view: b1 0.9")
    expect(panel.locator("[data-scalar=loss]")).to_have_attribute("data-crosses", "0")
    train(training, [0.2, "NaN", 0.1])  # by the stream
    expect(panel.locator("[data-scalar=loss]")).to_have_attribute("data-crosses", "1")
    expect(panel.locator("figcaption").first).to_have_text("loss 0.1")
    expect(page.locator(".readout")).to_contain_text("loss 0.1 · b1 0.9 · update norm 0.3")
    page.locator("[data-scalar=loss] .u-over").hover(position={"x": 5, "y": 30})
    expect(page.locator(".readout")).to_contain_text("Step 1 ")


def test_a_run_without_scalars_has_no_such_panel(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    desk, training = open_desk(), reporter()
    training.good(5)
    desk.open(training.run)
    desk.health("ok")
    expect(desk.part("scalars")).to_be_hidden()


def test_a_spike_names_its_parameters(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    desk, training = open_desk(), reporter()
    training.good(5)
    training.job.step("skipped_large", 71)
    shares = [("decoder/layer_3/mlp/w", 0.93), ("head", 0.05), ("embed", 0.01)]
    training.job.offenders = [{"step": 6, "parameter": path, "norm_share": share} for path, share in shares]
    training.send()
    page = desk.open(training.run)
    text = "norm 71 · 93 % decoder/layer_3/mlp/w, 5.0 % head"
    expect(desk.every_event().locator("[data-kind=skipped]")).to_contain_text(text)
    desk.part("events").get_by_role("button", name="step 6").click()
    expect(page.locator(".readout")).to_contain_text("93 % decoder/layer_3/mlp/w, 5.0 % head")
