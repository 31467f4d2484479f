import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from chatloom.train.metrics import MetricsLog, read_metrics


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in read_metrics(folder / "metrics.jsonl")]


def test_a_line_is_on_disk_at_once(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": 0.5, "tokens": 3})
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5, "tokens": 3}]


def test_resuming_drops_later_lines_and_a_torn_one(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for step in range(1, 5):
            log.write(step, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    with MetricsLog(tmp_path, resume_step=2) as log:
        assert steps(tmp_path) == [1, 2]
        log.write(3, {"loss": 2.0})
    assert steps(tmp_path) == [1, 2, 3]


def test_starting_anew_empties_the_file(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": 1.0})
    with MetricsLog(tmp_path):
        assert steps(tmp_path) == []


def test_what_json_does_not_have_is_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": float("nan"), "ratio": float("inf"), "name": "x"})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "loss": None, "ratio": None, "name": "x"}


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with MetricsLog(tmp_path, tensorboard=True) as log:
        log.write(1, {"loss": 1.0})
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_tensorboard_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install \"chatloom\[tensorboard\]\""):
        MetricsLog(tmp_path, tensorboard=True)
