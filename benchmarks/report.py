"""Results as values, as tables for people and as JSON for machines."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from .rounds import Samples, Spread


@dataclass(frozen=True, slots=True)
class Line:
    """One variant: its median, and its throughput relative to others' (None for itself)."""

    name: str
    median_us: float
    ratios: tuple[Spread | None, ...]
    extra_us: Spread | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """One table.

    Attributes:
        unit: what the time is for (`read`, `tenant`).
        against: the variants that the lines' ratios refer to.
        note: what it is to be compared with, or "".
    """

    title: str
    unit: str
    against: tuple[str, ...]
    lines: tuple[Line, ...]
    note: str = ""


def compare(
    title: str,
    unit: str,
    samples: Samples,
    against: Sequence[str],
    *,
    note: str = "",
    extra_over: str | None = None,
) -> Report:
    """A report with a line for each variant.

    Args:
        against: the variants to compare with.
        extra_over: the variant over which to show the additional time, too.
    """
    lines = [
        Line(
            name,
            samples.median(name) * 1e6,
            tuple(None if name == other else samples.ratio(name, other) for other in against),
            None if extra_over in (None, name) else _in_us(samples.difference(name, str(extra_over))),
        )
        for name in samples.seconds
    ]
    return Report(title, unit, tuple(against), tuple(lines), note)


def _in_us(spread: Spread) -> Spread:
    return Spread(spread.low * 1e6, spread.median * 1e6, spread.high * 1e6)


def show(report: Report, console: Console) -> None:
    """Print a report as a table."""
    table = Table(
        title=report.title, caption=report.note or None, title_justify="left", caption_justify="left"
    )
    table.add_column("variant")
    table.add_column(f"µs/{report.unit}", justify="right")
    has_extra = any(line.extra_us for line in report.lines)
    if has_extra:
        table.add_column("more, µs", justify="right")
    for other in report.against:
        table.add_column(f"vs {other}", justify="right")
    for line in report.lines:
        extra = [f"{line.extra_us.median:+.1f}" if line.extra_us else ""] if has_extra else []
        ratios = [str(ratio) if ratio else "" for ratio in line.ratios]
        table.add_row(line.name, f"{line.median_us:,.0f}", *extra, *ratios)
    console.print(table)
    console.print()


def as_json(reports: Sequence[Report], *, server: str, cores: int) -> dict[str, Any]:
    """All there is to know about a run."""
    return {
        "python": platform.python_version(),
        "server": server,
        "cores": cores,
        "reports": [asdict(report) for report in reports],
    }
