"""`metrics.jsonl`: one JSON object a step, on disk as soon as the step is done; TensorBoard event files by option.

A resumed run continues the file where its checkpoint was taken: lines of later steps, which the killed run had
already written, are cut off first, so every step stands there once.
"""

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from chatloom import runtime

FILE_NAME = "metrics.jsonl"


class MetricsLog:
    """Writes metrics of a run folder; does nothing on ranks other than the first.

    Args:
        run_folder: where `metrics.jsonl` and `tensorboard/` are.
        resume_step: keep what was logged up to this step, and drop the rest; 0 starts anew.
        tensorboard: also write event files. Raises ValueError if TensorBoard is not installed.
    """

    def __init__(self, run_folder: Path | str, *, resume_step: int = 0, tensorboard: bool = False) -> None:
        self.path = Path(run_folder) / FILE_NAME
        self._writer = _tensorboard_writer(self.path.parent / "tensorboard", resume_step) if tensorboard else None
        if not runtime.is_main():
            return
        kept = [line for line in read_metrics(self.path) if line["step"] <= resume_step]
        runtime.write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Append one line. Numbers that JSON does not have (NaN, infinity) are written as null."""
        if not runtime.is_main():
            return
        line = {"step": step} | {name: _plain(value) for name, value in metrics.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in metrics.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files; writing is over."""
        if runtime.is_main():
            self._file.close()
            if self._writer is not None:
                self._writer.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """All lines of a `metrics.jsonl`, oldest first; none if there is no file. A last line cut by a kill is left out."""
    path = Path(path)
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        lines.append(json.loads(line))
    return lines


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tensorboard_writer(folder: Path, resume_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            'tensorboard is on, but TensorBoard is not installed; `pip install "chatloom[tensorboard]"`, or leave it '
            "off: metrics.jsonl has the same numbers"
        ) from error
    return SummaryWriter(str(folder), purge_step=resume_step + 1) if runtime.is_main() else None
