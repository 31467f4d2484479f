from chatloom.train.guard import LossGuard


def losses_until_stop(guard: LossGuard, losses: list[float]) -> int | None:
    return next((index for index, loss in enumerate(losses) if guard.explodes(loss)), None)


def test_several_high_losses_in_a_row_stop() -> None:
    guard = LossGuard(max_ratio=3.0, patience=3)
    assert losses_until_stop(guard, [2.0, 2.0, 6.1, 7.0, 9.0, 2.0]) == 4
    assert not guard.healthy


def test_single_spikes_do_not() -> None:
    guard = LossGuard(max_ratio=3.0, patience=3)
    assert losses_until_stop(guard, [2.0, 7.0, 7.0, 2.0, 7.0, 7.0, 2.0]) is None
    assert guard.healthy


def test_high_losses_do_not_raise_the_average() -> None:
    guard = LossGuard(max_ratio=3.0, patience=100)
    losses_until_stop(guard, [2.0] + [50.0] * 50)
    assert guard.average == 2.0


def test_a_tiny_loss_may_multiply() -> None:
    assert losses_until_stop(LossGuard(max_ratio=3.0, patience=1), [0.001, 0.1, 2.9]) is None


def test_no_limit() -> None:
    assert losses_until_stop(LossGuard(max_ratio=None, patience=1), [0.1, -5.0, 1e9]) is None


def test_state_round_trip() -> None:
    guard, other = (LossGuard(max_ratio=3.0, patience=2) for _ in range(2))
    losses_until_stop(guard, [2.0, 7.0])
    other.load_state_dict(guard.state_dict())
    assert other.explodes(7.0)
