"""The report: report.json for programs, report.html for people, and a table for the terminal.

`write_report` is given what was measured (`results.Results`) and where the runs' metrics.jsonl files lie, and it
writes both files atomically. The page needs nothing beside itself: styles and drawings are inside. `rebuild` draws
the page again from a report.json, for instance after a change of the template.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chatloom import runtime
from chatloom.evals import claims as promises
from chatloom.evals import page
from chatloom.evals import results as schema
from chatloom.evals.results import Results
from chatloom.train.metrics import FILE_NAME, read_metrics

REPORT_JSON, REPORT_HTML = "report.json", "report.html"


def write_report(results: Results, folder: Path, *, runs: Mapping[str, Path | str]) -> Path:
    """Write report.json and report.html into `folder` and return the page's path.

    `runs` maps a stage ("pretrain", "sft", "reward", "ppo", "ppo_ptx") to its run folder or metrics.jsonl. Raises
    ValueError for a run without metrics.
    """
    metrics = {stage: _read_run(Path(path)) for stage, path in runs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    schema.write(
        results,
        folder / REPORT_JSON,
        claims=[vars(claim) for claim in promises.claims(results)],
        tax_undone=promises.tax_undone(results),
    )
    runtime.write_atomically(folder / REPORT_HTML, page.render(results, metrics=metrics))
    return folder / REPORT_HTML


def rebuild(folder: Path, *, runs: Mapping[str, Path | str]) -> Path:
    """Draw report.html again from the report.json in `folder`."""
    return write_report(schema.read(folder / REPORT_JSON), folder, runs=runs)


def _read_run(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, or of the one in a run folder; a last line cut by a kill is left out."""
    file = path / FILE_NAME if path.is_dir() else path
    if not file.exists():
        raise ValueError(f"there are no metrics at {file}: give the run's folder or its {FILE_NAME}")
    return read_metrics(file)


def print_summary(results: Results, console: Console) -> None:
    """The headline table and the claims; a terminal of less than 110 columns gets no intervals."""
    rows = page.headline_rows(results)
    table = Table(title=escape(results.title), title_style="bold", header_style="bold", pad_edge=False)
    table.add_column("")
    for cell in rows[0].cells if rows else ():
        table.add_column(cell.label, justify="right")
    for row in rows:
        cells = [_terminal_cell(cell, with_interval=console.width >= 110) for cell in row.cells]
        table.add_row(escape(row.label), *cells)
    console.print(table)
    for claim in promises.claims(results):
        sign = "[green]✓[/green]" if claim.met else "[red]✗[/red]"
        console.print(f"{sign} {escape(claim.target)}: {escape(claim.found)}", highlight=False)


def _terminal_cell(cell: page.Cell, *, with_interval: bool) -> str:
    if not cell.value:
        return "–"
    return f"{cell.value}\n[dim]{cell.interval}[/dim]" if with_interval else cell.value
