"""PPO and PPO-ptx (Ziegler et al. 2019; Ouyang et al. 2022): roll out, score, learn, steer the KL penalty.

* An iteration is a function of (seed, iteration, weights): prompts, samples and minibatches are all drawn from seeds
  made of them. So a run resumes bit for bit from two trainers' states and four numbers.
* Actor and critic are ordinary trainers; this file hands them micro-batches. `actor.save()` saves everything.
* When KL is negative beyond noise, `findings` says why, before the update that would act on it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from chatloom import runtime
from chatloom.chat.message import Conversation
from chatloom.chat.render import ChatFormat
from chatloom.data.pack import IGNORED, Batch, split_rows
from chatloom.engine.request import SamplingParams
from chatloom.models import Decoder
from chatloom.rl import diagnostics, scoring
from chatloom.rl.config import PPOConfig
from chatloom.rl.experience import Experience, RewardScale, advantages_and_returns, settle_scores, total_of_ranks
from chatloom.rl.kl import controller, estimate
from chatloom.rl.report import StepLog, summarise
from chatloom.rl.requirements import check_setup
from chatloom.rl.rewards import Reward, token_rewards
from chatloom.rl.rollout import (
    Generator,
    PackedEpisodes,
    Rollout,
    collect,
    fitting_row_length,
    pack_episodes,
    response_mask,
    rollout_logprobs,
)
from chatloom.rl.training import shuffled, stream_seed
from chatloom.train.trainer import Trainer


class PPO:
    """The loop. Call `iteration` until `finished`.

    Args:
        config: every option.
        actor: trains the policy with `training.actor_objective(config)`.
        critic: trains a ValueModel with `training.critic_objective(config)`.
        reference: the policy that KL is measured from; a copy of the initial policy, never trained.
        reward: scores responses.
        engine: generates with the actor's model.
        chat: renders prompts and tells what stops a response.
        prompts: conversations that wait for an answer; each is used once before any is used twice.
        ptx: step -> packed pretraining batch for this rank, such as `training.pretraining_rows`; exactly where
            `config.ptx_coefficient` is not 0.
        seed: of everything random.

    Attributes:
        iteration_index: iterations done.
        experience: the last iteration's, with its rollouts and scores; None before the first.
        findings: what is wrong with KL in the last iteration; empty when nothing is.
    """

    def __init__(
        self,
        config: PPOConfig,
        *,
        actor: Trainer,
        critic: Trainer,
        reference: Decoder,
        reward: Reward,
        engine: Generator,
        chat: ChatFormat,
        prompts: Sequence[Conversation],
        ptx: Callable[[int], Batch] | None = None,
        seed: int = 0,
    ) -> None:
        self.config, self.actor, self.critic, self.reference = config, actor, critic, reference
        self.reward, self.engine, self.chat, self.ptx, self.seed = reward, engine, chat, ptx, seed
        self.prompts = list(prompts)
        check_setup(
            config,
            dropouts=(actor.config.dropout, critic.config.dropout),
            reference=reference,
            policy=actor.model,
            reward=reward,
            chat=chat,
            prompts=self.prompts,
            has_ptx=ptx is not None,
        )
        if config.dropout_off:
            reference.eval()
        reference.requires_grad_(False)
        self.num_episodes = config.episodes_per_iteration // runtime.world_size()  # of this rank
        self.kl = controller(config)
        self.scale = RewardScale()
        self.iteration_index = 0
        self.experience: Experience | None = None
        self.findings: list[diagnostics.Finding] = []
        self._reference_digest = diagnostics.digest(reference)
        self._initial_digest = diagnostics.digest(actor.model)
        actor.extra_state["critic"] = critic
        actor.extra_state["ppo"] = self

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.iteration_index >= self.config.iterations

    def iteration(self) -> dict[str, float]:
        """Roll out, score and learn once; returns the metrics of the iteration, over all ranks."""
        started = time.perf_counter()
        rollouts = self._roll_out()
        rolled_out = time.perf_counter()
        experience = self.experience = self._look_back(rollouts)
        self.findings = self._explain(experience)
        scored = time.perf_counter()
        steps = self._learn(experience)
        learned = time.perf_counter()
        metrics = summarise(self.config, experience, beta=self.kl.beta)
        metrics |= steps.means()
        metrics["tokens_per_second"] = steps.num_tokens / (learned - scored)
        metrics["seconds/rollout"] = rolled_out - started
        metrics["seconds/score"] = scored - rolled_out
        metrics["seconds/learn"] = learned - scored
        self.kl.update(metrics["objective/kl"], num_episodes=self.config.episodes_per_iteration)
        self.iteration_index += 1
        return metrics

    # --- rollout --------------------------------------------------------------------------------------------------

    @property
    def sampling(self) -> SamplingParams:
        """How this iteration's responses are sampled on this rank."""
        return SamplingParams(
            max_tokens=self.config.max_response_tokens,
            temperature=self.config.rollout_temperature,
            top_k=self.config.rollout_top_k,
            top_p=self.config.rollout_top_p,
            seed=stream_seed(self.seed, "rollout", self.iteration_index, self._stream),
            stop_tokens=self.chat.stop_tokens,
        )

    @property
    def _stream(self) -> int:
        """Which of the independent streams of randomness this rank draws from (detail 5)."""
        return runtime.rank() if self.config.seed_per_rank else 0

    def _roll_out(self) -> list[Rollout]:
        first = self.iteration_index * self.config.episodes_per_iteration + self._stream * self.num_episodes
        seed = stream_seed(self.seed, "prompts")
        numbers = shuffled(len(self.prompts), first, self.num_episodes, seed=seed)
        return collect(self.engine, self.chat, [self.prompts[number] for number in numbers], self.sampling)

    # --- what the rollouts are worth ------------------------------------------------------------------------------

    def _look_back(self, rollouts: list[Rollout]) -> Experience:
        config = self.config
        mask = response_mask(rollouts)
        raw_scores = self._score(rollouts)
        if config.reward_normalisation == "reference" and self.iteration_index == 0:
            self.scale.measure(raw_scores)
        stopped = torch.tensor([rollout.stopped for rollout in rollouts])
        scores = settle_scores(config, self.scale.apply(raw_scores), stopped)
        sampled = rollout_logprobs(rollouts, mask)
        old, reference, values = (torch.zeros(mask.shape) for _ in range(3))
        minibatches = [(chosen, self._pack(rollouts, chosen)) for chosen in self._partition(0, len(rollouts))]
        self.actor.model.train()  # as in the step to come: what differs between the two must show in the ratio
        self.critic.model.train()
        options: dict[str, Any] = {"microbatch_rows": config.ppo_microbatch_rows, "dtype": self.actor.config.dtype}
        for chosen, episodes in minibatches:
            length = episodes.mask.shape[1]
            if config.recompute_logprobs:
                old[chosen, :length] = self._logprobs(self.actor.model, episodes, options)
            reference[chosen, :length] = self._logprobs(self.reference, episodes, options)
            values[chosen, :length] = scoring.values(self.critic.model, episodes, **options)
        if not config.recompute_logprobs:
            old = sampled
        rewards = token_rewards(
            scores,
            estimate(old, reference, config.kl_penalty_estimator),
            mask,
            beta=self.kl.beta,
            score_placement=config.score_placement,
            kl_placement=config.kl_placement,
        )
        return Experience(rollouts, minibatches, mask, sampled, old, reference, values, raw_scores, scores, rewards)

    def _score(self, rollouts: list[Rollout]) -> Tensor:
        # With the EOS trick every response is read as if it had ended (detail 12).
        stopped = None if self.config.missing_stop == "eos_trick" else [rollout.stopped for rollout in rollouts]
        scores = self.reward.score([rollout.answered for rollout in rollouts], stopped=stopped).float().cpu()
        if scores.shape != (len(rollouts),) or not bool(scores.isfinite().all()):
            raise ValueError(
                f"the reward gave {tuple(scores.shape)} scores for {len(rollouts)} responses, "
                f"{int((~scores.isfinite()).sum())} of them not finite; it must give one finite score each"
            )
        return scores

    def _logprobs(self, model: Any, episodes: PackedEpisodes, options: dict[str, Any]) -> Tensor:
        return scoring.logprobs(model, episodes, temperature=self.config.rollout_temperature, **options)

    def _partition(self, epoch: int, count: int) -> list[Tensor]:
        """Minibatches of one pass: which of this rank's `count` episodes, each in exactly one."""
        seed = stream_seed(self.seed, "minibatches", self.iteration_index, epoch, self._stream)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        return list(order.tensor_split(self.config.minibatches))

    def _pack(self, rollouts: Sequence[Rollout], chosen: Tensor) -> PackedEpisodes:
        longest = max(len(rollout) for rollout in rollouts)
        return pack_episodes(
            [rollouts[index] for index in chosen.tolist()],
            row_length=self.config.ppo_row_length or fitting_row_length(longest, self._context_length),
            pad=self.chat.tokenizer.filler,
            padding_side=self.config.padding_side,
            read_prompt=self.config.read_prompt,
        )

    # --- learning -------------------------------------------------------------------------------------------------

    def _learn(self, experience: Experience) -> StepLog:
        config, log = self.config, StepLog()
        whole: tuple[Tensor, Tensor] | None = None
        if config.whiten_scope == "batch":
            whole = advantages_and_returns(config, experience.rewards, experience.values, experience.mask)
        for epoch in range(config.epochs_per_batch):
            minibatches = experience.minibatches if epoch == 0 else self._repack(experience, epoch)
            for chosen, episodes in minibatches:
                length = episodes.mask.shape[1]
                if whole is not None:
                    advantages, returns = (values[chosen, :length] for values in whole)
                else:
                    rewards, values = experience.rewards[chosen, :length], experience.values[chosen, :length]
                    advantages, returns = advantages_and_returns(config, rewards, values, episodes.mask)
                if self.iteration_index >= config.critic_only_iterations:
                    fields = {"old_logprobs": experience.old_logprobs[chosen, :length], "advantages": advantages}
                    if config.importance_cap is not None:
                        fields["rollout_logprobs"] = experience.rollout_logprobs[chosen, :length]
                    log.add_actor(self.actor.step(self._actor_microbatches(episodes, fields)))
                fields = {"old_values": experience.values[chosen, :length], "returns": returns}
                rows = scoring.critic_batch(self._rows(episodes, fields))
                log.add_critic(self.critic.step(scoring.microbatches(rows, config.ppo_microbatch_rows)))
        return log

    def _repack(self, experience: Experience, epoch: int) -> list[tuple[Tensor, PackedEpisodes]]:
        rollouts = experience.rollouts
        return [(chosen, self._pack(rollouts, chosen)) for chosen in self._partition(epoch, len(rollouts))]

    @staticmethod
    def _rows(episodes: PackedEpisodes, fields: dict[str, Tensor]) -> Batch:
        return {**episodes.batch, **{name: episodes.to_rows(values) for name, values in fields.items()}}

    def _actor_microbatches(self, episodes: PackedEpisodes, fields: dict[str, Tensor]) -> list[Batch]:
        rows = self._rows(episodes, fields)
        rows.pop("critic_documents", None)
        pieces = scoring.microbatches(rows, self.config.ppo_microbatch_rows)
        if self.ptx is None:
            return pieces
        batch = self.ptx(self.actor.step_index)
        counts = torch.tensor([episodes.num_actions, int((batch["targets"] != IGNORED).sum())])
        num_actions, num_ptx_tokens = total_of_ranks(counts).tolist()
        # The trainer divides by the actions of the step, so this makes the ptx term a mean over its own tokens.
        scale = torch.tensor(self.config.ptx_coefficient * num_actions / max(1, num_ptx_tokens))
        rows_each = -(-len(batch["tokens"]) // len(pieces))
        for piece, part in zip(pieces, split_rows(batch, rows_each)):
            piece |= {f"ptx_{name}": part[name] for name in ("tokens", "documents", "targets")}
            piece["ptx_scale"] = scale
        return pieces

    # --- diagnosis ------------------------------------------------------------------------------------------------

    @property
    def _context_length(self) -> int:
        return self.reference.config.context_length

    def _explain(self, experience: Experience) -> list[diagnostics.Finding]:
        """The causes of a negative KL; at the first iteration also whether the reference is the policy."""
        stale = self._reference_digest != self._initial_digest
        suspicious = diagnostics.kl_is_negative(experience.kl) or (self.iteration_index == 0 and stale)
        if not suspicious:
            return []
        options: dict[str, Any] = {
            "pad": self.chat.tokenizer.filler,
            "context_length": self._context_length,
            "temperature": self.config.rollout_temperature,
            "padding_side": self.config.padding_side,
            "dtype": self.actor.config.dtype,
        }
        return diagnostics.check_kl(
            experience.rollouts,
            policy=diagnostics.training_scorer(self.actor.model, **options),
            reference=diagnostics.training_scorer(self.reference, **options),
            sampling=self.sampling,
            temperature=self.config.rollout_temperature,
            rollout_dtype=getattr(self.engine, "autocast", self.actor.config.dtype),
            training_dtype=self.actor.config.dtype,
            policy_is_initial=self.actor.step_index == 0,
            reference_is_initial=not stale,
        )

    # --- saving ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The loop's own state; the actor's checkpoint holds it beside both trainers'."""
        return {
            "iteration": self.iteration_index,
            "beta": self.kl.beta,
            "reward_mean": self.scale.mean,
            "reward_deviation": self.scale.deviation,
            "reference": self._reference_digest,
            "initial": self._initial_digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo of `state_dict`. Raises ValueError for another reference than the run was started with."""
        if state["reference"] != self._reference_digest:
            raise ValueError(
                "the reference model is not the one that this run was started with, and KL would be measured from "
                "another policy; resume with the same initial model"
            )
        self.iteration_index = int(state["iteration"])
        self.kl.beta = float(state["beta"])
        self.scale = RewardScale(float(state["reward_mean"]), float(state["reward_deviation"]))
        self._initial_digest = state["initial"]
