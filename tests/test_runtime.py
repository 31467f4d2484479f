import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from chatloom import runtime


def test_atomic_write_leaves_the_old_file_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file.json"
    runtime.write_atomically(target, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runtime.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        runtime.write_atomically(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_atomic_folder_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "folder"

    def fail_halfway() -> None:
        with runtime.atomic_folder(target) as temporary:
            (temporary / "a").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert list(tmp_path.iterdir()) == []
    for content in ("one", "two"):
        with runtime.atomic_folder(target) as temporary:
            (temporary / "a").write_text(content)
        assert (target / "a").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_random_state_round_trip() -> None:
    runtime.seed_everything(3)
    state = runtime.random_state()
    first = torch.rand(3)
    runtime.restore_random_state(state)
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("name", ["tpu9", "cuda:99" if not torch.cuda.is_available() else "nope"])
def test_unknown_device_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="device"):
        runtime.pick_device(name)


def test_unknown_dtype_lists_those_known() -> None:
    with pytest.raises(ValueError, match="fp32, bf16, fp16"):
        runtime.pick_dtype("fp7")


def test_alone_every_reduction_is_the_identity() -> None:
    assert (runtime.rank(), runtime.world_size(), runtime.is_main()) == (0, 1, True)
    assert runtime.sum_across_ranks(torch.tensor(2.0)) == 2
    assert runtime.gather_objects("x") == ["x"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it asks glibc")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    # In a process of its own, because it cannot be undone.
    code = """
import resource, torch
from chatloom import runtime
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(50_000_000, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
given_back = faults()
assert runtime.keep_freed_memory()
faults()
faults()
print(given_back, faults())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    given_back, kept = map(int, found)
    assert given_back > 50
    assert kept < given_back / 10


def test_threads_that_wait_sleep_unless_somebody_decided_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    runtime.let_waiting_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == "300"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    runtime.let_waiting_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    runtime.let_waiting_threads_sleep()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_they_are_told_before_torch_is_there() -> None:
    """GNU's OpenMP reads it as it is loaded."""
    code = (
        "import sys\n"
        "from chatloom import cli, runtime\n"
        "def told():\n"
        "    print('torch' in sys.modules)\n"
        "    raise SystemExit\n"
        "runtime.let_waiting_threads_sleep = told\n"
        "cli.main(['chat', 'nothing'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
