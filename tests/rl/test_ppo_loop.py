"""The loop: it learns, resumes bit for bit, starts from a ratio of exactly 1, and refuses what cannot work."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_parts import MakePPO, pretraining
from safetensors.torch import load_file

from chatloom.rl.loop import PPO
from chatloom.rl.training import pretraining_rows, shuffled
from chatloom.testing.models import tiny_llama


def weights(ppo: PPO) -> torch.Tensor:
    modules = (ppo.actor.model, ppo.critic.model)
    return torch.cat([p.detach().flatten().clone() for module in modules for p in module.parameters()])


def test_metrics_have_their_names_and_the_first_ratio_is_exactly_one(make_ppo: MakePPO) -> None:
    ppo = make_ppo(epochs_per_batch=1, minibatches=1)
    metrics = ppo.iteration()
    assert metrics["val/ratio"] == 1.0
    assert metrics["policy/approxkl"] == 0.0
    assert metrics["objective/kl"] == 0.0  # the reference is the policy, computed by the same forward
    assert metrics["rollout/logprob_difference"] < 1e-5
    wanted = """objective/kl objective/kl_k3 objective/score objective/raw_score objective/rlhf_reward objective/entropy
    objective/response_length objective/stop_rate policy/loss policy/clipfrac policy/approxkl policy/approxkl_k1
    policy/grad_norm value/loss value/clipfrac value/mean value/explained_variance value/grad_norm val/ratio kl/beta
    loss learning_rate value/learning_rate tokens_per_second seconds/rollout seconds/score seconds/learn"""
    assert set(wanted.split()) <= metrics.keys()
    assert ppo.iteration_index == 1
    assert ppo.findings == []


def test_it_raises_a_known_reward(make_ppo: MakePPO) -> None:
    ppo = make_ppo(
        iterations=12,
        episodes_per_iteration=64,
        epochs_per_batch=4,
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        warmup_iterations=3,
        kl_coefficient=0.01,
    )
    history = [ppo.iteration() for _ in range(12)]
    scores = [metrics["objective/score"] for metrics in history]
    assert scores[0] < 0.4
    assert sum(scores[-2:]) / 2 > 0.8
    assert history[-1]["objective/kl"] > 0
    # Several passes over a batch stay near it: clipping holds the ratio.
    assert all(abs(metrics["val/ratio"] - 1) < 0.3 for metrics in history)


def test_resumed_is_uninterrupted_bit_for_bit(make_ppo: MakePPO, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "kl_controller": "adaptive",
        "kl_target": 0.001,
        "reward_normalisation": "reference",
        "ptx_coefficient": 2.0,
    }

    def start(folder: Path | None) -> PPO:
        return make_ppo(**options, run_folder=folder, ptx=pretraining_rows(pretraining(), rows=4, seed=0))

    whole = start(None)
    history = [whole.iteration() for _ in range(4)]
    half = start(tmp_path)
    for _ in range(2):
        half.iteration()
    half.actor.save()
    torch.manual_seed(999)  # whatever the other process does to the global generator
    again = start(tmp_path)
    assert again.actor.resume()
    assert again.iteration_index == 2
    resumed = [again.iteration() for _ in range(2)]
    assert torch.equal(weights(whole), weights(again))
    assert again.actor.ema is not None
    assert whole.actor.ema is not None
    for name, average in whole.actor.ema.averages.items():
        assert torch.equal(average, again.actor.ema.averages[name])
    for expected, metrics in zip(history[2:], resumed):
        for name in expected:
            assert name.startswith(("seconds", "tokens_per")) or expected[name] == metrics[name], name
    assert again.kl.beta == whole.kl.beta != 0.15
    assert again.scale == whole.scale


def test_another_reference_cannot_resume(make_ppo: MakePPO) -> None:
    state = make_ppo().state_dict()
    with pytest.raises(ValueError, match="not the one that this run was started with"):
        make_ppo(reference=tiny_llama(7)).load_state_dict(state)


def test_a_stale_reference_is_found_at_once(make_ppo: MakePPO) -> None:
    ppo = make_ppo(reference=tiny_llama(7))
    ppo.iteration()
    assert [finding.cause for finding in ppo.findings] == ["stale_reference"]


def test_micro_batches_change_nothing(make_ppo: MakePPO) -> None:
    options: dict[str, Any] = {"ptx_coefficient": 2.0, "ptx": pretraining_rows(pretraining(), rows=4, seed=0)}
    whole, cut = make_ppo(**options), make_ppo(ppo_microbatch_rows=1, ppo_row_length=24, **options)
    one, other = whole.iteration(), cut.iteration()
    assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
    assert other["ptx/loss"] == pytest.approx(one["ptx/loss"], abs=1e-4)
    assert torch.allclose(weights(whole), weights(cut), atol=2e-5)


def test_ptx_keeps_the_language_model(make_ppo: MakePPO) -> None:
    with_ptx = make_ppo(ptx_coefficient=5.0, ptx=pretraining_rows(pretraining(), rows=6, seed=0))
    losses = [with_ptx.iteration()["ptx/loss"] for _ in range(4)]
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="no pretraining text was given"):
        make_ppo(ptx_coefficient=5.0)
    with pytest.raises(ValueError, match="pretraining text was given"):
        make_ppo(ptx=pretraining_rows(pretraining(), rows=6, seed=0))


def test_ptx_is_a_mean_over_its_own_tokens(make_ppo: MakePPO, monkeypatch: pytest.MonkeyPatch) -> None:
    ptx = pretraining_rows(pretraining(), rows=4, seed=0)
    ppo = make_ppo(ptx_coefficient=2.0, ppo_microbatch_rows=1, minibatches=1, epochs_per_batch=1, ptx=ptx)
    step, scales = ppo.actor.step, []

    def recorded(pieces: Any) -> dict[str, float]:
        num_actions = sum(int(piece["actions"].sum()) for piece in pieces)
        parts = [piece for piece in pieces if "ptx_scale" in piece]
        assert sum(int((part["ptx_targets"] != -100).sum()) for part in parts) == 4 * 23
        scales.extend((float(part["ptx_scale"]), 2.0 * num_actions / (4 * 23)) for part in parts)
        return step(pieces)

    monkeypatch.setattr(ppo.actor, "step", recorded)
    ppo.iteration()
    assert scales
    for scale, expected in scales:
        assert scale == pytest.approx(expected)


def test_critic_only_iterations_leave_the_policy(make_ppo: MakePPO) -> None:
    ppo = make_ppo(critic_only_iterations=1)
    before = torch.cat([p.detach().flatten().clone() for p in ppo.actor.model.parameters()])
    metrics = ppo.iteration()
    assert "policy/loss" not in metrics
    assert "value/loss" in metrics
    assert torch.equal(before, torch.cat([p.flatten() for p in ppo.actor.model.parameters()]))
    ppo.iteration()
    assert not torch.equal(before, torch.cat([p.flatten() for p in ppo.actor.model.parameters()]))


def test_rollout_logprobs_can_be_trusted_instead(make_ppo: MakePPO) -> None:
    metrics = make_ppo(recompute_logprobs=False, epochs_per_batch=1, minibatches=1).iteration()
    assert metrics["val/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert "rollout/logprob_difference" not in metrics


def test_prompts_are_used_once_before_any_is_used_twice() -> None:
    drawn = shuffled(5, 0, 15, seed=1)
    assert [sorted(drawn[start : start + 5]) for start in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert shuffled(5, 3, 4, seed=1) == drawn[3:7]
    assert drawn[:5] != drawn[5:10]


def test_ptx_rows_are_a_function_of_the_step() -> None:
    source = pretraining_rows(pretraining(), rows=3, seed=0)
    first, second = source(0)["tokens"], source(1)["tokens"]
    assert torch.equal(source(1)["tokens"], second)
    seen = torch.cat([first, second]).sort(dim=0).values
    assert torch.equal(seen, pretraining()["tokens"].sort(dim=0).values)
    with pytest.raises(ValueError, match="no pretraining text"):
        pretraining_rows({"tokens": torch.zeros(0, 4)}, rows=1, seed=0)


def test_what_cannot_work_is_refused(make_ppo: MakePPO) -> None:
    with pytest.raises(ValueError, match="no prompts"):
        make_ppo(prompts=[])
    with pytest.raises(ValueError, match="5 of 5 prompts are longer than 4 tokens"):
        make_ppo(max_response_tokens=60)
    policy = tiny_llama()
    with pytest.raises(ValueError, match="the very model that is trained"):
        make_ppo(policy=policy, reference=policy)


class Broken:
    def score(self, conversations: Any, *, stopped: Any = None) -> torch.Tensor:
        return torch.full((len(conversations),), float("nan"))


def test_a_reward_that_is_not_finite_stops_the_run(make_ppo: MakePPO) -> None:
    with pytest.raises(ValueError, match="8 of them not finite"):
        make_ppo(reward=Broken()).iteration()


def launch(folder: Path, *launcher: str) -> dict[str, float]:
    script = Path(__file__).parent / "ppo_on_ranks.py"
    command = [sys.executable, *launcher, str(script), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    metrics: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    return metrics


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    """Whitening, the ptx scale, metrics and updates are of all ranks' episodes together."""
    names = ("one", "two")
    for name in names:
        (tmp_path / name).mkdir()
    one = launch(tmp_path / "one")
    two = launch(tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for key, value in one.items():
        if not key.startswith(("seconds", "tokens_per")):
            assert two[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key
    first, second = (load_file(tmp_path / name / "weights.safetensors")["weights"] for name in names)
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)
