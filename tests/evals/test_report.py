"""The report: complete, self-contained, and deaf to whatever a model may have written."""

import io
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from synthetic import metrics, results

from chatloom.evals import page, plots, report
from chatloom.evals import results as schema
from chatloom.evals.charts import curve_of
from chatloom.evals.intervals import wilson
from chatloom.evals.results import Results, StageResult

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'>{{ 7 * 7 }} </style></svg>"


class Reader(HTMLParser):
    """Collects elements, their ids and headings, and checks that they close."""

    VOID = frozenset({"meta", "br", "img", "link", "path", "use", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [value or "" for key, value in self.attributes if key == name]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return report.write_report(results(), folder, runs=metrics(folder / "runs"))


def test_the_page_holds_every_part(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    found = Reader(text)
    linked = {href[1:] for href in found.values("href") if not href.startswith("#m") and "-" not in href} - {""}
    sections = {"result", "claims", "categories", "training", "reward", "policy", "tax", "samples", "checks", "origin"}
    assert sections <= linked
    assert sections <= set(found.values("id"))
    assert found.tags["svg"] == 21
    assert "91.1 %" in text
    assert "they part: step 34" in text
    assert "chatloom chat runs/quickstart/ppo" in text


def test_the_page_needs_nothing_beside_itself(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    found = Reader(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    assert found.tags["script"] == found.tags["link"] == found.tags["img"] == 0
    assert found.values("src") == []
    assert all(href.startswith("#") for href in found.values("href") + found.values("xlink:href"))


def test_ids_are_unique_and_references_resolve(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    found = Reader(text)
    ids = found.values("id")
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert {href[1:] for href in found.values("href")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


def test_every_drawing_says_what_it_shows_and_follows_the_page_colours(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    found = Reader(text)
    labels = re.findall(r'class="drawing" role="img" aria-label="([^"]+)"', text)
    assert len(labels) == found.tags["svg"]
    assert all(re.search(r"\d", label) for label in labels)
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", drawings)) <= {"#ffffff"}
    names = set(re.findall(r"var\((--[a-z-]+)\)", drawings))
    light, dark = text.split("prefers-color-scheme: dark", 1)
    assert names
    assert all(f"{name}:" in light and f"{name}:" in dark for name in names)


def test_model_text_can_never_become_markup(tmp_path: Path) -> None:
    hostile = results(text=ATTACK)
    stage = replace(hostile.stages[1], label=ATTACK)
    hostile = replace(
        hostile,
        title=ATTACK,
        description=ATTACK,
        stages=(hostile.stages[0], stage, *hostile.stages[2:]),
        config={"sft": {"prompt": ATTACK}},
        commands=(ATTACK,),
    )
    text = report.write_report(hostile, tmp_path, runs={}).read_text(encoding="utf-8")
    clean = report.write_report(results(text="plain"), tmp_path / "clean", runs={}).read_text(encoding="utf-8")
    assert Reader(text).tags == Reader(clean).tags
    assert "<script" not in text
    assert "onerror=alert(2)>" not in text
    assert "{{ 7 * 7 }}" in text


def test_report_json_reads_back_and_rebuilds_the_page(written: Path, tmp_path: Path) -> None:
    path = written.parent / "report.json"
    assert schema.read(path) == results()
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["derived"]["claims"][0]["met"] is True
    before = written.read_text(encoding="utf-8")
    assert report.rebuild(written.parent, runs=metrics(tmp_path)).read_text(encoding="utf-8") == before


def test_another_format_is_refused(tmp_path: Path) -> None:
    for content in ("{}", "[1]", '{"format": "other/1"}'):
        (tmp_path / "report.json").write_text(content)
        with pytest.raises(ValueError, match="is not a report of format"):
            schema.read(tmp_path / "report.json")


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    little = Results("Only SFT", (StageResult("sft", "SFT", follows=wilson(9, 10)),))
    found = Reader(report.write_report(little, tmp_path, runs={}).read_text(encoding="utf-8"))
    assert [name for name in found.values("id") if "-" not in name] == ["result", "claims"]
    assert found.tags["td"] == 1
    assert found.tags["svg"] == 1
    Reader(report.write_report(Results("Nothing", ()), tmp_path, runs={}).read_text(encoding="utf-8"))


def test_a_run_without_metrics_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no metrics at .*pretrain"):
        report.write_report(results(), tmp_path, runs={"pretrain": tmp_path / "pretrain"})


def test_curves_take_the_first_name_that_was_logged_and_skip_what_is_not_finite() -> None:
    records = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.0, "other": 5}]
    assert curve_of(records, ("validation/loss", "loss")) == ([1.0, 3.0], [2.0, 1.0])
    assert curve_of(records, ("missing",)) == ([], [])


def test_smoothing_keeps_a_straight_line_straight() -> None:
    line = [float(number) for number in range(100)]
    assert plots.smooth(line, reach=5)[:95] == pytest.approx(line[:95])
    assert plots.smooth([1.0, 3.0], reach=0) == [1.0, 3.0]
    assert plots.smooth([0.0, 3.0, 6.0, 0.0], reach=1) == pytest.approx([0.0, 3.0, 3.0, 3.0])


def test_thinning_keeps_both_ends() -> None:
    found = plots.thin([float(number) for number in range(1000)], most=10)
    assert (len(found), found[0], found[-1]) == (10, 0.0, 999.0)
    assert plots.thin([1.0, 2.0]) == [1.0, 2.0]


def test_the_terminal_summary_has_every_stage_and_claim() -> None:
    out = io.StringIO()
    report.print_summary(results(), Console(file=out, width=150))
    text = out.getvalue()
    assert all(stage.label in text for stage in results().stages)
    assert text.count("✓") == 7
    assert "75.5 %" in text


def test_a_narrow_terminal_still_shows_every_value_whole() -> None:
    out = io.StringIO()
    report.print_summary(results(), Console(file=out, width=80))
    assert max(len(line) for line in out.getvalue().splitlines()) <= 80
    assert all(value in out.getvalue() for value in ("75.5 %", "1.146", "2.49", "PPO-ptx"))
    assert "71.3–79.2\n" not in out.getvalue()


def test_brackets_in_a_title_are_not_markup() -> None:
    out = io.StringIO()
    report.print_summary(replace(results(), title="[red]run[/] [/bold]"), Console(file=out, width=150))
    assert "[red]run[/] [/bold]" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.14, "2.1 s"), (41.0, "41 s"), (59.7, "60 s"), (108.2, "1 min 48 s"), (7260, "2 h 1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert page.duration(seconds) == text


def test_reading_a_report_does_not_import_matplotlib_or_torch() -> None:
    program = "import chatloom.evals.judge, chatloom.evals.results, chatloom.evals.claims, sys; "
    program += "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
    program = "import chatloom.evals.report, sys; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
