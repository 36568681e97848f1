"""Builders of panels, one function for each kind. They require a title, a description and a unit."""

import dataclasses
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any, Final

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as dashboard_builders
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH: Final = 24
"""Columns of Grafana's grid."""
COLORED: Final = models.DynamicConfigValue("custom.cellOptions", {"type": "color-text"})
"""Shows a table's cell in the colour of its value mapping."""
STEPS_PER_SECOND: Final = "suffix: steps/s"


@dataclasses.dataclass(frozen=True)
class Query:
    """One PromQL expression and the legend of its series."""

    expr: str
    legend: str = ""
    color: str | None = None
    """Fixed colour of its series; None for Grafana's palette."""
    dashed: bool = False
    """Whether it is drawn as a limit: dashed and not filled."""


def _targets(queries: Sequence[Query], *, instant: bool, as_table: bool = False) -> list[prometheus.Dataquery]:
    targets = []
    for letter, query in zip(ascii_uppercase, queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).datasource(DATASOURCE).expr(query.expr)
        target = target.instant() if instant else target.range()
        target = target.format(PromQueryFormat.TABLE if as_table else PromQueryFormat.TIME_SERIES)
        targets.append(target.legend_format(query.legend or "__auto"))
    return targets


def _properties(query: Query) -> list[models.DynamicConfigValue]:
    properties = []
    if query.color is not None:
        properties.append(models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": query.color}))
    if query.dashed:
        properties.append(models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}))
        properties.append(models.DynamicConfigValue("custom.fillOpacity", 0))
    return properties


def thresholds(*steps: tuple[float | None, str]) -> dashboard_builders.ThresholdsConfig:
    """Colours by value: each applies from its value on. The first value is None, for all values below the second."""
    return (
        dashboard_builders.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value, color) for value, color in steps])
    )


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    span: int = 12,
    log: bool = False,
    stacked: bool = False,
    steps: bool = False,
) -> timeseries.Panel:
    """A time series panel.

    Args:
      title: what is shown.
      description: what it means, and what to look for.
      unit: Grafana's name of the unit.
      *queries: at most 26.
      span: width in columns, of 24.
      log: whether the axis is logarithmic.
      stacked: whether to draw stacked bars, for parts of a whole.
      steps: whether a value is held until the next sample, for counts that jump.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(span)
        .height(8)
        .unit(unit)
        .targets(list(_targets(queries, instant=False)))
        .line_width(2 if not stacked else 0)
        .fill_opacity(60 if stacked else 8)
        .show_points(common.VisibilityMode.AUTO)
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    if log:
        panel = panel.scale_distribution(
            common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)
        )
    else:
        panel = panel.min(0)
    if stacked:
        panel = panel.draw_style(common.GraphDrawStyle.BARS).stacking(
            common_builders.StackingConfig().mode(common.StackingMode.NORMAL)
        )
    if steps:
        panel = panel.line_interpolation(common.LineInterpolation.STEP_AFTER)
    for letter, query in zip(ascii_uppercase, queries, strict=False):
        if properties := _properties(query):
            panel = panel.override_by_query(letter, properties)
    return panel


def number(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    span: int = 3,
    limits: dashboard_builders.ThresholdsConfig | None = None,
    mappings: Sequence[models.ValueMap] = (),
    decimals: int | None = None,
) -> stat.Panel:
    """A panel with the newest value as a large number. It has a colour only with `limits` or `mappings`."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(span)
        .height(4)
        .unit(unit)
        .no_value("–")
        .targets(list(_targets(queries, instant=True)))
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.VALUE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .text_mode(common.BigValueTextMode.AUTO if len(queries) == 1 else common.BigValueTextMode.VALUE_AND_NAME)
        .thresholds(limits or thresholds((None, "text")))
        .mappings(list(mappings))
    )
    return panel if decimals is None else panel.decimals(decimals)


def timeline(title: str, description: str, mapping: models.ValueMap, *queries: Query) -> statetimeline.Panel:
    """A panel of states over time: one band for each series."""
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(WIDTH)
        .height(6)
        .unit("none")
        .targets(list(_targets(queries, instant=False)))
        .mappings([mapping])
        .color_scheme(dashboard_builders.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .thresholds(thresholds((None, "text")))
        .merge_values(True)
        .show_value(common.VisibilityMode.AUTO)
        .row_height(0.8)
        .fill_opacity(80)
        .legend(common_builders.VizLegendOptions().show_legend(False).display_mode(common.LegendDisplayMode.LIST))
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.SINGLE))
    )


def rows_of(
    title: str,
    description: str,
    *queries: Query,
    columns: Sequence[tuple[str, str, str]],
    sort: str,
    span: int = 12,
    empty: str = "–",
    overrides: Sequence[tuple[str, models.DynamicConfigValue]] = (),
) -> table.Panel:
    """A table of the newest results. Results with the same values of the labels that they share are one row.

    Args:
      title: what is shown.
      description: what it means, and what to look for.
      *queries: each adds its labels, and a column `Value #A`, `Value #B`, ..., which is empty where it has no result.
      columns: the columns to show, in order, as (Grafana's name, heading, unit). One that no series has is left out.
      sort: heading to sort by, largest first.
      span: width in columns, of 24.
      empty: the text of an empty table.
      overrides: further configuration of columns, as (heading, value).
    """
    shown = {name: place for place, (name, _, _) in enumerate(columns)}
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(span)
        .height(8)
        .no_value(empty)
        .targets(list(_targets(queries, instant=True, as_table=True)))
        .transformations(
            [
                models.DataTransformerConfig("merge", options={}),
                models.DataTransformerConfig(
                    "filterFieldsByName", options={"include": {"names": [name for name, _, _ in columns]}}
                ),
                models.DataTransformerConfig(
                    "organize",
                    options={
                        "indexByName": shown,
                        "renameByName": {name: heading for name, heading, _ in columns},
                        "excludeByName": {},
                        "includeByName": {},
                    },
                ),
            ]
        )
        .sort_by([common_builders.TableSortByFieldState().display_name(sort).desc(True)])
        .cell_height(common.TableCellHeight.SM)
        .filterable(True)
    )
    configured: dict[str, list[models.DynamicConfigValue]] = {}
    for _, heading, unit in columns:
        if unit:
            configured.setdefault(heading, []).append(models.DynamicConfigValue("unit", unit))
    for heading, value in overrides:
        configured.setdefault(heading, []).append(value)
    for heading, values in configured.items():
        panel = panel.override_by_name(heading, values)
    return panel


def as_override(mapping: models.ValueMap) -> models.DynamicConfigValue:
    """A value mapping as the configuration of one column."""
    value: list[Any] = [mapping]
    return models.DynamicConfigValue("mappings", value)


def as_link(title: str, url: str) -> models.DynamicConfigValue:
    """A link from every cell of a column; `${__data.fields.NAME}` in the URL is the row's value of this label."""
    return models.DynamicConfigValue("links", [{"title": title, "url": url}])
