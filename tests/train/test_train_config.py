import dataclasses

import pytest

from chatloom import config
from chatloom.train.train_config import TrainConfig


def test_defaults_survive_json() -> None:
    options = TrainConfig(optimizer="muon", betas=(0.9, 0.99), ema_decay=0.992)
    assert config.from_dict(TrainConfig, config.to_dict(options)) == options


def test_no_field_collides_with_a_stage() -> None:
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    assert not names & {"model", "data", "output_dir", "steps", "epochs"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; allowed: adamw, muon"),
        ({"schedule": "cos"}, "schedule is 'cos'; allowed: constant, linear"),
        ({"dtype": "fp16"}, "dtype is 'fp16'; allowed: fp32, bf16"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be a number above 0"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0; it must be above 0, or None"),
        ({"dropout": 1.0}, "dropout"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"max_loss_ratio": 1.0}, "max_loss_ratio"),
        ({"warmup_steps": -1}, "warmup_steps is -1; it must be 0 or more"),
        ({"warmup_start": 2.0}, "warmup_start"),
        ({"batch_rows": 0}, "batch_rows"),
        ({"row_length": 0}, "row_length is 0; it must be 1 or more, or None"),
        ({"microbatch_rows": 64}, "microbatch_rows is 64, but a batch has only batch_rows = 32"),
        ({"save_every_steps": 0}, "save_every_steps"),
        ({"dtype": "int8"}, "dtype is 'int8', whose weights are only read"),
        ({"decay_fraction": 0.5}, "schedule 'cosine' has no decay_fraction"),
    ],
)
def test_bad_values(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        TrainConfig(**changes)  # type: ignore[arg-type]
