"""Seconds of a PPO iteration: our loop against TRL 1.9.0, the last line of releases that had PPO.

Run `make quickstart` and `make peers`, then `.venv-peers/bin/python benchmarks/ppo.py --run runs/quickstart`, with
nothing else running.

With `--run` both sides start from the fine-tuned model and the reward model of that run and answer its prompts, until
the end of the turn or at most `response_tokens`: what a user's PPO is. Without it, weights are random, and prompts and
answers have a fixed length: nothing is gained by packing or by stopping. Both sides score with the same reward model
and make the same number of updates of the same policy and critic. They run in turn, ours at the end of each of TRL's
steps. Before anything is timed the script checks that log-probabilities, values and scores agree on the same tokens;
after it, that both made the updates they should have.
"""

import contextlib
import copy
import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import datasets
import torch
import transformers
import trl.experimental.ppo.ppo_trainer as trl_ppo
import tyro
from accelerate.state import AcceleratorState
from comparison import Rounds, begin, console, random_llama, show, transformers_llama
from rich.table import Table
from torch import Tensor
from transformers.trainer_callback import PrinterCallback

from chatloom import checkpoint
from chatloom.chat.message import Conversation, Message
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.data.miniature import documents
from chatloom.data.preference import read_prompts
from chatloom.engine.engine import Engine
from chatloom.engine.request import Completion, SamplingParams
from chatloom.models import RewardModel, ValueModel, llama
from chatloom.rl import training
from chatloom.rl.config import PPOConfig
from chatloom.rl.loop import PPO
from chatloom.rl.rewards import RewardModelReward
from chatloom.tokenizers.bpe import Tokenizer, train_tokenizer
from chatloom.train.trainer import Trainer

GOAL = 5.0
PARTS = ("rollout", "score", "learn")
LEARNING_RATE = 1e-5
# Of log-probabilities, values and scores on the same tokens, in fp32.
TOLERANCE = 2e-3

NOT_ALIKE = """Not alike: ours computes the rollout's log-probabilities a second time with the training forward (so that
the first ratio is exactly 1), where TRL takes those of generation. Ours packs episodes into rows; TRL pads every
episode to the longest prompt and the longest answer. Ours turns the responses into text and the reward model reads the
text's tokens ({read:.1f} a conversation on average); TRL hands tokens over. Ours updates policy and critic with an
optimiser each and clips each gradient at norm 1; TRL has one optimiser and this trainer does not clip. TRL collects
garbage twice an iteration.
TRL at its best: one forward pass for all episodes, no gradient checkpointing, no logging, saving or sampling of
completions, minibatches in one piece (which is also what makes it update once a minibatch). {dtype_remark}"""
REMARKS = {
    "fp32": "Everything is fp32 on both sides.",
    "bf16": "With bf16 TRL trains under autocast, and rolls out and scores in fp32; ours does all of it under it.",
}


@dataclass(frozen=True)
class Config:
    """Measure PPO."""

    threads: int = 2
    # Iterations of each side that count, after one that does not.
    rounds: int = 5
    dtypes: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    episodes: int = 128
    # Passes over the episodes of an iteration, and updates a pass.
    epochs: int = 4
    minibatches: int = 4
    # Folder of a quickstart whose models and prompts are used. None: random weights and fixed lengths.
    run: str | None = None
    # Without `run`.
    prompt_tokens: int = 32
    # Exactly without `run`, at most with it.
    response_tokens: int = 64
    # Measure the processor's time, not the clock's: for development with one thread on a busy machine.
    cpu_time: bool = False

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds."""
        return time.process_time if self.cpu_time else time.perf_counter


@dataclass(frozen=True)
class Setting:
    """What both sides start from."""

    chat: ChatFormat
    prompts: list[Conversation]
    policy: llama.Model
    reward: RewardModel
    critic: ValueModel
    pad: int
    stop: int | None  # None: an answer has exactly the asked-for number of tokens


Times = dict[str, float]  # seconds of each part, and "all"


# --- what both start from -------------------------------------------------------------------------------------------


def prepare(config: Config) -> Setting:
    """The models and prompts of a run, or random ones."""
    return _random(config) if config.run is None else _from_run(Path(config.run), config)


def _from_run(run: Path, config: Config) -> Setting:
    if not (run / "ppo" / "config.json").exists():
        raise SystemExit(f"--run {run} holds no finished quickstart; run `make quickstart` first")
    opened = checkpoint.load_pretrained(run / "sft", dtype="fp32")
    reward = checkpoint.load_reward(run / "reward", dtype="fp32").model
    room = opened.model.config.context_length - config.response_tokens
    prompts = [each.conversation for each in read_prompts(run / "data" / "prompts.jsonl")]
    prompts = [each for each in prompts if len(opened.chat.prompt(each)) <= room][: 2 * config.episodes]
    # TRL's reward model has no gain and bias; in the head they mean the same to it, up to a constant.
    with torch.no_grad():
        reward.score_head.weight.mul_(reward.gain)
    reward.gain, reward.bias = 1.0, 0.0
    critic = ValueModel.from_reward_model(reward, copy_head=True)
    tokenizer = opened.chat.tokenizer
    return Setting(opened.chat, prompts, opened.model, reward, critic, tokenizer.pad, opened.chat.end_of_turn)


def _random(config: Config) -> Setting:
    """The quickstart's model with random weights, a tokenizer, and prompts of exactly `prompt_tokens`."""
    texts = list(documents(0, 1000))
    size = llama.Config()
    chat = ChatFormat(train_tokenizer(texts, vocab_size=size.vocab_size), CHATLOOM_TEMPLATE)
    prompts = list(itertools.islice(_prompts(texts, chat, config.prompt_tokens), 2 * config.episodes))
    reward = RewardModel(random_llama(size, seed=1))
    critic = ValueModel.from_reward_model(reward, copy_head=True)
    # A padding token that is none of the model's, so that nothing generated is taken for padding.
    return Setting(chat, prompts, random_llama(size, seed=0), reward, critic, size.vocab_size, None)


def _prompts(texts: Sequence[str], chat: ChatFormat, length: int) -> Iterator[Conversation]:
    around = len(chat.prompt((Message("user", ""),)))  # tokens of the template
    for text in texts:
        start = chat.tokenizer.decode(chat.tokenizer.encode(text)[: length - around])
        prompt = (Message("user", start.strip()),)
        if len(chat.prompt(prompt)) == length:
            yield prompt


# --- ours -----------------------------------------------------------------------------------------------------------


class FixedLength:
    """An engine that never stops early, so that both sides generate as much."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """One completion a prompt, of `max_tokens` each."""
        assert isinstance(sampling, SamplingParams)
        return self.engine.generate(prompts, replace(sampling, stop_tokens=()))


class Ours:
    """The loop of `chatloom.rl`."""

    def __init__(self, setting: Setting, config: Config, dtype: Any) -> None:
        self.clock, self.chat = config.clock, setting.chat
        options = PPOConfig(
            iterations=10**6,
            episodes_per_iteration=config.episodes,
            epochs_per_batch=config.epochs,
            minibatches=config.minibatches,
            max_response_tokens=config.response_tokens,
            missing_stop=None,
            kl_coefficient=0.05,
            ptx_coefficient=0.0,
            actor_learning_rate=LEARNING_RATE,
            critic_learning_rate=LEARNING_RATE,
            warmup_iterations=0,
            actor_ema_decay=None,
        )
        base = replace(training.BASE, dtype=dtype)
        policy, critic = copy.deepcopy(setting.policy), copy.deepcopy(setting.critic)
        self.actor = Trainer(
            policy,
            training.actor_objective(options),
            training.actor_training(options, base=base),
            total_steps=training.num_updates(options, of="actor"),
        )
        engine = Engine(policy, setting.chat.tokenizer, max_batch=config.episodes, autocast=dtype)
        self.loop = PPO(
            options,
            actor=self.actor,
            critic=Trainer(
                critic,
                training.critic_objective(options),
                training.critic_training(options, base=base),
                total_steps=training.num_updates(options, of="critic"),
            ),
            reference=copy.deepcopy(setting.policy),
            reward=RewardModelReward(setting.reward, setting.chat, dtype=dtype),
            engine=engine if setting.stop is not None else FixedLength(engine),
            chat=setting.chat,
            prompts=setting.prompts,
        )

    def iteration(self) -> Times:
        """Seconds of one iteration."""
        started = self.clock()
        metrics = self.loop.iteration()
        return {"all": self.clock() - started, **{part: metrics[f"seconds/{part}"] for part in PARTS}}

    def tokens_read(self) -> float:
        """By the reward model, of a conversation of the last iteration on average."""
        assert self.loop.experience is not None
        lengths = [len(self.chat.render(each.answered)) - 1 for each in self.loop.experience.rollouts]
        return sum(lengths) / len(lengths)


# --- TRL ------------------------------------------------------------------------------------------------------------


class Peer:
    """TRL's PPOTrainer with the same models; `run` calls back after each iteration."""

    def __init__(self, setting: Setting, config: Config, dtype: str, folder: str) -> None:
        self.clock = config.clock
        # What `accelerate launch --mixed_precision bf16` does; the trainer's own option does not reach autocast.
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if dtype == "bf16" else "no"
        AcceleratorState._reset_state(reset_partial_state=True)
        self.policy = transformers_llama(setting.policy, attention="sdpa")
        self.reward = self._scorer(setting.reward.trunk, setting.reward.score_head.weight)
        self.value = self._scorer(setting.critic.trunk, setting.critic.value_head.weight)
        rows = [{"input_ids": tokens} for tokens in setting.chat.prompt_many(setting.prompts)]
        self.pad = setting.pad
        with contextlib.redirect_stdout(io.StringIO()):
            self.trainer = trl_ppo.PPOTrainer(
                args=self._arguments(config, setting, folder),
                processing_class=self._tokenizer(setting.chat.tokenizer, folder),
                model=self.policy,
                ref_model=copy.deepcopy(self.policy),
                reward_model=self.reward,
                value_model=self.value,
                train_dataset=datasets.Dataset.from_list(rows),
                eval_dataset=datasets.Dataset.from_list(rows[:1]),
            )
        self.trainer.remove_callback(PrinterCallback)
        self._rollout = self._learning = self._started = 0.0

    @staticmethod
    def _scorer(trunk: llama.Model, head: Tensor) -> transformers.LlamaForSequenceClassification:
        config = transformers.LlamaConfig(
            **trunk.config.to_huggingface(), attn_implementation="sdpa", use_cache=False, num_labels=1
        )
        scorer = transformers.LlamaForSequenceClassification(config)
        scorer.model.load_state_dict(transformers_llama(trunk, attention="sdpa").model.state_dict())
        with torch.no_grad():
            scorer.score.weight.copy_(head)
        return scorer

    def _tokenizer(self, tokenizer: Tokenizer, folder: str) -> Any:
        tokenizer.save(Path(folder) / "tokenizer")
        loaded = transformers.AutoTokenizer.from_pretrained(Path(folder) / "tokenizer", padding_side="left")
        if loaded.pad_token_id != self.pad:
            loaded.add_special_tokens({"pad_token": "<|never|>"})
        assert loaded.pad_token_id == self.pad
        return loaded

    @staticmethod
    def _arguments(config: Config, setting: Setting, folder: str) -> trl_ppo.PPOConfig:
        return trl_ppo.PPOConfig(
            output_dir=str(Path(folder) / "trl"),
            total_episodes=config.episodes * (config.rounds + 1),
            per_device_train_batch_size=config.episodes,
            gradient_accumulation_steps=1,
            num_mini_batches=config.minibatches,
            num_ppo_epochs=config.epochs,
            local_rollout_forward_batch_size=config.episodes,
            response_length=config.response_tokens,
            stop_token_id=setting.stop,
            temperature=1.0,
            kl_coef=0.05,
            vf_coef=1.0,
            whiten_rewards=True,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            adam_epsilon=1e-5,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            num_sample_generations=0,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )

    def run(self, after: Callable[[Times], None]) -> None:
        """Train; `after` is called with the seconds of each iteration, and its own time is not counted."""
        self.trainer.add_callback(_AtStepEnd(lambda: self._end(after)))
        generate, accumulate = trl_ppo.batch_generation, self.trainer.accelerator.accumulate

        def timed_generation(*args: Any, **options: Any) -> Any:
            output = generate(*args, **options)
            self._rollout, self._learning = self.clock(), 0.0
            return output

        def first_accumulate(*args: Any) -> Any:
            self._learning = self._learning or self.clock()
            return accumulate(*args)

        trl_ppo.batch_generation, self.trainer.accelerator.accumulate = timed_generation, first_accumulate
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self._started = self.clock()
                self.trainer.train()
        finally:
            trl_ppo.batch_generation = generate

    def _end(self, after: Callable[[Times], None]) -> None:
        ended = self.clock()
        parts = (self._rollout - self._started, self._learning - self._rollout, ended - self._learning)
        after({"all": ended - self._started, **dict(zip(PARTS, parts))})
        self._started = self.clock()

    @property
    def num_updates(self) -> int:
        """Steps that the optimiser made."""
        return int(next(iter(self.trainer.optimizer.state.values()))["step"])


class _AtStepEnd(transformers.TrainerCallback):
    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.call()


# --- comparing ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_alike(setting: Setting, peer: Peer, config: Config) -> None:
    """Raises ValueError unless both sides' models give the same log-probabilities, values and scores."""
    length = 32 + config.response_tokens
    vocab_size = setting.policy.config.vocab_size
    # From 16 on, because the padding token of a run is among the first.
    tokens = torch.randint(16, vocab_size, (4, length), generator=torch.Generator().manual_seed(2))
    last = torch.tensor([[row, length - 1] for row in range(4)])
    theirs_values = peer.value.score(peer.value.model(tokens).last_hidden_state).squeeze(-1)
    _, theirs_scores, _ = trl_ppo.get_reward(peer.reward, tokens, peer.pad, 32)
    pairs = {
        "log-probabilities": (setting.policy(tokens).log_softmax(-1), peer.policy(tokens).logits.log_softmax(-1)),
        "values": (setting.critic(tokens), theirs_values),
        "scores": (setting.reward.raw_scores(tokens, ends=last), theirs_scores),
    }
    for name, (ours, theirs) in pairs.items():
        difference = float((ours - theirs).abs().max())
        if not difference < TOLERANCE:
            raise ValueError(f"{name} differ by up to {difference:.2g}; the two sides do not have the same model")


def measure(config: Config, dtype: Literal["fp32", "bf16"]) -> tuple[dict[str, Rounds], float]:
    """Rounds of the whole iteration and of its parts, and how many tokens our reward model read."""
    setting = prepare(config)
    with tempfile.TemporaryDirectory() as folder:
        ours, peer = Ours(setting, config, dtype), Peer(setting, config, dtype, folder)
        check_alike(setting, peer, config)
        own: list[Times] = []
        theirs: list[Times] = []

        def after(times: Times) -> None:
            theirs.append(times)
            own.append(ours.iteration())

        peer.run(after)
    expected = (config.rounds + 1) * config.epochs * config.minibatches
    if (ours.actor.step_index, peer.num_updates) != (expected, expected):
        raise ValueError(f"updates: ours {ours.actor.step_index}, TRL {peer.num_updates}; expected {expected}")
    rounds = {part: Rounds([t[part] for t in own[1:]], [t[part] for t in theirs[1:]]) for part in ("all", *PARTS)}
    return rounds, ours.tokens_read()


def main(config: Config) -> None:
    begin("PPO on the quickstart's model: chatloom's loop against TRL 1.9.0", config.threads)
    kind = f"answers of up to {config.response_tokens} tokens to the prompts of {config.run}"
    if config.run is None:
        kind = f"answers of {config.response_tokens} tokens to prompts of {config.prompt_tokens}, random weights"
    console.print(
        f"{config.episodes} episodes an iteration: {kind}; {config.epochs} epochs of {config.minibatches} minibatches"
    )
    totals, parts = {}, Table("", *PARTS, title="seconds of the parts, ours / TRL", title_justify="left", box=None)
    read = 0.0
    for dtype in config.dtypes:
        rounds, read = measure(config, dtype)
        totals[dtype] = (rounds["all"], "")
        medians = [(sorted(r.ours)[len(r.ours) // 2], sorted(r.peer)[len(r.peer) // 2]) for r in rounds.values()]
        parts.add_row(dtype, *(f"{ours:.2f} / {theirs:.2f}" for ours, theirs in medians[1:]))
    console.print(parts)
    show(totals, peer="TRL", what="seconds an iteration, median", digits=2, more_is_better=False, goal=GOAL)
    remark = " ".join(REMARKS[dtype] for dtype in config.dtypes)
    console.print(NOT_ALIKE.format(read=read, dtype_remark=remark), soft_wrap=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
