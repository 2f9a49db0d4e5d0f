"""`python -m benchmarks [KIND] [--rounds N] [--tenants N] [--json F]`; kinds are modules of this package."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from sqlalchemy import URL

from . import checks, fleet, history, questions, reads, web
from .database import connect, own_database, populate, server_url
from .report import Report, as_json, show

KINDS = ("reads", "checks", "fleet", "history", "questions", "web", "all")
_console = Console()
_progress = Console(stderr=True, style="dim")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    option = parser.add_argument
    option("kind", nargs="?", choices=KINDS, default="all", help="what to measure (all)")
    option("--rounds", type=_count, metavar="N", help="rounds of each benchmark, instead of its own")
    option("--tenants", type=_count, metavar="N", default=fleet.TENANTS, help="size of the fleet (100)")
    option("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser.parse_args()


def _count(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _measure(server: URL, options: argparse.Namespace, folder: Path) -> Iterator[Report]:
    say = _progress.print
    if options.kind in ("reads", "checks", "all"):
        with own_database(server) as url:
            world = populate(url, folder / "world", say)
            if options.kind in ("reads", "all"):
                yield from reads.run(world, options.rounds, say)
            if options.kind in ("checks", "all"):
                yield from checks.run(world, options.rounds, say)
    if options.kind in ("fleet", "all"):
        yield from fleet.run(server, folder, options.rounds, options.tenants, say)
    if options.kind in ("history", "all"):
        yield from history.run(server, folder, options.rounds, say)
    if options.kind in ("questions", "all"):
        yield from questions.run(server, folder, options.rounds, say)
    if options.kind in ("web", "all"):
        yield from web.run(server, folder, options.rounds, say)


def main() -> None:
    options = _parse()
    reports = []
    with server_url() as server, tempfile.TemporaryDirectory() as folder:
        with connect(server) as connection:
            version = str(connection.info.parameter_status("server_version"))
        for report in _measure(server, options, Path(folder)):
            show(report, _console)
            reports.append(report)
    if options.json:
        figures = as_json(reports, server=f"PostgreSQL {version}", cores=os.cpu_count() or 1)
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
