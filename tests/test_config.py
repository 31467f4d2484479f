from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chatloom import config


@dataclass(frozen=True)
class Inner:
    learning_rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True)
class Outer:
    data: str
    steps: int | None = None
    train: Inner = field(default_factory=Inner)


def test_round_trip_keeps_types(tmp_path: Path) -> None:
    given = Outer("x", 3, Inner(0.2, (0.1, 0.2)))
    config.save(given, tmp_path / "c.json")
    assert config.load(Outer, tmp_path / "c.json") == given


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"Inner has no option 'learning_rat'; did you mean 'learning_rate'"):
        config.from_dict(Outer, {"data": "x", "train": {"learning_rat": 1}})
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        config.override(Outer("x"), step=3)


def test_override_reaches_nested_fields() -> None:
    changed = config.override(Outer("x"), steps=2, learning_rate=0.5)
    assert changed == Outer("x", 2, Inner(0.5))


def test_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ValueError, match=r"c\.json"):
        config.load(Outer, tmp_path / "c.json")


def test_digest_changes_with_any_field() -> None:
    assert config.digest(Outer("x")) == config.digest(Outer("x"))
    assert config.digest(Outer("x")) != config.digest(config.override(Outer("x"), learning_rate=0.3))
