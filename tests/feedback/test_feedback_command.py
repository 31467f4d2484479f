"""`chatloom feedback stats|export` as people type it, and the whole way from a judgement to a step of each stage."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import make_url

from chatloom import cli
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.engine.language_model import LanguageModel
from chatloom.feedback import command
from chatloom.feedback.store import Store
from chatloom.testing.models import tiny_llama
from chatloom.testing.talk import Talk
from chatloom.testing.tokenizer import byte_tokenizer
from chatloom.train.metrics import read_metrics


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Feedback of two raters on two models."""
    path = tmp_path_factory.mktemp("feedback") / "feedback.db"
    with Store.open(path) as store:
        for number in range(12):
            talk = Talk(store, owner="ann")
            question = talk.ask(f"Question {number}, from me@example.com?")
            good = talk.answer(question, f"A good answer {number}", model="smollm2", adapter="mine")
            bad = talk.answer(question, f"A bad answer {number}", model="smollm2")
            store.compare(good.id, bad.id, rater="ann")
            store.rate(good.id, rater="ann", value=1, tags=["clear"])
            if number < 4:
                store.compare(good.id, bad.id, rater="bob", tie=number == 3)
                store.rate(good.id, rater="bob", value=1 if number else -1)
                store.rank([[good.id], [bad.id]], rater="")
                store.edit(bad.id, f"Edited {number}", rater="bob", consent=number > 0)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    LanguageModel(tiny_llama(context_length=256), ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE)).save(folder)
    return folder


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "Console", lambda: Console(width=200))


def feedback(*options: object) -> int:
    return cli.main(["feedback", *map(str, options)])


def test_stats_shows_what_there_is(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert feedback("stats", "--database", database) == 0
    shown = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0].startswith("39 judgements, 20")
    assert lines[0].endswith("; 1 more without consent")
    assert "model rating pair ranking edit up down better than others" in lines
    assert "smollm2 0 16 4 3 0 0 0 of 19 (1 level)" in lines
    assert "smollm2+mine 16 16 4 0 15 1 19 of 19 (1 level)" in lines
    assert "ann 12 12 0 0" in lines
    assert "(local) 0 0 4 0" in lines
    assert "reasons: clear 12" in lines
    # Thumbs: of four answers that two judged, three agree. Values: seven up, one down.
    assert "agreement on ratings: 75.0% on 4 judged by two or more; Krippendorff's alpha 0.00" in lines
    # Pairs: three raters on four; 10 of 12 pairs of raters agree.
    assert any(line.startswith("agreement on pairs: 83.3% on 4 judged by two or more") for line in lines)
    assert "reward 15 15" in " ".join(lines)
    assert lines[-1] == f"next: chatloom feedback export --to reward --database {database}"


def test_stats_says_how_to_go_on_without_the_password_of_a_database(
    postgresql: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = make_url(postgresql()).set(password="secret").render_as_string(hide_password=False)
    with Store.open(url) as store:
        talk = Talk(store, owner="ann")
        question = talk.ask("Which?")
        good, bad = (talk.answer(question, text) for text in ("good", "bad"))
        store.compare(good.id, bad.id, rater="ann")
    assert feedback("stats", "--database", url) == 0
    shown = capsys.readouterr().out
    assert "next: chatloom feedback export --to reward --database" in shown
    assert "secret" not in shown


def test_stats_as_json_is_what_the_store_says(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert feedback("stats", "--database", database, "--json", "--model", "smollm2") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["by_kind"] == {"rating": 16, "pair": 16, "ranking": 4, "edit": 3}
    assert shown["trainable"]["reward"]["pairs"] == 15
    with Store.open(database) as store:
        assert json.loads(json.dumps(store.statistics().to_dict())) == shown


def test_an_empty_store_says_where_feedback_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store.open(tmp_path / "feedback.db").close()
    assert feedback("stats", "--database", tmp_path / "feedback.db") == 0
    assert "Feedback comes from the page that `chatloom serve` opens." in capsys.readouterr().out


def test_the_whole_way_to_a_reward_model(database: Path, model: Path, tmp_path: Path) -> None:
    data = tmp_path / "comparisons.jsonl"
    assert feedback("export", "--to", "reward", "--database", database, "--output", data) == 0
    options = ["--epochs", "1", "--batch-rows", "5", "--row-length", "256", "--dtype", "fp32"]
    run = tmp_path / "reward"
    assert cli.main(["reward", "--model", str(model), "--data", str(data), "--output-dir", str(run), *options]) == 0
    steps = [record for record in read_metrics(run / "metrics.jsonl") if "loss" in record]
    assert steps
    assert all(math.isfinite(record["loss"]) for record in steps)


def test_the_whole_way_to_a_fine_tuned_model(database: Path, model: Path, tmp_path: Path) -> None:
    data = tmp_path / "demonstrations.jsonl"
    assert feedback("export", "--to", "sft", "--database", database, "--output", data) == 0
    options = ["--epochs", "1", "--batch-rows", "2", "--row-length", "256", "--dtype", "fp32", "--train-on", "last"]
    run = tmp_path / "sft"
    assert cli.main(["sft", "--model", str(model), "--data", str(data), "--output-dir", str(run), *options]) == 0
    steps = [record for record in read_metrics(run / "metrics.jsonl") if "loss" in record]
    assert steps
    assert all(math.isfinite(record["loss"]) for record in steps)


def test_scrubbing_by_the_command(database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("presidio_analyzer", reason="--scrub is NOT tested here: pip install 'chatloom[scrub]'")
    data = tmp_path / "kto.jsonl"
    assert feedback("export", "--to", "kto", "--database", database, "--output", data, "--scrub") == 0
    assert "me@example.com" not in data.read_text(encoding="utf-8")
    assert "from <EMAIL_ADDRESS>?" in data.read_text(encoding="utf-8")
    assert "personal data taken out: EMAIL_ADDRESS 11" in capsys.readouterr().out


def test_the_name_of_the_file_is_the_target(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert feedback("export", "--to", "pairs", "--database", database, "--since", "2026-01-01") == 0
    assert (tmp_path / "pairs.jsonl").exists()
    assert feedback("export", "--to", "pairs", "--database", database) == 2
    assert "is there already" in capsys.readouterr().err
    assert feedback("export", "--to", "pairs", "--database", database, "--overwrite") == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["export", "--to", "kto", "--rater", "nobody"], "no feedback fits these filters"),
        (["export", "--to", "kto", "--since", "2999-01-01"], "no feedback fits these filters"),
        (["export", "--to", "kto", "--since", "yesterday"], "--since is 'yesterday'; write a day or moment"),
        (["export", "--to", "kto", "--kinds", "edit"], "of no use to kto"),
        (["export", "--to", "kto", "--output", "kto.csv"], "must end in .jsonl or .jsonl.gz"),
        (["stats", "--database", "nothing.db"], "there is no such database"),
        (["stats", "--database", __file__], "this file is no database"),
    ],
)
def test_mistakes_are_one_sentence(
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--database" not in options:
        options = [*options, "--database", str(database)]
    assert feedback(*options) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []  # not even an empty database


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["export"], "export needs --to"),
        (["stats", "--to", "sft"], "belong to"),
        (["export", "--to", "sft", "--json"], "--json belongs to"),
        (["list"], "invalid choice"),
        ([], "required"),
    ],
)
def test_options_that_make_no_sense_together(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        feedback(*options)
    assert words in " ".join(capsys.readouterr().err.split())
