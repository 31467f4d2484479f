"""Rewards: a reward model, a task's grader and a rule are interchangeable, and per-token rewards from them.

A reward scores whole conversations; their last turn is the response. The reward model reads the rendered conversation
up to and including its end-of-turn, whose hidden state carries the score, in training (`scored_samples`) as here.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from chatloom import adapters, runtime
from chatloom.chat.message import Conversation
from chatloom.chat.render import ChatFormat
from chatloom.data.pack import Sample, pack, truncate
from chatloom.models import RewardModel, ValueModel
from chatloom.rl.config import KLPlacement, RewardModelConfig, ScorePlacement, ValueHeadInit
from chatloom.rl.rollout import fitting_row_length
from chatloom.tasks.example import Example, Task

_MOST_TOKENS = 16_384  # of a forward pass: rows may be as long as the context


class Reward(Protocol):
    """Anything that scores responses."""

    def score(self, conversations: Sequence[Conversation], *, stopped: Sequence[bool] | None = None) -> Tensor:
        """Scores (N,) float32 of conversations that end with a response.

        `stopped` says which responses ended by themselves and not at the length limit; None: all did.
        """
        ...


class RuleReward:
    """A function of a conversation as a reward."""

    def __init__(self, rule: Callable[[Conversation], float]) -> None:
        self.rule = rule

    def score(self, conversations: Sequence[Conversation], *, stopped: Sequence[bool] | None = None) -> Tensor:
        """The rule's value for each conversation; a rule does not see whether a response stopped."""
        return torch.tensor([float(self.rule(conversation)) for conversation in conversations])


class TaskReward:
    """A task's own grader as a reward: for reinforcement learning from verifiable answers, and as a gold score."""

    def __init__(self, task: Task, examples: Sequence[Example]) -> None:
        """Take the examples whose prompts will be answered. Two examples with one prompt are an error."""
        self.task = task
        self._examples: dict[Conversation, Example] = {}
        for example in examples:
            prompt = task.prompt(example)
            if self._examples.setdefault(prompt, example).check != example.check:
                raise ValueError(
                    f"examples {self._examples[prompt].id} and {example.id} of task {task.name!r} have the same prompt "
                    "and different checks, so an answer has no one grade; keep one of them"
                )

    def score(self, conversations: Sequence[Conversation], *, stopped: Sequence[bool] | None = None) -> Tensor:
        """The grade's score for each conversation. ValueError for a prompt that is none of the examples'."""
        scores = []
        for index, conversation in enumerate(conversations):
            example = self._examples.get(conversation[:-1])
            if example is None:
                raise ValueError(
                    f"conversation {index} answers a prompt that is none of this reward's {len(self._examples)} "
                    f"examples: {conversation[-2].content[:80]!r}"
                )
            ended = stopped is None or stopped[index]
            scores.append(self.task.grade(example, conversation[-1].content, stopped=ended).score)
        return torch.tensor(scores, dtype=torch.float32)


class RewardModelReward:
    """A trained reward model as a reward: its normalised scores."""

    def __init__(
        self,
        model: RewardModel,
        chat: ChatFormat,
        *,
        batch_rows: int = 32,
        row_length: int | None = None,
        dtype: str = "fp32",
        read_prompt: bool = True,
    ) -> None:
        """Wrap a model and the chat format it was trained with.

        Args:
            model: the reward model; scored in evaluation mode.
            chat: renders what it reads.
            batch_rows: packed rows of one forward pass, at most; fewer where they are long.
            row_length: tokens of a row; None fits the longest conversation.
            dtype: "fp32" or "bf16" matrix products.
            read_prompt: False shows it the response alone (detail 1, for comparison).
        """
        self.model = model
        self.chat = chat
        self.batch_rows = batch_rows
        self.row_length = row_length
        self.dtype = dtype
        self.read_prompt = read_prompt

    def score(self, conversations: Sequence[Conversation], *, stopped: Sequence[bool] | None = None) -> Tensor:
        """Normalised scores (N,). A response that did not stop is read without an end-of-turn.

        A conversation longer than the context keeps its first token and its end.
        """
        return self.raw_scores(conversations, stopped=stopped) * self.model.gain + self.model.bias

    def raw_scores(self, conversations: Sequence[Conversation], *, stopped: Sequence[bool] | None = None) -> Tensor:
        """Scores before gain and bias (N,), for `normalise`."""
        if not conversations:
            return torch.zeros(0)
        samples = scored_samples(self.chat, conversations, stopped=stopped)
        samples, _ = truncate(samples, self.model.trunk.config.context_length, keep="end")
        assert len(samples) == len(conversations), "every response has a token"
        longest = max(map(len, samples))
        length = self.row_length or fitting_row_length(longest, self.model.trunk.config.context_length)
        batch = pack(samples, max(length, longest), pad=self.chat.tokenizer.filler, round_rows=True)
        documents = batch["documents"]
        if not self.read_prompt:
            documents = documents * 2 + batch["reply"]
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            return self._forward(batch["tokens"], documents, batch["ends"])
        finally:
            for module, mode in modes:
                module.training = mode

    def _forward(self, tokens: Tensor, documents: Tensor, ends: Tensor) -> Tensor:
        device = self.model.score_head.weight.device
        scores = torch.zeros(len(ends))
        with torch.no_grad(), runtime.autocast(device, self.dtype):
            rows = max(1, min(self.batch_rows, _MOST_TOKENS // tokens.shape[1]))
            for start in range(0, len(tokens), rows):
                stop = start + rows
                here = (ends[:, 0] >= start) & (ends[:, 0] < stop)
                local = ends[here] - torch.tensor([start, 0])
                output: Tensor = self.model.raw_scores(
                    tokens[start:stop].to(device), documents=documents[start:stop].to(device), ends=local.to(device)
                )
                scores[here] = output.float().cpu()
        return scores


def scored_samples(
    chat: ChatFormat, conversations: Sequence[Conversation], *, stopped: Sequence[bool] | None = None
) -> list[Sample]:
    """What a reward model reads of each conversation: everything up to the last response's end-of-turn.

    The score is read at the last token. A response that did not stop (`stopped`) has no end-of-turn. The field
    `reply` (bool) marks the last response. ValueError for a conversation without a response at its end.
    """
    samples = []
    for index, rendered in enumerate(chat.render_many(conversations, train_on="last")):
        if conversations[index][-1].role != "assistant":
            raise ValueError(f"conversation {index} ends with a {conversations[index][-1].role} turn; nothing to score")
        mask = np.array(rendered.loss_mask, dtype=np.bool_)
        end = int(mask.nonzero()[0][-1]) + 1
        empty = int(mask.sum()) == 1  # nothing but the end-of-turn, which is then all that can be read
        if stopped is not None and not stopped[index] and not empty:
            end -= 1
        samples.append(Sample(np.array(rendered.tokens[:end]), mask[:end], {"reply": mask[:end]}))
    return samples


def initialise_reward_head(model: RewardModel, config: RewardModelConfig) -> None:
    """Start the head as the config says (detail 7); draws from torch's generator."""
    if config.reward_head_init == "zero":
        nn.init.zeros_(model.score_head.weight)
    else:
        nn.init.normal_(model.score_head.weight, std=(model.trunk.config.width + 1) ** -0.5)


def critic_from(reward_model: RewardModel, init: ValueHeadInit) -> ValueModel:
    """A critic with the reward model's trunk (InstructGPT, appendix C.4) and the head that `init` says (detail 10).

    What of the trunk is frozen, as under an adapter, is shared and not copied.
    """
    trunk = adapters.shared(reward_model.trunk)
    return ValueModel.from_reward_model(reward_model, copy_head=init == "reward_model", trunk=trunk)


def token_rewards(
    scores: Tensor,
    kl: Tensor,
    mask: Tensor,
    *,
    beta: float,
    score_placement: ScorePlacement = "last",
    kl_placement: KLPlacement = "token",
) -> Tensor:
    """Reward of every token: -beta * KL, plus the score at the last one (details 6 and 14).

    Args:
        scores: (N,) one score a response.
        kl: (N, L) KL estimate of each token in nats.
        mask: (N, L) bool, true on the responses' tokens, which come first.
        beta: coefficient of the KL penalty.
        score_placement: "last", or "spread" for an equal part to every token.
        kl_placement: "token", or "last" for the whole KL at the last token.

    Returns:
        (N, L), 0 at padding.
    """
    lengths = mask.sum(dim=1)
    last = (torch.arange(mask.shape[1]) == lengths[:, None] - 1).to(kl.dtype)  # (N, L) one 1 a row
    even = mask.to(kl.dtype) / lengths[:, None]
    kl = kl * mask
    penalty = kl if kl_placement == "token" else kl.sum(dim=1, keepdim=True) * last
    return scores[:, None] * (last if score_placement == "last" else even) - beta * penalty
