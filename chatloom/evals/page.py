"""The report as one page: results and charts go into `report.html.jinja`, and a self-contained document comes out.

Autoescape is on and nothing but our own drawings is marked safe, so text that a model wrote can never become
markup; the page has no script, and its content security policy forbids every address. What the page shows is
prepared here as plain values, so that the template holds layout and wording alone.
"""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from chatloom.evals import charts, plots
from chatloom.evals import claims as promises
from chatloom.evals import results as schema
from chatloom.evals.charts import Chart, Metrics
from chatloom.evals.intervals import Estimate
from chatloom.evals.results import Results, StageResult

TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class Cell:
    """A table cell: the value, its interval in small, and for shares the bar from low to high in percent."""

    label: str
    value: str = ""
    interval: str = ""
    share: tuple[float, float, float] | None = None  # value, low, high in percent


@dataclass(frozen=True)
class Row:
    """One stage's row of the headline table."""

    label: str
    colour: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Highlight:
    """A large number at the top of the page."""

    value: str
    label: str
    note: str


def render(results: Results, *, metrics: Metrics) -> str:
    """The whole document as HTML. `metrics` holds the lines of each stage's metrics.jsonl."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["duration"] = duration
    environment.filters["amount"] = amount
    environment.filters["memory"] = memory
    environment.filters["colour"] = lambda stage: plots.colour_of(stage).replace("_", "-")
    environment.filters["drawing"] = Markup  # applied to our own SVG only
    source = resources.files("chatloom.evals").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(**_context(results, metrics))


def _context(results: Results, metrics: Metrics) -> dict[str, Any]:
    memories = [use.peak_memory_bytes for use in results.resources if use.peak_memory_bytes is not None]
    rows = headline_rows(results)
    context: dict[str, Any] = {
        "results": results,
        "highlights": highlights(results),
        "rows": rows,
        "columns": [cell.label for cell in rows[0].cells] if rows else [],
        "claims": promises.claims(results),
        "stages": _charts(charts.follows_chart(results), charts.gold_chart(results), charts.win_chart(results)),
        "heat": heat_rows(results),
        "heat_stages": [stage for stage in results.stages if stage.categories],
        "pretraining": charts.training_charts(charts.PRETRAINING + charts.FINE_TUNING, metrics),
        "reward": charts.training_charts(charts.REWARD, metrics) + _charts(charts.calibration_chart(results)),
        "policy": charts.training_charts(charts.POLICY, metrics),
        "pursuit": charts.path_charts(results) + _charts(charts.best_of_n_chart(results)),
        "tax": charts.tax_charts(results),
        "tax_undone": promises.tax_undone(results),
        "labels": {stage.name: stage.label for stage in results.stages},
        "seconds": sum(use.seconds for use in results.resources),
        "peak_memory_bytes": max(memories, default=None),
        "config_text": json.dumps(results.config, indent=2, ensure_ascii=False, default=str),
    }
    return {**context, "sections": _sections(results, context)}


def _sections(results: Results, context: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Anchor, name and whether it is shown, of every section."""
    origin = (results.lineage, results.resources, results.commands, results.config)
    return [
        ("result", "Result", bool(context["rows"])),
        ("claims", "Promises", bool(context["claims"])),
        ("categories", "Use cases", bool(context["heat"])),
        ("training", "Training", bool(context["pretraining"])),
        ("reward", "Reward model", bool(context["reward"])),
        ("policy", "PPO", bool(context["policy"])),
        ("over-optimisation", "Over-optimisation", bool(context["pursuit"])),
        ("tax", "Alignment tax", bool(context["tax"])),
        ("samples", "Samples", bool(results.samples)),
        ("checks", "Checks", bool(results.diagnostics)),
        ("origin", "Origin", any(origin)),
    ]


def highlights(results: Results) -> list[Highlight]:
    """The few numbers that tell the story, as far as they were measured."""
    found = []
    base, sft, ptx = (results.stage(name) for name in (schema.BASE, schema.SFT, schema.PPO_PTX))
    name = _started_from(results)
    if sft is not None and sft.follows is not None:
        before = "" if base is None or base.follows is None else f"; base, few-shot: {share(base.follows.value)}"
        found.append(
            Highlight(share(sft.follows.value), f"of instructions followed by {name}", _span(sft.follows) + before)
        )
    if results.reward is not None and results.reward.gold_accuracy is not None:
        accuracy = results.reward.gold_accuracy
        note = f"{_span(accuracy)}; {accuracy.count:,} pairs"
        found.append(Highlight(share(accuracy.value), "of pairs ordered right by the reward model", note))
    if ptx is not None and ptx.win_rate is not None:
        note = _span(ptx.win_rate)
        if ptx.kl_nats is not None:
            note += f"; at {ptx.kl_nats.value:.1f} nats from {name}"
        found.append(Highlight(share(ptx.win_rate.value), f"of comparisons with {name} won by PPO-ptx", note))
    undone = promises.tax_undone(results)
    if undone is not None:
        found.append(Highlight(share(undone), "of the alignment tax undone by ptx", "held-out bits per byte"))
    return found


def headline_rows(results: Results) -> list[Row]:
    """One row a stage; a column that no stage has a number for is left out."""
    rows = [(stage, _cells(stage, _started_from(results))) for stage in results.stages]
    measured = [any(cells[column].value for _, cells in rows) for column in range(len(rows[0][1]) if rows else 0)]
    return [
        Row(
            stage.label,
            plots.colour_of(stage.name).replace("_", "-"),
            tuple(cell for cell, keep in zip(cells, measured) if keep),
        )
        for stage, cells in rows
    ]


def heat_rows(results: Results) -> list[tuple[str, list[Estimate | None]]]:
    """Category -> follows of each stage that has categories, in order of first appearance."""
    stages = [stage for stage in results.stages if stage.categories]
    names = dict.fromkeys(one.category for stage in stages for one in stage.categories)
    tables = [{one.category: one.follows for one in stage.categories} for stage in stages]
    return [(name, [table.get(name) for table in tables]) for name in names]


def share(value: float) -> str:
    """0.853 -> "85.3 %"."""
    return promises.percent(value)


def duration(seconds: float) -> str:
    """75.2 -> "1 min 15 s"."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def amount(number: float | None) -> str:
    """1234567 -> "1.23 M"; nothing for None."""
    if number is None:
        return ""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def memory(num_bytes: int | None) -> str:
    """Bytes as "1.25 GB"; nothing for None."""
    return "" if num_bytes is None else f"{num_bytes / 1e9:.2f} GB"


def _charts(*found: Chart | None) -> list[Chart]:
    return [chart for chart in found if chart is not None]


def _span(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.1f}–{100 * estimate.high:.1f} %"


def _started_from(results: Results) -> str:
    """What the report calls the model that alignment started from."""
    stage = results.stage(schema.SFT)
    return "SFT" if stage is None else stage.label


def _cells(stage: StageResult, start: str) -> tuple[Cell, ...]:
    return (
        _share_cell("Follows", stage.follows),
        _share_cell("Follows, sampled", stage.follows_sampled),
        _number_cell("Gold score", stage.gold, 2),
        _share_cell(f"Wins against {start}", stage.win_rate),
        _share_cell("Wins, greedy", stage.win_rate_greedy),
        _number_cell("Bits per byte", stage.bits_per_byte, 3),
        _share_cell("Stops by itself", stage.stop_rate),
        _number_cell(f"KL from {start}, nats", stage.kl_nats, 1),
        _number_cell("Answer length, tokens", stage.response_tokens, 1),
    )


def _share_cell(label: str, estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell(label)
    percents = (100 * estimate.value, 100 * estimate.low, 100 * estimate.high)
    return Cell(label, share(estimate.value), f"{percents[1]:.1f}–{percents[2]:.1f}", percents)


def _number_cell(label: str, estimate: Estimate | None, digits: int) -> Cell:
    if estimate is None:
        return Cell(label)
    dash = "–" if estimate.low >= 0 else " to "
    interval = f"{estimate.low:.{digits}f}{dash}{estimate.high:.{digits}f}"
    return Cell(label, f"{estimate.value:.{digits}f}", interval)
