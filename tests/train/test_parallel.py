"""Sums over micro-batches, and two gloo ranks against one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from chatloom.objectives import Loss
from chatloom.train.metrics import read_metrics
from chatloom.train.parallel import StepSums, reduce_gradients

SCRIPT = Path(__file__).parent / "two_ranks.py"


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value)


def test_each_metric_is_divided_by_its_own_count() -> None:
    sums = StepSums()
    sums.add(Loss(scalar(6), scalar(2), {"a": (scalar(1), scalar(4)), "b": (scalar(1), scalar(1))}), {})
    sums.add(Loss(scalar(4), scalar(3), {"a": (scalar(2), scalar(2)), "c": (scalar(0), scalar(0))}), {})
    totals = sums.reduce()
    assert totals.loss == 2.0  # 10 / 5, not the mean of 3 and 4/3
    assert totals.metrics["a"] == 0.5
    assert totals.metrics["b"] == 1.0
    assert totals.metrics["c"] != totals.metrics["c"]  # nothing was counted: NaN
    assert totals.microbatch_totals == [[6.0, 4.0]]


def test_divide_then_clip() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([30.0, 40.0])
    assert reduce_gradients([parameter], weight=10.0, clip_norm=1.0) == 5.0
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]))
    assert reduce_gradients([parameter], weight=0.5, clip_norm=None) == pytest.approx(2.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([1.2, 1.6]))


def launch(folder: Path, *launcher: str, mode: str = "whole") -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    """Uneven token counts a rank, clipping, Muon, resuming. Order of summation differs: 1e-4 on Muon's bf16 updates."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    launch(tmp_path / "one")
    launch(tmp_path / "two", *torchrun, mode="resume")
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for left, right in zip(one, two, strict=True):
        assert left["tokens"] == right["tokens"]
        for key in ("loss", "grad_norm", "accuracy", "learning_rate"):
            assert left[key] == pytest.approx(right[key], rel=1e-4), (left["step"], key)
    weights, same = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, same[name], rtol=1e-3, atol=1e-4)
