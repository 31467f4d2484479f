"""Runs a command in a child process and kills it (SIGKILL) at a chosen moment.

The child is forked, so it starts in no time with everything imported; it dies as any process does that is killed:
no `finally`, no `except`, no buffer is written.
"""

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from chatloom import cli

_SURVIVED = 77


def kill_at(arguments: Sequence[str], moment: str, *, call: int = 1, when: Literal["before", "after"]) -> None:
    """Run `chatloom ARGUMENTS` until just before or after the given call of `moment`, "module:attribute.path"."""

    def child() -> None:
        _replace(moment, lambda function: _deadly(function, call, when))
        cli.main(list(arguments))

    assert _died(_fork(child)), f"{moment} was not called {call} times"


def kill_when(arguments: Sequence[str], path: Path, *, timeout_seconds: float = 120) -> None:
    """Run `chatloom ARGUMENTS` until `path` is there, and kill it at once."""
    child = _fork(lambda: cli.main(list(arguments)))
    end = time.monotonic() + timeout_seconds
    while not path.exists() and time.monotonic() < end and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.002)
    assert path.exists(), f"{path} never came"
    os.kill(child, signal.SIGKILL)
    assert _died(child), f"the command had ended when {path} came"


def _fork(task: Callable[[], Any]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
            task()
            status = _SURVIVED
        finally:
            os._exit(status)
    return child


def _died(child: int) -> bool:
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _replace(target: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for each in outer:
        owner = getattr(owner, each)
    setattr(owner, name, wrap(getattr(owner, name)))


def _deadly(function: Callable[..., Any], call: int, when: str) -> Callable[..., Any]:
    count = 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **options)
        if count == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped
