"""The compiled code: found, made, kept, and done without."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from chatloom.engine import native

CPU = torch.device("cpu")


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache with nothing in it, and a library that has not been looked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._library.cache_clear()
    yield tmp_path
    native._library.cache_clear()


def test_without_a_compiler_it_says_so_once_and_torch_computes(monkeypatch: pytest.MonkeyPatch, afresh: Path) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.warns(RuntimeWarning, match="no C\\+\\+ compiler"):
        assert not native.available(CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not native.available(CPU)


def test_a_compiler_that_fails_is_told_of(monkeypatch: pytest.MonkeyPatch, afresh: Path) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.warns(RuntimeWarning, match="false cannot compile"):
        assert not native.available(CPU)
    assert not list(afresh.rglob("*.so"))


def test_it_can_be_switched_off_and_is_not_for_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not native.available(torch.device("meta"))
    monkeypatch.setenv("CHATLOOM_NATIVE", "0")
    assert not native.available(CPU)


def test_it_is_made_once_and_no_half_file_is_left(afresh: Path) -> None:
    if not native.available(CPU):
        pytest.skip("nothing can be compiled here")
    [made] = [each for each in afresh.rglob("*") if each.is_file()]
    assert made.suffix == ".so"
    before = made.stat().st_mtime_ns
    native._library.cache_clear()
    assert native.available(CPU)
    assert made.stat().st_mtime_ns == before


def test_other_processors_get_the_same_numbers(tmp_path: Path) -> None:
    """Compiled for no particular processor, the arithmetic is written out instead of the processor's own."""
    if not native.available(CPU):
        pytest.skip("nothing can be compiled here")
    code = (
        "import torch\n"
        "from chatloom.engine import native, quantised\n"
        "native._ATTEMPTS = ([],)\n"
        "torch.manual_seed(0)\n"
        "weight, x = torch.randn(48, 64), torch.randn(13, 64)\n"
        "for bits in (16, 8, 4):\n"
        "    matrix = quantised.Matrix(64, 48, bits=bits, device=torch.device('cpu'))\n"
        "    matrix.fill(weight, None)\n"
        "    read = x.bfloat16().float() if bits == 16 else quantised.rounded_rows(x)\n"
        "    found, wanted = native.product(matrix.native, x), read @ matrix.dequantised().t()\n"
        "    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)\n"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=300)
