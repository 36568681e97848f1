"""The dashboard *Run*: one run in depth."""

import itertools
from typing import Final

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard as models

from deploy.grafana import rows
from deploy.grafana.panels import DATASOURCE

UID: Final = "optwrap-run"


def build(page_url: str, runbooks_url: str) -> builders.Dashboard:
    """The dashboard.

    Args:
      page_url: address of the exporter's page as a browser reaches it, for the links.
      runbooks_url: address of the runbooks, likewise.
    """
    run = (
        builders.QueryVariable("run")
        .label("Run")
        .description("Name of the run, as the training job gave it")
        .datasource(DATASOURCE)
        .query("label_values(optwrap_steps_total, run)")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
        .multi(False)
        .include_all(False)
    )
    dashboard = (
        builders.Dashboard("optwrap / Run")
        .uid(UID)
        .description("One training run: its health, what its optimizer skipped and why, and where that came from.")
        .tags(["optwrap"])
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .refresh("5s")
        .time("now-30m", "now")
        .timezone("browser")
        .variables(
            [
                builders.DatasourceVariable("datasource").label("Data source").type("prometheus"),
                run,
                # Where the links lead; other addresses by the generator's options, or by var-page= in the address.
                _hidden("page", page_url),
                _hidden("runbooks", runbooks_url),
            ]
        )
        .annotations([])
        .links([_link("Page of this run", "${page}/?run=${run}", "bolt"), _link("Runbooks", "${runbooks}", "doc")])
    )
    number = itertools.count(1)  # Panels keep their ids, so that a link to one goes on working.
    for row in (rows.now(), rows.health(), rows.progress(), rows.where(), rows.exporter()):
        # An open row has its panels after it, not in it.
        dashboard = dashboard.with_row(builders.Row(row.title).id(next(number)))
        for panel in row.panels:
            built = panel.build()
            built.id_val = next(number)
            dashboard = dashboard.with_panel(panel)
    return dashboard


def _hidden(name: str, value: str) -> builders.TextBoxVariable:
    return (
        builders.TextBoxVariable(name).label(name.title()).hide(models.VariableHide.HIDE_VARIABLE).default_value(value)
    )


def _link(title: str, url: str, icon: str) -> builders.DashboardLink:
    return (
        builders.DashboardLink(title)
        .type(models.DashboardLinkType.LINK)
        .icon(icon)
        .url(url)
        .target_blank(True)
        .tooltip(title)
    )
