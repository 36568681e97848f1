"""The table that a notebook shows for a Monitor."""

import html
from collections.abc import Mapping

from optwrap._monitor.settings import Settings
from optwrap._reading.unpack import Reading


def table(settings: Settings | None, readings: Mapping[str, Reading | None]) -> str:
    """One row for each run, as HTML.

    Args:
      settings: those of the Monitor; None if it is off.
      readings: by run, its newest reading; None before the first.
    """
    if settings is None:
        return "<div>optwrap Monitor: off</div>"
    where = "not reported"
    if not settings.off:
        where = html.escape(settings.endpoint.text)
        if settings.endpoint.socket_path is None:
            where = f'<a href="{where}/" target="_blank">{where}</a>'
    titles = ("run", "step", "last outcome", "gradient norm", "non-finite steps", "steps by outcome")
    head = "".join(f"<th>{title}</th>" for title in titles)
    rows = "".join(f"<tr>{''.join(_cells(run, reading))}</tr>" for run, reading in readings.items())
    return f"<div>optwrap Monitor: {where}</div><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cells(run: str, reading: Reading | None) -> list[str]:
    shown = [run, "none yet", "", "", "", ""]
    if reading is not None:
        outcomes = ", ".join(f"{name} {count:,}" for name, count in reading.totals.outcomes.items() if count)
        not_finite = f"{reading.totals.not_finite_steps:,}"
        shown = [run, f"{reading.step:,}", reading.outcome or "", f"{reading.norm:.4g}", not_finite, outcomes]
    return [f"<td>{html.escape(text)}</td>" for text in shown]
