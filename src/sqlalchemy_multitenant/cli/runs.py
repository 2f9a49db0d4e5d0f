"""`multitenant runs`, `multitenant runs show ID`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config_file import load_config
from .common import ConfigOption, JsonOption, console, print_json, print_table, reports_errors

if TYPE_CHECKING:
    from ..migrations.ledger import ResultRecord, RunRecord

app = typer.Typer(help="What migrations did, as the ledger has it.", no_args_is_help=False)

STYLES = {"done": "green", "failed": "red", "stopped": "red", "lost": "red", "running": "yellow"}


@app.callback(invoke_without_command=True)
@reports_errors
def runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many, newest first.")] = 20,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the last runs."""
    if context.invoked_subcommand is not None:
        return
    from ..migrations.migrator import Migrator

    with Migrator(load_config(config)) as migrator:
        found = migrator.list_runs(limit)
    if as_json:
        print_json([_run_json(run) for run in found])
        return
    if not found:
        console().print("There were no runs yet: multitenant migrate --all")
        return
    headers = ("Run", "What", "State", "Started", "Took", "Done", "Failed", "Skipped")
    print_table(headers, [_row(run) for run in found])


@app.command()
@reports_errors
def show(
    run: Annotated[int, typer.Argument(help="The run's number.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one run, tenant by tenant."""
    from ..migrations.migrator import Migrator

    with Migrator(load_config(config)) as migrator:
        found, results = migrator.get_run(run)
    if as_json:
        print_json({**_run_json(found), "results": [_result_json(result) for result in results]})
        return
    from rich.markup import escape

    out = console()
    out.print(
        f"run {found.id}, {found.kind}, [{STYLES[found.state]}]{found.state}[/], by {escape(found.host)}"
    )
    if found.reason:
        out.print(f"stopped: {escape(found.reason)}")
    rows = []
    for result in results:
        ends = (", ".join(result.start) or "-", ", ".join(result.end) or "-")
        state = f"[{STYLES[result.state]}]{result.state}[/]"
        numbers = (f"{result.duration_ms:.0f}", str(result.attempts))
        rows.append((escape(result.tenant), state, *ends, *numbers, escape(result.error or "")))
    print_table(("Tenant", "State", "From", "To", "ms", "Attempts", "Error"), rows)


def _row(run: RunRecord) -> tuple[str, ...]:
    took = "-" if run.finished_at is None else f"{(run.finished_at - run.started_at).total_seconds():.1f} s"
    skipped = "-" if run.skipped is None else str(run.skipped)
    state = f"[{STYLES[run.state]}]{run.state}[/]"
    started = run.started_at.strftime("%Y-%m-%d %H:%M:%S")
    return str(run.id), run.kind, state, started, took, str(run.succeeded), str(run.failed), skipped


def _run_json(run: RunRecord) -> dict[str, Any]:
    return {
        "run": run.id,
        "kind": run.kind,
        "state": run.state.value,
        "started_at": run.started_at.isoformat(),
        "finished_at": run.finished_at.isoformat() if run.finished_at else None,
        "total": run.total,
        "succeeded": run.succeeded,
        "failed": run.failed,
        "skipped": run.skipped,
        "reason": run.reason,
        "host": run.host,
        "pid": run.pid,
    }


def _result_json(result: ResultRecord) -> dict[str, Any]:
    return {
        "tenant": result.tenant,
        "schema": result.schema,
        "state": result.state.value,
        "from": list(result.start),
        "to": list(result.end),
        "attempts": result.attempts,
        "retries": dict(result.retries),
        "duration_ms": round(result.duration_ms, 1),
        "error": result.error,
        "sql_hash": result.sql_hash,
        "finished_at": result.finished_at.isoformat(),
    }
