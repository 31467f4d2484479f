"""Which charts the report shows: results and metrics in, captioned charts out.

Each function returns the charts for which there are numbers, so a report of one stage is a short report and not one
full of empty axes. Every chart carries a sentence with its first, last or best numbers for those who do not see it.
The metrics are the lines of each run's metrics.jsonl under the names that the stages log.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chatloom.evals import plots
from chatloom.evals import results as schema
from chatloom.evals.intervals import Estimate
from chatloom.evals.plots import Axis, Series
from chatloom.evals.results import OptimisationPath, Results

Metrics = Mapping[str, Sequence[Mapping[str, Any]]]  # stage name -> lines of its metrics.jsonl


@dataclass(frozen=True)
class Chart:
    """A drawing with its caption; `alt` says in words what it shows."""

    title: str
    caption: str
    alt: str
    svg: str


@dataclass(frozen=True)
class Curve:
    """One metric of one stage. Of `metrics`, alternative names of one quantity, the first that was logged is drawn."""

    stage: str
    metrics: tuple[str, ...]
    label: str
    colour: str
    kind: Literal["smooth", "points"] = "smooth"


@dataclass(frozen=True)
class Panel:
    """One small chart of curves over the steps."""

    title: str
    y_label: str
    curves: tuple[Curve, ...]
    caption: str = ""
    percent: bool = False
    log_y: bool = False


def _both(*metrics: str) -> tuple[Curve, ...]:
    """A metric of PPO with and without ptx."""
    return (
        Curve(schema.PPO, metrics, "PPO", "ppo"),
        Curve(schema.PPO_PTX, metrics, "PPO-ptx", "ppo_ptx"),
    )


PRETRAINING = (
    Panel(
        "Pretraining loss",
        "nats per token",
        (
            Curve("pretrain", ("loss",), "training", "base"),
            Curve("pretrain", ("validation/loss",), "held-out", "gold", "points"),
        ),
        "The base model learns to predict the documents.",
        log_y=True,
    ),
    Panel(
        "Held-out bits per byte",
        "bits per byte",
        (Curve("pretrain", ("validation/bits_per_byte",), "held-out", "gold", "points"),),
        "The same progress, comparable across tokenizers.",
    ),
)
FINE_TUNING = (
    Panel(
        "Fine-tuning loss",
        "nats per token",
        (
            Curve("sft", ("loss",), "training", "sft"),
            Curve("sft", ("validation/loss",), "held-out", "gold", "points"),
        ),
        "On the assistant's tokens and their end-of-turn alone.",
        log_y=True,
    ),
)
REWARD = (
    Panel(
        "Reward-model accuracy",
        "pairs ordered right",
        (
            Curve("reward", ("accuracy",), "training", "proxy"),
            Curve("reward", ("validation/accuracy",), "held-out", "gold", "points"),
        ),
        "Against the labelers' noisy rankings.",
        percent=True,
    ),
    Panel(
        "Reward margin",
        "score difference",
        (Curve("reward", ("rewards/margins",), "training", "proxy"),),
        "Between the preferred answer and the other.",
    ),
)
POLICY = (
    Panel("Reward-model score", "score", _both("objective/score"), "What PPO is asked to raise."),
    Panel("KL from SFT", "nats per answer", _both("objective/kl"), "How far the policy has gone for it."),
    Panel("Entropy", "nats per token", _both("objective/entropy"), "What is left of its variety."),
    Panel(
        "Answer length",
        "tokens",
        _both("objective/response_length"),
        "Longer is not better.",
    ),
    Panel("Held-out gold score", "gold score", _both("validation/gold"), "What it is all for."),
    Panel("Loss on documents", "nats per token", _both("ptx/loss"), "What ptx holds down."),
    Panel("Clipped updates", "share of tokens", _both("policy/clipfrac"), "Steps that were too large.", True),
    Panel("Value loss", "squared error", _both("value/loss"), "How well the critic foresees the reward."),
)


def training_charts(panels: Sequence[Panel], metrics: Metrics) -> list[Chart]:
    """The panels for which at least one curve was logged."""
    return [chart for panel in panels if (chart := _panel_chart(panel, metrics)) is not None]


def follows_chart(results: Results) -> Chart | None:
    """Share of held-out instructions followed, by stage."""
    alt = "Bar chart of instructions followed"
    return _stage_bars(results, "follows", "Instructions followed", "share of held-out prompts", alt, percent=True)


def gold_chart(results: Results) -> Chart | None:
    """Mean gold score by stage."""
    return _stage_bars(results, "gold", "Gold score", "mean gold score", "Bar chart of the mean gold score")


def win_chart(results: Results) -> Chart | None:
    """Win rate against SFT by stage."""
    alt = "Bar chart of the win rate against SFT"
    return _stage_bars(results, "win_rate", "Win rate against SFT", "ties count half", alt, percent=True)


def tax_charts(results: Results) -> list[Chart]:
    """Held-out bits per byte of every model, and above SFT's: the alignment tax."""
    found = [
        _stage_bars(
            results, "bits_per_byte", "Held-out bits per byte", "bits per byte", "Bar chart of bits per byte", digits=3
        ),
        _stage_bars(
            results,
            "bits_per_byte_rise",
            "Alignment tax",
            "bits per byte above SFT",
            "Bar chart of the rise in held-out bits per byte above SFT",
            caption="Paired by document, which makes the interval narrow.",
            signed=True,
            digits=4,
        ),
    ]
    return [chart for chart in found if chart is not None]


def calibration_chart(results: Results) -> Chart | None:
    """The reward model's claimed probabilities against frequencies."""
    reward = results.reward
    if reward is None or reward.calibration is None or not reward.calibration.bins:
        return None
    calibration = reward.calibration
    predicted = [one.predicted for one in calibration.bins]
    observed = [one.observed for one in calibration.bins]
    svg = plots.calibration_chart(
        predicted,
        observed,
        Axis("claimed probability of the preferred answer", "how often it is better"),
        name="calibration",
    )
    points = ", ".join(f"{100 * p:.0f} % claimed, {100 * o.value:.0f} % so" for p, o in zip(predicted, observed))
    error = 100 * calibration.expected_error
    caption = "On the dashed line a claim is earned. Expected calibration error "
    caption += f"{error:.1f} points over {calibration.num_pairs:,} pairs."
    return Chart("Is its confidence earned?", caption, f"Calibration plot: {points}.", svg)


def path_charts(results: Results) -> list[Chart]:
    """Proxy and gold over √KL along each PPO run, with the point where they part."""
    return [_path_chart(path, results) for path in results.paths if len(path.points) >= 2]


def best_of_n_chart(results: Results) -> Chart | None:
    """Gold score over √KL: best-of-n as a curve, the policies as points."""
    if len(results.best_of_n) < 2:
        return None
    ranked = sorted(results.best_of_n, key=lambda one: one.n)
    gold = [one.gold for one in ranked]
    series = [_estimates("best of n", "best_of_n", [math.sqrt(one.kl_nats) for one in ranked], gold, "points")]
    for name in (schema.PPO, schema.PPO_PTX):
        stage = results.stage(name)
        if stage is not None and stage.gold is not None and stage.kl_nats is not None:
            x = [math.sqrt(max(0.0, stage.kl_nats.value))]
            series.append(_estimates(_short_label(stage.label), name, x, [stage.gold], "dots"))
    svg = plots.line_chart(series, Axis("√KL from SFT (√nats)", "mean gold score"), name="best-of-n")
    points = ", ".join(f"n = {one.n}: {one.gold.value:.3f}" for one in ranked)
    caption = "Best of n samples by the reward model, whose KL is log n − (n − 1)/n, from n = "
    caption += f"{ranked[0].n} to {ranked[-1].n}; the policies stand where their KL puts them."
    return Chart("Best-of-n and the policies", caption, f"Gold score over the root of KL; {points}.", svg)


def _panel_chart(panel: Panel, metrics: Metrics) -> Chart | None:
    series, sentences = [], []
    for curve in panel.curves:
        steps, values = curve_of(metrics.get(curve.stage, ()), curve.metrics)
        if panel.log_y:
            kept = [(step, value) for step, value in zip(steps, values) if value > 0]
            steps, values = [step for step, _ in kept], [value for _, value in kept]
        if not values:
            continue
        series.append(Series(curve.label, curve.colour, steps, values, kind=curve.kind))
        last = plots.smooth(values)[-1] if curve.kind == "smooth" else values[-1]
        sentences.append(f"{curve.label} from {values[0]:.3g} to {last:.3g} over {steps[-1]:,.0f} steps")
    if not series:
        return None
    axis = Axis("step", panel.y_label, percent=panel.percent, log_y=panel.log_y)
    name = panel.title.lower().replace(" ", "-")
    alt = f"Line chart of {panel.title}: {'; '.join(sentences)}."
    return Chart(panel.title, panel.caption, alt, plots.line_chart(series, axis, name=name))


def curve_of(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[list[float], list[float]]:
    """Steps and finite values of the first of `names` that any record holds."""
    for name in names:
        found = [(record["step"], record[name]) for record in records if name in record and "step" in record]
        found = [(step, value) for step, value in found if isinstance(value, (int, float)) and math.isfinite(value)]
        if found:
            return [float(step) for step, _ in found], [float(value) for _, value in found]
    return [], []


def _stage_bars(
    results: Results,
    measure: str,
    title: str,
    x_label: str,
    alt: str,
    *,
    caption: str = "",
    percent: bool = False,
    signed: bool = False,
    digits: int = 2,
) -> Chart | None:
    found = [(stage, getattr(stage, measure)) for stage in results.stages if getattr(stage, measure) is not None]
    if not found:
        return None
    labels, estimates = [_short_label(stage.label) for stage, _ in found], [estimate for _, estimate in found]
    colours = [plots.colour_of(stage.name) for stage, _ in found]
    axis = Axis(x_label, "", percent=percent, signed=signed, digits=digits)
    svg = plots.bar_chart(labels, estimates, colours, axis, name=measure.replace("_", "-"))
    values = ", ".join(f"{label} {_value(one, percent)}" for label, one in zip(labels, estimates))
    return Chart(title, caption, f"{alt}: {values}.", svg)


def _short_label(label: str) -> str:
    """A label that leaves room for its bar."""
    return label if len(label) <= 20 else f"{label[:19]}…"


def _path_chart(path: OptimisationPath, results: Results) -> Chart:
    points = sorted(path.points, key=lambda point: point.step)
    x = [math.sqrt(max(0.0, point.kl_nats)) for point in points]
    proxy, gold = _share([point.proxy for point in points]), _share([point.gold for point in points])
    series = [Series("reward model", "proxy", x, proxy, kind="points"), Series("gold", "gold", x, gold, kind="points")]
    stage = results.stage(path.stage)
    label = path.stage if stage is None else stage.label
    parted = next((point for point in points if point.step == path.parts_at_step), None)
    mark = None if parted is None else (math.sqrt(max(0.0, parted.kl_nats)), f"they part: step {parted.step}")
    axis = Axis("√KL from SFT (√nats)", "share of largest gain", mark=mark)
    svg = plots.line_chart(series, axis, name=f"path-{path.stage.replace('_', '-')}")
    if parted is None:
        ending = "Gold follows the reward model to the end: no parting was seen."
    else:
        ending = f"They part at step {parted.step}, at {parted.kl_nats:.1f} nats: the place to stop."
    rise = f"Reward model {points[0].proxy:.2f} to {points[-1].proxy:.2f}, gold {points[0].gold:.3f} to "
    rise += f"{points[-1].gold:.3f} (best {max(point.gold for point in points):.3f})."
    return Chart(f"{label}: proxy and truth", f"{rise} {ending}", f"{rise} {ending}", svg)


def _share(values: Sequence[float]) -> list[float]:
    """Gain over the first value, as a share of the largest gain (or of the largest loss, if nothing was gained)."""
    gains = [value - values[0] for value in values]
    largest = max(gains) if max(gains) > 0 else max(abs(gain) for gain in gains)
    return [gain / largest if largest > 0 else 0.0 for gain in gains]


def _estimates(
    label: str, colour: str, x: Sequence[float], estimates: Sequence[Estimate], kind: Literal["points", "dots"]
) -> Series:
    values, low, high = [e.value for e in estimates], [e.low for e in estimates], [e.high for e in estimates]
    return Series(label, colour, x, values, low, high, kind)


def _value(estimate: Estimate, percent: bool) -> str:
    if percent:
        return f"{100 * estimate.value:.1f} % ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"
    return f"{estimate.value:.4f} ({estimate.low:.4f} to {estimate.high:.4f})"
