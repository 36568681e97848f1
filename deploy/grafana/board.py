"""What all the dashboards have in common: variables, links to each other, annotations, and where the panels lie."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from deploy.grafana.panels import DATASOURCE

TAG: Final = "optwrap"
"""By it the dashboards find each other."""


class Row(NamedTuple):
    """A title and the panels under it, left to right."""

    title: str
    panels: Sequence[Builder[models.Panel]]


def row(title: str, *panels: Builder[models.Panel]) -> Row:
    """A row of these panels."""
    return Row(title, panels)


@dataclasses.dataclass(frozen=True)
class Addresses:
    """Where the links lead; other addresses by the generator's options, or by `var-page=` in a dashboard's address."""

    page: str
    """The exporter's page, as a browser reaches it."""
    runbooks: str
    """The runbooks, likewise."""


@dataclasses.dataclass(frozen=True)
class Annotation(Builder[models.AnnotationQuery]):
    """When something went on, over all the panels: as long as `expr` gives anything."""

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
    """The SDK's model knows nothing of the fields that only Prometheus' annotations have."""

    def __init__(
        self, *, name: str, datasource: models.DataSourceRef, enable: bool, icon_color: str, expr: str, text: str
    ) -> None:
        super().__init__(name=name, datasource=datasource, enable=enable, icon_color=icon_color, expr=expr)
        self._text = text

    def to_json(self) -> dict[str, object]:
        return super().to_json() | {"titleFormat": self.name, "textFormat": self._text}


def choice(name: str, label: str, description: str, values: str, *, several: bool) -> builders.QueryVariable:
    """A variable whose values Prometheus lists.

    Args:
      name: as queries call it.
      label: what stands above its menu.
      description: what it is.
      values: the query.
      several: whether more than one, or all, may be chosen; queries match it with `=~` then.
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
    return variable.all_value(".+").current(models.VariableOption(selected=True, text="All", value="$__all"))


def board(
    uid: str,
    title: str,
    description: str,
    rows: Iterable[Row],
    *,
    variables: Sequence[Builder[models.VariableModel]],
    page: str,
    addresses: Addresses,
    annotations: Sequence[Annotation] = (),
) -> builders.Dashboard:
    """A dashboard.

    Args:
      uid: by which links and alerts find it.
      title: its name.
      description: what it is for.
      rows: its panels.
      variables: beside the data source, and the addresses that links lead to.
      page: what follows the page's address in the link to it.
      addresses: of the page and the runbooks.
      annotations: what is marked in all panels.
    """
    others = (
        builders.DashboardLink("Dashboards")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(False)
        .include_vars(False)
        .keep_time(True)
    )
    dashboard = (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .refresh("5s")
        .time("now-30m", "now")
        .timezone("browser")
        .variables(
            [
                builders.DatasourceVariable("datasource").label("Data source").type("prometheus"),
                *variables,
                _hidden("page", addresses.page),
                _hidden("runbooks", addresses.runbooks),
            ]
        )
        .annotations(list(annotations))
        .links([others, _link("Exporter's page", "${page}/" + page, "bolt"), _link("Runbooks", "${runbooks}", "doc")])
    )
    number = itertools.count(1)  # Panels keep their ids, so that a link to one goes on working.
    for each in rows:
        # An open row has its panels after it, not in it.
        dashboard = dashboard.with_row(builders.Row(each.title).id(next(number)))
        for panel in each.panels:
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
