"""What a recipe says at its end: how the page is opened, and that it opens where somebody wants it."""

import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console
from rich.prompt import Confirm

from chatloom import catalogue, cli
from chatloom.recipes import running
from chatloom.server import command as serve

ROOT = Path("runs/mine")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[serve.Config]:
    """What was served, where smollm2's package is installed."""
    configs: list[serve.Config] = []
    monkeypatch.setattr(serve, "run", configs.append)
    monkeypatch.setattr(catalogue, "resolve", lambda ref: Path(ref))
    return configs


def at_terminal(monkeypatch: pytest.MonkeyPatch, *, answer: bool) -> None:
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}", Terminal())
    monkeypatch.setattr(Confirm, "ask", lambda *args, **kwargs: answer)


def test_the_command_that_is_said_opens_what_is_offered(
    served: list[serve.Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_terminal(monkeypatch, answer=True)
    console = Console(file=io.StringIO(), width=300)
    running.offer_page(ROOT, console)
    (offered,) = served
    assert offered.refs == {"mine": "runs/mine/ppo", "smollm2": "smollm2"}
    assert offered.open_page
    said = console.file.getvalue().split("rated: ")[1]  # type: ignore[attr-defined]
    assert cli.main(shlex.split(said)[1:]) == 0
    assert served[1] == offered


def test_nobody_is_kept_waiting(served: list[serve.Config], monkeypatch: pytest.MonkeyPatch) -> None:
    at_terminal(monkeypatch, answer=True)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    running.offer_page(ROOT, Console(file=io.StringIO()))
    assert not served


def test_no_is_no(served: list[serve.Config], monkeypatch: pytest.MonkeyPatch) -> None:
    at_terminal(monkeypatch, answer=False)
    running.offer_page(ROOT, Console(file=io.StringIO()))
    assert not served


def test_a_model_that_is_not_installed_is_left_out(served: list[serve.Config], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(ref: str) -> Path:
        raise ValueError(ref)

    monkeypatch.setattr(catalogue, "resolve", missing)
    at_terminal(monkeypatch, answer=True)
    running.offer_page(ROOT, Console(file=io.StringIO()))
    assert list(served[0].refs) == ["mine"]
