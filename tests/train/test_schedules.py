import pytest

from chatloom.train.schedules import SCHEDULES, factor

HALF_SQRT = 1 - 0.5**0.5


@pytest.mark.parametrize(
    ("name", "steps", "options", "expected"),
    [
        ("constant", [0, 5, 9], {}, [1, 1, 1]),
        ("linear", [0, 5, 9, 10, 99], {}, [1, 0.5, 0.1, 0, 0]),
        ("linear", [0, 5, 10], {"final_ratio": 0.5}, [1, 0.75, 0.5]),
        ("cosine", [0, 5, 10], {}, [1, 0.5, 0]),
        ("cosine", [0, 5, 10], {"final_ratio": 0.1}, [1, 0.55, 0.1]),
        ("wsd", [0, 8, 9, 10], {}, [1, 1, HALF_SQRT, 0]),
        ("wsd", [5, 6, 8], {"decay_fraction": 0.4}, [1, 1, HALF_SQRT]),
        ("warmdown", [0, 3, 4, 10], {}, [1, 1, 6 / 6.5, 0]),
        ("warmdown", [4, 5, 7], {"decay_fraction": 0.5, "final_ratio": 0.5}, [1, 1, 0.8]),
        # Warm-up of 4: 1/5, 2/5, ... and full at update 4; from a tenth: 0.1 + 0.9/5.
        ("constant", [0, 1, 3, 4], {"warmup_steps": 4}, [0.2, 0.4, 0.8, 1]),
        ("constant", [0, 4], {"warmup_steps": 4, "warmup_start": 0.1}, [0.28, 1]),
        ("linear", [3, 4, 7, 10], {"warmup_steps": 4}, [0.8, 1, 0.5, 0]),
    ],
)
def test_table(name: str, steps: list[int], options: dict[str, float], expected: list[float]) -> None:
    assert [factor(name, step, 10, **options) for step in steps] == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_shorter_than_its_warmup(name: str) -> None:
    assert 0 < factor(name, 1, 2, warmup_steps=5) < 1


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"'cosin' is unknown; allowed: constant, linear"):
        factor("cosin", 0, 10)
