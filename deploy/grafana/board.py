"""What all dashboards share: variables, links, annotations, and the layout of panels in rows."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from deploy.grafana.panels import DATASOURCE

TAG: Final = "optwrap"
"""Dashboards link to all others with this tag."""
PAGE_URL: Final = "http://"
"""The variable `page_url`: what precedes the address of an exporter in links to its page."""
RUNBOOKS_URL: Final = "http://localhost:9090/consoles/runbooks.html"
"""The variable `runbooks`: where the runbooks are with compose.yaml."""
REFRESH: Final = ("15s", "30s", "1m", "5m", "15m", "1h")
"""How often a dashboard asks again, the default first: not more often than Prometheus scrapes."""


class Row(NamedTuple):
    """A title and the panels under it, left to right."""

    title: str
    panels: Sequence[Builder[models.Panel]]


def row(title: str, *panels: Builder[models.Panel]) -> Row:
    """A row of these panels."""
    return Row(title, panels)


@dataclasses.dataclass(frozen=True)
class Annotation(Builder[models.AnnotationQuery]):
    """A mark in all panels, for as long as `expr` has a result."""

    name: str
    expr: str
    color: str
    text: str

    def build(self) -> models.AnnotationQuery:
        """The model."""
        return _Titled(
            name=self.name, datasource=DATASOURCE, enable=True, icon_color=self.color, expr=self.expr, text=self.text
        )


class _Titled(models.AnnotationQuery):
    """The SDK's model, with the fields that only annotations from Prometheus have."""

    def __init__(
        self, *, name: str, datasource: models.DataSourceRef, enable: bool, icon_color: str, expr: str, text: str
    ) -> None:
        super().__init__(name=name, datasource=datasource, enable=enable, icon_color=icon_color, expr=expr)
        self._text = text

    def to_json(self) -> dict[str, object]:
        return super().to_json() | {"titleFormat": self.name, "textFormat": self._text}


def choice(name: str, label: str, description: str, values: str, *, several: bool) -> builders.QueryVariable:
    """A variable whose values come from Prometheus.

    Args:
      name: the name in queries.
      label: the label of its menu.
      description: the tooltip of its menu.
      values: the query for its values.
      several: whether several values, or all, can be chosen; queries then need `=~`.
    """
    variable = (
        builders.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(DATASOURCE)
        .query(values)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
        .multi(several)
        .include_all(several)
    )
    if not several:
        return variable
    # ".*" also selects series without the label, such as those of a Prometheus that adds no cluster.
    return variable.all_value(".*").current(models.VariableOption(selected=True, text="All", value="$__all"))


def places(metric: str) -> list[Builder[models.VariableModel]]:
    """The variables `cluster` and `namespace`, with the values of this metric. Runs of one name in two are two runs."""
    return [
        choice(
            "cluster",
            "Cluster",
            "Label `cluster` of the exporters, if Prometheus adds it",
            f"label_values({metric}, cluster)",
            several=True,
        ),
        choice(
            "namespace",
            "Namespace",
            "Label `namespace` of the exporters, if Prometheus adds it. Choose one if two have runs of one name",
            f"label_values({metric}, namespace)",
            several=True,
        ),
    ]


def board(
    uid: str,
    title: str,
    description: str,
    rows: Iterable[Row],
    *,
    variables: Sequence[Builder[models.VariableModel]],
    page: str = "",
    annotations: Sequence[Annotation] = (),
) -> builders.Dashboard:
    """A dashboard.

    Args:
      uid: its identifier in links and alerts.
      title: its name.
      description: its purpose.
      rows: its panels.
      variables: its variables, without the data source and the addresses of links.
      page: the address of the link to an exporter's page after PAGE_URL; none if it is empty.
      annotations: marks in all panels.
    """
    others = (
        builders.DashboardLink("Dashboards")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(False)
        .include_vars(False)
        .keep_time(True)
    )
    pages = [_link("Exporter's page", "${page_url}" + page, "bolt")] if page else []
    dashboard = (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .editable()
        .refresh(REFRESH[0])
        .timepicker(builders.TimePicker().refresh_intervals(list(REFRESH)))
        .time("now-30m", "now")
        .timezone("browser")
        .variables(
            [
                builders.DatasourceVariable("datasource").label("Data source").type("prometheus"),
                *variables,
                _hidden("page_url", "What precedes the address of an exporter in links to its page", PAGE_URL),
                _hidden("runbooks", "Where the runbooks are", RUNBOOKS_URL),
            ]
        )
        .annotations(list(annotations))
        .links([others, *pages, _link("Runbooks", "${runbooks}", "doc")])
    )
    number = itertools.count(1)  # Panels keep their ids, so that links to them stay valid.
    for each in rows:
        # The panels of an open row follow it in the list; they are not inside it.
        dashboard = dashboard.with_row(builders.Row(each.title).id(next(number)))
        for panel in each.panels:
            built = panel.build()
            built.id_val = next(number)
            dashboard = dashboard.with_panel(panel)
    return dashboard


def _hidden(name: str, description: str, value: str) -> builders.TextBoxVariable:
    """A variable without a menu: the dashboard's settings and `var-NAME=` in its address change it."""
    return (
        builders.TextBoxVariable(name)
        .label(name)
        .description(description)
        .hide(models.VariableHide.HIDE_VARIABLE)
        .default_value(value)
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
