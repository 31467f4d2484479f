"""What a run goes on from."""

from pathlib import Path

import pytest
import torch

from chatloom import checkpoint


def test_state_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "checkpoints" / "step_000001"
    checkpoint.save_state(target, {"a": torch.arange(3)}, {"step": 1})
    tensors, scalars = checkpoint.load_state(target)
    assert tensors["a"].tolist() == [0, 1, 2]
    assert scalars == {"step": 1}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chatloom.checkpoint.state.save_file", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_state(target.with_name("step_000002"), {"a": torch.arange(3)}, {})
    assert checkpoint.latest_checkpoint(tmp_path) == target
    assert [path.name for path in target.parent.iterdir()] == ["step_000001"]
