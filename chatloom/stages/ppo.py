"""Reinforcement learning from human feedback (Ouyang et al. 2022, section 3.5 and appendix C.4): PPO and PPO-ptx.

The policy starts as the fine-tuned model and is held near it by a KL penalty; the critic starts as the reward model.
With `--adapter` and a reward model that is an adapter of the same base, policy, reference, reward model and critic
are one set of weights and three adapters: the reference is the policy without its adapter.
With `--ptx-data` every update also learns from pretraining text, which undoes most of what alignment costs elsewhere
(the alignment tax). Where prompts come from a task, its gold score is written down beside the reward model's: the
reward is never told, but over-optimisation can be seen.
"""

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from chatloom import adapters, checkpoint, runtime
from chatloom.adapters import AdapterConfig
from chatloom.chat.message import Conversation
from chatloom.chat.render import ChatFormat
from chatloom.data.pack import Batch, pack, pieces
from chatloom.data.preference import read_prompts
from chatloom.data.sources import read_texts
from chatloom.engine.engine import Engine
from chatloom.models import Decoder, RewardModel, ValueModel
from chatloom.rl import training
from chatloom.rl.config import PPOConfig
from chatloom.rl.loop import PPO
from chatloom.rl.rewards import RewardModelReward, TaskReward, critic_from
from chatloom.stages.fit import adapt, encoded_documents, loader_options
from chatloom.stages.run import Run, open_run
from chatloom.tasks import Example, get_task
from chatloom.train.metrics import MetricsLog, read_metrics
from chatloom.train.progress import progress
from chatloom.train.train_config import TrainConfig
from chatloom.train.trainer import Trainer, TrainingError

# What PPO's options say about training in their own words, so that these would be ignored.
_SAID_BY_PPO = {
    "optimizer": "PPO's is AdamW",
    "learning_rate": "use --actor-learning-rate and --critic-learning-rate",
    "epsilon": "use --adam-epsilon",
    "schedule": "use --anneal-learning-rate",
    "final_learning_rate_ratio": "use --anneal-learning-rate",
    "decay_fraction": "use --anneal-learning-rate",
    "warmup_steps": "use --warmup-iterations",
    "warmup_start": "use --warmup-from",
    "ema_decay": "use --actor-ema-decay",
    "batch_rows": "use --episodes-per-iteration and --minibatches",
    "microbatch_rows": "use --ppo-microbatch-rows",
    "max_loss_ratio": "neither loss is in nats",
    "max_loss_patience": "neither loss is in nats",
    "log_every_steps": "every iteration is logged",
    "evaluate_every_steps": "nothing is evaluated on the way",
    "evaluate_at_start": "nothing is evaluated on the way",
    **dict.fromkeys(
        ("muon_learning_rate", "muon_weight_decay", "muon_momentum", "muon_momentum_steps"), "it has no Muon"
    ),
}


@dataclass(frozen=True)
class Config:
    """Align a model with a reward model by PPO; with --ptx-data, PPO-ptx."""

    # Folder of the fine-tuned model: the policy's start and its reference.
    model: str
    # Folder of the reward model.
    reward: str
    # Prompts: any prompt, conversation or comparison file; answers in it are not used.
    data: str
    # Where the run is written.
    output_dir: str
    # Pretraining text for PPO-ptx. None: plain PPO, which needs `--ptx-coefficient 0`.
    ptx_data: str | None = None
    # At most this many of its documents.
    ptx_documents: int = 10_000
    # Whether its documents are whole, so that each is followed by the end-of-text token.
    ptx_end: bool = True
    # Task whose gold score is logged, if the prompts' records carry its examples. None: none is.
    gold_task: str | None = None
    ppo: PPOConfig = field(default_factory=PPOConfig)
    # Of the policy, and of the critic unless the reward model is an adapter, which it then goes on with.
    adaptation: AdapterConfig = field(default_factory=AdapterConfig)
    # Number type of rollouts.
    rollout_dtype: str = "fp32"
    # What PPO's options do not say about training: dtype, saving, seed, gradient_checkpointing, clip_norm.
    train: TrainConfig = field(default_factory=lambda: training.BASE)

    def __post_init__(self) -> None:
        runtime.pick_dtype(self.rollout_dtype)
        for name, instead in _SAID_BY_PPO.items():
            if getattr(self.train, name) != getattr(training.BASE, name):
                raise ValueError(f"{name} would be ignored by PPO: {instead}")
        if self.train.dropout and self.ppo.dropout_off:
            raise ValueError("dropout would be ignored by PPO: it needs --no-dropout-off")
        if self.adaptation.adapter_dropout and self.ppo.dropout_off:
            raise ValueError("adapter_dropout would make the ratio of a policy to itself differ from 1; leave it at 0")


def run(config: Config) -> dict[str, Any]:
    """Build policy, reference, critic and reward, iterate, and save the policy."""
    stage = open_run(
        "ppo",
        config,
        inputs={"model": config.model, "reward": config.reward, "data": config.data, "ptx_data": config.ptx_data},
    )
    if stage.complete:
        return stage.results
    runtime.seed_everything(config.train.seed)
    device = runtime.pick_device()
    pretrained = checkpoint.load_pretrained(config.model, dtype="fp32", device=device)
    policy, chat = pretrained.model, pretrained.chat
    rewarded = _reward_model(stage, config, policy, device)
    held = config.train.dtype if config.rollout_dtype == config.train.dtype else "fp32"
    adapt(stage, policy, config.adaptation, base=config.model, dtype=held)
    if rewarded.chat.tokenizer.digest() != chat.tokenizer.digest():
        raise ValueError(
            f"{config.reward} and {config.model} have different tokenizers; train the reward model from it"
        )
    reward = RewardModelReward(
        rewarded.model, rewarded.chat, dtype=config.train.dtype, read_prompt=config.ppo.read_prompt
    )
    prompts, gold = _prompts(stage, config, chat, policy.config.context_length)
    ppo_config = config.ppo
    actor_config = training.actor_training(ppo_config, base=config.train)
    actor = Trainer(
        policy,
        training.actor_objective(ppo_config),
        actor_config,
        total_steps=training.num_updates(ppo_config, of="actor"),
        run_folder=stage.folder,
    )
    critic = Trainer(
        _critic(stage, config, rewarded.model).to(device),
        training.critic_objective(ppo_config),
        training.critic_training(ppo_config, base=config.train),
        total_steps=training.num_updates(ppo_config, of="critic"),
        run_folder=stage.folder,  # where the actor's checkpoints are, for its messages: those hold the critic too
    )
    loop = PPO(
        ppo_config,
        actor=actor,
        critic=critic,
        reference=_reference(policy),
        reward=reward,
        engine=Engine(policy, chat.tokenizer, max_batch=256, autocast=config.rollout_dtype),
        chat=chat,
        prompts=prompts,
        ptx=_ptx(config, policy, chat),
        seed=config.train.seed,
    )
    if actor.resume():
        stage.say(f"going on from iteration {loop.iteration_index} of {ppo_config.iterations}")
    metrics = _iterate(stage, config, loop, gold)
    if actor.ema is not None:
        actor.ema.copy_to_model()
    stage.save_model(policy, chat, base=config.model, adaptation=config.adaptation)
    return stage.finish(**metrics)


def _reward_model(stage: Run, config: Config, policy: Decoder, device: torch.device) -> checkpoint.PretrainedReward:
    """The reward model; where it is an adapter of the policy's base and the policy is to be one too, on its weights."""
    if config.adaptation.adapter is None:
        return checkpoint.load_reward(config.reward, dtype="fp32", device=device)
    policy.requires_grad_(False)
    if checkpoint.is_adapter_of(config.reward, config.model):
        return checkpoint.load_reward(config.reward, dtype="fp32", device=device, trunk=adapters.shared(policy))
    stage.say(f"{config.reward} is not an adapter of {config.model}, so the reward model has weights of its own")
    rewarded = checkpoint.load_reward(config.reward, dtype="fp32", device=device)
    rewarded.model.requires_grad_(False)
    return rewarded


def _critic(stage: Run, config: Config, rewarded: RewardModel) -> ValueModel:
    """The critic, which goes on with the reward model's adapter, or gets one on the reward model's weights."""
    critic = critic_from(rewarded, config.ppo.value_head_init)
    rewarded.requires_grad_(False)
    if config.adaptation.adapter is not None and not adapters.is_adapted(critic.trunk):
        adapt(stage, critic.trunk, config.adaptation, base=config.reward)
    return critic


def _reference(policy: Decoder) -> Decoder:
    """The policy as it is now, for good: what is frozen anyway is shared, and LoRA, which changes nothing yet, off."""
    reference = adapters.shared(policy)
    if adapters.is_adapted(reference) and reference.prefix is None:
        adapters.detach(reference)
    reference.requires_grad_(False)
    return reference


def _prompts(
    stage: Run, config: Config, chat: ChatFormat, context_length: int
) -> tuple[list[Conversation], TaskReward | None]:
    """The prompts that leave room for an answer, and the task's gold score where it is asked for."""
    records = read_prompts(config.data)
    for note in records.notes:
        stage.say(note)
    limit = context_length - config.ppo.max_response_tokens
    lengths = [len(tokens) for tokens in chat.prompt_many([record.conversation for record in records])]
    kept = [record for record, length in zip(records, lengths) if length <= limit]
    if len(kept) < len(records):
        stage.say(f"{len(records) - len(kept):,} of {len(records):,} prompts are over {limit} tokens and were left out")
    if not kept:
        raise ValueError(
            f"{config.data}: no prompt leaves room for {config.ppo.max_response_tokens} tokens of answer in the "
            f"context of {context_length}; lower --max-response-tokens or use a model with a longer context"
        )
    gold = None
    if config.gold_task is not None:
        if not all("example" in record.extra for record in kept):
            raise ValueError(f"{config.data} does not carry the examples of task {config.gold_task!r}; leave it out")
        examples = [Example.from_record({"messages": list(record.conversation), **record.extra}) for record in kept]
        gold = TaskReward(get_task(config.gold_task), examples)
    return list(dict.fromkeys(record.conversation for record in kept)), gold


def _ptx(config: Config, policy: Decoder, chat: ChatFormat) -> Any:
    """The source of pretraining rows, or None without `ptx_data`."""
    if config.ptx_data is None:
        return None
    texts = islice(read_texts(config.ptx_data), config.ptx_documents)
    options = loader_options(config.train, chat, policy.config.context_length)
    length = options["row_length"]
    documents = encoded_documents(texts, chat.tokenizer, end=config.ptx_end)
    samples = [piece for tokens in documents for piece in pieces(tokens, length)]
    batch: Batch = pack(samples, length, pad=options["pad"])
    return training.pretraining_rows(batch, rows=config.ppo.ptx_rows, seed=config.train.seed)


def _iterate(stage: Run, config: Config, loop: PPO, gold: TaskReward | None) -> dict[str, float]:
    """Run the loop to its end with a bar, metrics, findings and checkpoints; returns the last metrics."""
    told: set[str] = set()
    metrics: dict[str, float] = {}
    total, done = config.ppo.iterations, loop.iteration_index
    log = MetricsLog(stage.folder, resume_step=done, tensorboard=config.train.tensorboard)
    with log, progress("ppo", total, done=done) as advance:
        while not loop.finished:
            try:
                metrics = loop.iteration()
            except TrainingError as error:
                raise TrainingError(f"iteration {loop.iteration_index + 1} of {total}: {error}") from error
            if gold is not None:
                metrics["objective/gold"] = _gold(loop, gold)
            log.write(loop.iteration_index, metrics)
            for finding in loop.findings:
                if finding.cause not in told:
                    told.add(finding.cause)
                    stage.say(f"KL check: {finding.message}")
            if loop.finished or loop.iteration_index % config.train.save_every_steps == 0:
                loop.actor.save()
                stage.note_seconds()
            advance(details=_details(metrics))
    if not metrics:  # a kill came after the last iteration
        metrics = read_metrics(log.path)[-1]
        del metrics["step"]
    return metrics


def _gold(loop: PPO, gold: TaskReward) -> float:
    assert loop.experience is not None
    rollouts = loop.experience.rollouts
    scores = gold.score([each.answered for each in rollouts], stopped=[each.stopped for each in rollouts])
    counted = torch.tensor([float(scores.double().sum()), float(len(scores))], dtype=torch.float64)
    total, count = runtime.sum_across_ranks(counted).tolist()
    return float(total / count)


def _details(metrics: dict[str, float]) -> str:
    gold = f" · gold {metrics['objective/gold']:.2f}" if "objective/gold" in metrics else ""
    return f"score {metrics['objective/score']:.2f} · KL {metrics['objective/kl']:.2f}{gold}"
