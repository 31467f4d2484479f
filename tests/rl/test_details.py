"""The 18 details of RECIPES, one test each: what the field does, and that it does it."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_parts import SMALL, MakePPO
from torch import nn

import chatloom
from chatloom import config as configuration
from chatloom.chat.message import Conversation, Message
from chatloom.chat.render import ChatFormat
from chatloom.engine.request import SamplingParams
from chatloom.models import RewardModel, ValueModel
from chatloom.objectives import ppo as objectives
from chatloom.objectives.reward import normalise
from chatloom.rl import scoring
from chatloom.rl.advantages import gae, whiten
from chatloom.rl.config import PPOConfig, RewardModelConfig
from chatloom.rl.experience import settle_scores
from chatloom.rl.kl import KLController, controller
from chatloom.rl.loop import PPO
from chatloom.rl.requirements import check_setup
from chatloom.rl.rewards import RewardModelReward, RuleReward, critic_from, initialise_reward_head, token_rewards
from chatloom.rl.rollout import PackedEpisodes, Rollout, collect, pack_episodes
from chatloom.rl.training import actor_training, critic_training, num_updates
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer
from chatloom.tokenizers.bpe import Tokenizer
from chatloom.train.schedules import factor

PAD = byte_tokenizer().pad


def rollouts(ppo: PPO) -> list[Rollout]:
    return collect(ppo.engine, ppo.chat, ppo.prompts, ppo.sampling)


def packed(episodes: list[Rollout], **options: Any) -> PackedEpisodes:
    return pack_episodes(episodes, row_length=40, pad=PAD, **options)


def reply(prompt: str, answer: str) -> Conversation:
    return (Message("user", prompt), Message("assistant", answer))


def test_01_reward_and_value_read_prompt_and_response(make_ppo: MakePPO, chat: ChatFormat) -> None:
    reads, blind = (RewardModelReward(RewardModel(tiny_llama()), chat, read_prompt=read) for read in (True, False))
    blind.model.load_state_dict(reads.model.state_dict())
    pair = [reply("one", "yes"), reply("two", "yes")]
    one, two = reads.score(pair).tolist()
    assert one != pytest.approx(two, abs=1e-4)
    one, two = blind.score(pair).tolist()
    assert one == pytest.approx(two, abs=1e-5)
    # The critic: a change of the prompt's first user token reaches its values, or it does not.
    episodes = rollouts(make_ppo())
    other = [dataclasses.replace(each, prompt=[*each.prompt[:2], 99, *each.prompt[3:]]) for each in episodes]
    critic = ValueModel(tiny_llama())
    nn.init.normal_(critic.value_head.weight)
    for read_prompt in (True, False):
        values = [scoring.values(critic, packed(some, read_prompt=read_prompt)) for some in (episodes, other)]
        assert torch.allclose(values[0], values[1], atol=1e-5) != read_prompt
    with pytest.raises(ValueError, match="make them agree"):
        make_ppo(read_prompt=False, reward=reads)


def test_02_padding_side_gives_the_same_numbers(make_ppo: MakePPO) -> None:
    episodes = rollouts(make_ppo())
    right, left = packed(episodes), packed(episodes, padding_side="left")
    assert (right.batch["documents"][:, -1] == 0).any()
    filled = left.batch["documents"].any(dim=1)  # rows with an episode; empty ones fill up to a multiple
    assert not (left.batch["documents"][filled, -1] == 0).any()
    one, other = (scoring.logprobs(tiny_llama(), each) for each in (right, left))
    assert torch.allclose(one, other, atol=1e-5)
    alone = [scoring.logprobs(tiny_llama(), packed([each]))[0] for each in episodes]
    assert all(torch.allclose(row[: len(own)], own, atol=1e-5) for row, own in zip(one, alone))
    one_side, other_side = (make_ppo(padding_side=side) for side in ("right", "left"))
    assert one_side.iteration()["loss"] == pytest.approx(other_side.iteration()["loss"], abs=1e-4)


def test_02_the_pad_token_may_be_the_end_of_text(make_ppo: MakePPO, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is padding is known by its place, so open models whose pad is their end of turn give the same numbers."""
    expected = make_ppo().iteration()
    for number in (byte_tokenizer().end_of_turn, 0):
        monkeypatch.setattr(Tokenizer, "filler", number)
        found = make_ppo().iteration()
        assert {name: found[name] for name in ("loss", "value/loss", "objective/kl", "objective/score")} == {
            name: expected[name] for name in ("loss", "value/loss", "objective/kl", "objective/score")
        }


def test_03_no_warpers_unless_asked(make_ppo: MakePPO) -> None:
    assert (make_ppo().sampling.top_k, make_ppo().sampling.top_p) == (None, None)
    warped = make_ppo(rollout_top_k=1, rollout_top_p=0.5)
    assert (warped.sampling.top_k, warped.sampling.top_p) == (1, 0.5)
    assert rollouts(warped)[0].response == rollouts(make_ppo(rollout_top_k=1, seed=5))[0].response  # top 1 is greedy


def test_04_learning_rate_annealed_or_kept_after_the_warm_up() -> None:
    def rates(**changes: Any) -> list[float]:
        config = PPOConfig(iterations=20, epochs_per_batch=1, minibatches=1, **changes)
        training = actor_training(config)
        total = num_updates(config, of="actor")
        return [
            factor(
                training.schedule,
                step,
                total,
                warmup_steps=training.warmup_steps,
                warmup_start=training.warmup_start,
                final_ratio=training.final_learning_rate_ratio,
            )
            for step in range(total + 1)
        ]

    kept, annealed = rates(), rates(anneal_learning_rate=True)
    assert 0.1 < kept[0] < 0.2  # InstructGPT: from a tenth, in 10 iterations
    assert kept[10:] == [1.0] * 11
    assert annealed[10] == 1.0
    assert annealed[15] == pytest.approx(0.5)
    assert annealed[-1] == pytest.approx(0.0)
    assert rates(warmup_iterations=0)[0] == 1.0


def test_05_each_rank_has_its_own_seed(make_ppo: MakePPO, monkeypatch: pytest.MonkeyPatch) -> None:
    def draws(rank: int, **changes: Any) -> tuple[Any, ...]:
        ppo = make_ppo(**changes)
        monkeypatch.setattr("chatloom.runtime.rank", lambda: rank)
        drawn = ppo.sampling.seed, [each.conversation for each in ppo._roll_out()], ppo._partition(0, 8)[0].tolist()
        monkeypatch.undo()
        return drawn

    first, second = draws(0), draws(1)
    assert all(one != other for one, other in zip(first, second))
    assert draws(0, seed_per_rank=False) == draws(1, seed_per_rank=False) == first


def test_06_the_score_lands_on_the_last_token() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    scores, kl = torch.tensor([3.0, 5.0]), torch.zeros(2, 3)
    assert token_rewards(scores, kl, mask, beta=0.1).tolist() == [[0, 0, 3], [5, 0, 0]]
    assert token_rewards(scores, kl, mask, beta=0.1, score_placement="spread").tolist() == [[1, 1, 1], [5, 0, 0]]


def test_07_reward_head_initialisation() -> None:
    torch.manual_seed(0)
    model = RewardModel(tiny_llama())
    nn.init.zeros_(model.score_head.weight)
    initialise_reward_head(model, RewardModelConfig())
    draws = torch.cat([_drawn(model) for _ in range(200)])
    assert float(draws.std()) == pytest.approx(1 / math.sqrt(32 + 1), rel=0.05)
    assert float(draws.mean()) == pytest.approx(0, abs=0.01)
    initialise_reward_head(model, RewardModelConfig(reward_head_init="zero"))
    assert not model.score_head.weight.any()


def _drawn(model: RewardModel) -> torch.Tensor:
    initialise_reward_head(model, RewardModelConfig())
    return model.score_head.weight.detach().flatten().clone()


def test_08_reward_normalised_on_the_reference_and_kept(make_ppo: MakePPO, chat: ChatFormat) -> None:
    # In the reward model, before and after training: `normalise`, whose numbers are the model's own.
    reward = RewardModelReward(RewardModel(tiny_llama()), chat)
    answers = [reply("ask", text) for text in ("a", "bb", "ccc")]
    normalise(reward.model, scores=reward.raw_scores(answers))
    assert float(reward.score(answers).mean()) == pytest.approx(0, abs=1e-5)
    assert float(reward.score(answers).std(correction=0)) == pytest.approx(1, abs=1e-5)
    # In PPO, from the reference policy's samples.
    ppo = make_ppo(reward_normalisation="reference", episodes_per_iteration=32, reward_clip=None)
    ppo.iteration()
    assert ppo.experience is not None
    assert float(ppo.experience.scores.mean()) == pytest.approx(0, abs=1e-5)
    assert float(ppo.experience.scores.std(correction=0)) == pytest.approx(1, abs=1e-5)
    scale = dataclasses.replace(ppo.scale)
    ppo.iteration()
    assert ppo.scale == scale
    assert float(make_ppo().iteration()["objective/score"]) == float(make_ppo().iteration()["objective/raw_score"])


def test_09_logits_are_divided_by_the_temperature_everywhere(make_ppo: MakePPO) -> None:
    ppo = make_ppo(rollout_temperature=0.7, epochs_per_batch=1, minibatches=1)
    assert ppo.sampling.temperature == 0.7
    metrics = ppo.iteration()
    assert metrics["val/ratio"] == 1.0  # the objective divides
    assert metrics["rollout/logprob_difference"] < 1e-5  # the sampler and the recomputation do
    assert metrics["objective/kl"] == 0.0  # the reference does


def test_10_value_head_starts_at_zero_or_as_the_reward_model(chat: ChatFormat) -> None:
    reward_model = RewardModel(tiny_llama())
    reward_model.gain, reward_model.bias = 2.0, 0.5
    tokens = torch.arange(1, 9)[None]
    zero = critic_from(reward_model, PPOConfig().value_head_init)
    assert not zero(tokens).any()
    warm = critic_from(reward_model, "reward_model")
    score = reward_model(tokens, ends=torch.tensor([[0, 7]]))
    assert warm(tokens)[0, 7].item() == pytest.approx(score.item(), abs=1e-5)
    zero.trunk.embedding.weight.data.zero_()
    assert reward_model.trunk.embedding.weight.any()  # the critic's trunk is a copy


def test_11_dropout_is_off(make_ppo: MakePPO, chat: ChatFormat, prompts: list[Conversation]) -> None:
    assert actor_training(PPOConfig()).dropout == critic_training(PPOConfig()).dropout == 0
    base = configuration.override(actor_training(PPOConfig()), dropout=0.1)
    assert actor_training(PPOConfig(), base=base).dropout == 0
    assert actor_training(PPOConfig(dropout_off=False), base=base).dropout == 0.1
    reference = tiny_llama()
    reference.set_dropout(0.5)
    reference.train()
    ppo = make_ppo(reference=reference)
    assert not reference.training
    assert ppo.iteration()["objective/kl"] is not None
    with pytest.raises(ValueError, match="a trainer's config has dropout"):
        check_setup(
            PPOConfig(ptx_coefficient=0.0),
            dropouts=(0.1, 0.0),
            reference=reference,
            policy=tiny_llama(),
            reward=RuleReward(lambda conversation: 0.0),
            chat=chat,
            prompts=prompts,
            has_ptx=False,
        )


def test_12_a_response_without_a_stop() -> None:
    scores, stopped = torch.tensor([2.0, 2.0]), torch.tensor([True, False])

    def settled(**changes: Any) -> list[float]:
        values: list[float] = settle_scores(PPOConfig(**changes), scores, stopped).tolist()
        return values

    assert settled() == [2, -1]  # rejected
    assert settled(missing_stop_value=-3.0) == [2, -3]
    assert settled(missing_stop="penalty") == [2, 1]
    assert settled(missing_stop="eos_trick") == settled(missing_stop=None) == [2, 2]
    assert settled(reward_clip=1.5) == [1.5, -1]
    with pytest.raises(ValueError, match="missing_stop_value would be ignored"):
        PPOConfig(missing_stop="eos_trick", missing_stop_value=-1.0)


def test_12_the_eos_trick_reads_the_response_as_if_it_had_stopped(make_ppo: MakePPO) -> None:
    class Recorded:
        stopped: Any = "not asked"

        def score(self, conversations: Any, *, stopped: Any = None) -> torch.Tensor:
            self.stopped = stopped
            return torch.zeros(len(conversations))

    asked = Recorded()
    make_ppo(missing_stop="eos_trick", reward=asked).iteration()
    assert asked.stopped is None
    make_ppo(missing_stop="penalty", reward=asked).iteration()
    assert isinstance(asked.stopped, list)


def test_13_no_discount() -> None:
    assert PPOConfig().gamma == 1.0
    rewards, values, mask = torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)
    assert gae(rewards, values, mask, gamma=1.0, lambda_=1.0).tolist() == [[1, 1, 1]]
    assert gae(rewards, values, mask, gamma=0.5, lambda_=1.0).tolist() == [[0.25, 0.5, 1]]


def test_14_kl_a_token_and_the_score_at_the_end() -> None:
    mask, scores = torch.ones(1, 3, dtype=torch.bool), torch.tensor([5.0])
    kl = torch.tensor([[1.0, -2.0, 4.0]])
    assert token_rewards(scores, kl, mask, beta=0.5).tolist() == [[-0.5, 1.0, 3.0]]
    assert token_rewards(scores, kl, mask, beta=0.5, kl_placement="last").tolist() == [[0.0, 0.0, 3.5]]


def test_15_whitening_keeps_the_mean_of_rewards_and_shifts_that_of_advantages() -> None:
    values, mask = torch.tensor([[1.0, 2.0, 6.0, 99.0]]), torch.tensor([[True, True, True, False]])
    deviation = math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 3)  # of the population
    kept = whiten(values, mask, shift_mean=False)[0].tolist()
    shifted = whiten(values, mask, shift_mean=True)[0].tolist()
    assert shifted == pytest.approx([-2 / deviation, -1 / deviation, 3 / deviation, 0], abs=1e-5)
    assert kept == pytest.approx([each + 3 for each in shifted[:3]] + [0], abs=1e-5)


def test_15_whitened_by_the_minibatch_or_the_batch(make_ppo: MakePPO, monkeypatch: pytest.MonkeyPatch) -> None:
    def advantages(scope: str) -> list[torch.Tensor]:
        ppo = make_ppo(whiten_scope=scope, epochs_per_batch=1)
        seen: list[torch.Tensor] = []
        step = ppo.actor.step

        def recorded(pieces: Any) -> dict[str, float]:
            seen.extend(piece["advantages"][piece["actions"]] for piece in pieces)
            return step(pieces)

        monkeypatch.setattr(ppo.actor, "step", recorded)
        ppo.iteration()
        return seen

    for minibatch in advantages("minibatch"):
        assert float(minibatch.mean()) == pytest.approx(0, abs=1e-4)
        assert float(minibatch.std(correction=0)) == pytest.approx(1, abs=1e-3)
    parts = advantages("batch")
    assert float(torch.cat(parts).std(correction=0)) == pytest.approx(1, abs=1e-3)
    assert any(abs(float(part.std(correction=0)) - 1) > 1e-3 for part in parts)


def test_16_clipped_value_loss(make_ppo: MakePPO) -> None:
    loss, _ = objectives.clipped_value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), clip=0.2)
    assert loss.item() == pytest.approx(0.5 * 0.8**2)
    assert make_ppo(clip_value=1e-6, minibatches=1).iteration()["value/clipfrac"] > 0.1
    assert make_ppo(clip_value=None, minibatches=1).iteration()["value/clipfrac"] == 0


def test_17_adaptive_kl() -> None:
    steered = controller(PPOConfig(kl_controller="adaptive"))
    assert (steered.beta, steered.target, steered.horizon) == (0.15, 6.0, 10_000)
    steered.update(60.0, num_episodes=256)  # ten times the target: the error counts as 0.2
    assert steered.beta == pytest.approx(0.15 * (1 + 0.2 * 256 / 10_000))
    steered = KLController(1.0, target=6.0, horizon=1000)
    steered.update(5.4, num_episodes=100)  # a tenth below
    assert steered.beta == pytest.approx(1 - 0.1 * 100 / 1000)
    fixed = controller(PPOConfig())
    fixed.update(60.0, num_episodes=256)
    assert fixed.beta == 0.02
    with pytest.raises(ValueError, match="kl_target would be ignored"):
        PPOConfig(kl_target=3.0)


def test_18_adam_epsilon(make_ppo: MakePPO) -> None:
    ppo = make_ppo()
    for trainer in (ppo.actor, ppo.critic):
        assert {group["eps"] for group in trainer.optimizer.param_groups} == {1e-5}
    assert {group["eps"] for group in make_ppo(adam_epsilon=1e-8).actor.optimizer.param_groups} == {1e-8}


def test_the_average_of_the_weights_is_kept(make_ppo: MakePPO) -> None:
    ppo = make_ppo()
    assert ppo.actor.ema is not None
    assert ppo.actor.ema.decay == PPOConfig().actor_ema_decay == 0.992
    assert ppo.critic.ema is None
    assert make_ppo(actor_ema_decay=None).actor.ema is None


def test_every_field_is_read_by_the_code() -> None:
    package = Path(chatloom.__file__).parent
    files = [path for path in (package / "rl").glob("*.py") if path.name != "config.py"]
    text = "".join(path.read_text() for path in [*files, *(package / "stages").glob("*.py")])
    configs = (PPOConfig, RewardModelConfig)
    names = {field.name for config in configs for field in dataclasses.fields(config)}
    assert {name for name in names if not re.search(rf"\.{name}\b|\"{name}\"", text)} == set()


def test_refusals_name_the_field_and_what_is_allowed() -> None:
    for name, value, message in (
        ("iterations", 0, "at least 1"),
        ("gamma", 1.5, "from 0 to 1"),
        ("clip", 0.0, "above 0"),
        ("padding_side", "top", "right, left"),
        ("missing_stop", "ignore", "reject, penalty, eos_trick"),
        ("dual_clip", 1.1, "must be above 1.2"),
        ("minibatches", 1000, "cannot be split"),
        ("clip", float("nan"), "above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            PPOConfig(**{**SMALL, name: value})
    with pytest.raises(ValueError, match="importance_cap would be ignored"):
        PPOConfig(importance_cap=2.0, recompute_logprobs=False)
    with pytest.raises(ValueError, match="actor would never learn"):
        num_updates(PPOConfig(iterations=2, critic_only_iterations=2), of="actor")
    assert SamplingParams(temperature=PPOConfig().rollout_temperature).top_k is None
