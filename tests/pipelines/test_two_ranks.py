"""A stage under torchrun, two gloo ranks on the CPU: the same run as in one process, up to the rounding of sums."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chatloom import cli
from chatloom.train.metrics import read_metrics


def test_sft_on_two_ranks_is_sft(quickstart: Path, tmp_path: Path) -> None:
    """The ranks open one folder together, share each batch, evaluate together, and one of them writes."""
    arguments = [
        *("sft", "--model", str(quickstart / "base"), "--data", str(quickstart / "data" / "demonstrations.jsonl")),
        *("--epochs", "1", "--batch-rows", "16", "--row-length", "128", "--save-every-steps", "3"),
        *("--learning-rate", "1e-3", "--epsilon", "1e-4", "--evaluate-every-steps", "4"),
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "chatloom.cli", *arguments, "--output-dir", str(two)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("conversations;") == 1  # one rank speaks
    assert cli.main([*arguments, "--output-dir", str(one)]) == 0
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (one, two)]
    assert len(lines[0]) == len(lines[1]) > 8
    for single, double in zip(*lines):
        assert single.keys() == double.keys()
        for key in single.keys() - {"tokens_per_second"}:
            assert double[key] == pytest.approx(single[key], rel=1e-3, abs=1e-5), (single["step"], key)
    weights = [load_file(folder / "model.safetensors") for folder in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
