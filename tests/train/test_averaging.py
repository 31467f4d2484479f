import contextlib

import pytest
import torch
from torch import nn

from chatloom.train.averaging import WeightAverage


def make() -> tuple[nn.Linear, WeightAverage]:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    return layer, WeightAverage(layer, decay=0.9)


def test_by_hand() -> None:
    layer, average = make()
    nn.init.constant_(layer.weight, 2.0)
    average.update()  # 0.9 * 1 + 0.1 * 2
    nn.init.constant_(layer.weight, 3.0)
    average.update()  # 0.9 * 1.1 + 0.1 * 3
    assert average.averages["weight"].item() == pytest.approx(1.29)


def test_applied_only_within_the_block() -> None:
    layer, average = make()
    nn.init.constant_(layer.weight, 5.0)
    with contextlib.suppress(KeyError), average.applied():
        assert layer.weight.item() == 1.0
        raise KeyError  # an evaluation that fails
    assert layer.weight.item() == 5.0
    average.copy_to_model()
    assert layer.weight.item() == 1.0


def test_the_average_is_not_the_weights_themselves() -> None:
    layer, average = make()
    with torch.no_grad():
        layer.weight.add_(1)
    assert average.averages["weight"].item() == 1.0
