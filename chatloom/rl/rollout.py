"""Rollouts: the policy answers prompts, and the answers become packed rows with a mask of actions.

Two layouts are used and this file translates between them:
* (N, L): N responses, right-padded to the longest. Rewards, KL and advantages live here.
* (B, T): rows of `data.pack`, several episodes a row. Forward passes and losses live here.

The action at position t is the choice of token t + 1, so a response's actions begin at the prompt's last token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from chatloom.chat.message import Conversation, Message
from chatloom.chat.render import ChatFormat
from chatloom.data.pack import Sample, pack
from chatloom.engine.request import Completion, SamplingParams
from chatloom.rl.config import PaddingSide


class Generator(Protocol):
    """What is needed of an engine."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """One completion a prompt, in order."""


@dataclass(frozen=True, eq=False)
class Rollout:
    """One episode: prompt and response as tokens; the response includes its stop token if it has one."""

    conversation: Conversation  # the prompt
    prompt: list[int]
    response: list[int]
    logprobs: list[float]  # of the response's tokens, as the engine computed them
    text: str
    stopped: bool

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def answered(self) -> Conversation:
        """The conversation with the response as its last turn."""
        return (*self.conversation, Message("assistant", self.text))


def collect(
    engine: Generator, chat: ChatFormat, prompts: Sequence[Conversation], sampling: SamplingParams
) -> list[Rollout]:
    """One response to each prompt, in order.

    `sampling.stop_tokens` are the chat format's unless given. With `sampling.seed` the result is a function of the
    weights, the prompts and the seed. Raises ValueError for what the engine refuses.
    """
    if not sampling.stop_tokens:
        sampling = replace(sampling, stop_tokens=chat.stop_tokens)
    tokens = chat.prompt_many(prompts)
    completions = engine.generate(tokens, sampling)
    return [
        Rollout(
            conversation=conversation,
            prompt=prompt,
            response=completion.tokens,
            logprobs=completion.logprobs,
            text=completion.text,
            stopped=completion.finish_reason == "stop",
        )
        for conversation, prompt, completion in zip(prompts, tokens, completions, strict=True)
    ]


def response_mask(rollouts: Sequence[Rollout]) -> Tensor:
    """(N, L) bool: which entries of the padded layout are tokens."""
    lengths = torch.tensor([len(rollout.response) for rollout in rollouts])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def rollout_logprobs(rollouts: Sequence[Rollout], mask: Tensor) -> Tensor:
    """(N, L): the engine's log-probabilities, 0 at padding."""
    padded = torch.zeros(mask.shape)
    padded[mask] = torch.tensor([value for rollout in rollouts for value in rollout.logprobs])
    return padded


def fitting_row_length(longest: int, context_length: int) -> int:
    """A row length for packing sequences of up to `longest` tokens: rounded up to 64, at least 128.

    Never above the context unless a sequence is. Attention within a row costs time quadratic in its length, so rows
    are kept short.
    """
    return max(longest, min(context_length, max(128, -(-longest // 64) * 64)))


@dataclass(frozen=True, eq=False)
class PackedEpisodes:
    """Episodes as packed rows.

    `batch` has tokens, documents and actions, all (B, T), and `critic_documents` where the critic may not read the
    prompt. `rows` and `columns` (A,) say where each entry of `mask` (N, L), in row-major order, lies.
    """

    batch: dict[str, Tensor]
    mask: Tensor
    rows: Tensor
    columns: Tensor

    @property
    def num_actions(self) -> int:
        """Response tokens in all rows."""
        return len(self.rows)

    def to_rows(self, values: Tensor) -> Tensor:
        """(N, L) -> (B, T), 0 where there is no action."""
        packed = torch.zeros(self.batch["tokens"].shape, dtype=values.dtype)
        packed[self.rows, self.columns] = values[self.mask]
        return packed

    def from_rows(self, packed: Tensor) -> Tensor:
        """(B, T) -> (N, L), 0 at padding."""
        values = torch.zeros(self.mask.shape, dtype=packed.dtype)
        values[self.mask] = packed[self.rows, self.columns]
        return values


def pack_episodes(
    rollouts: Sequence[Rollout],
    *,
    row_length: int,
    pad: int,
    padding_side: PaddingSide = "right",
    read_prompt: bool = True,
) -> PackedEpisodes:
    """Pack episodes best-fit into rows of `row_length` tokens.

    Args:
        rollouts: the episodes.
        row_length: at least the longest episode.
        pad: token at padding, where nothing looks.
        padding_side: where a row's padding stands (detail 2). The numbers do not depend on it, because positions
            restart at every document and padding is a document of its own.
        read_prompt: False adds `critic_documents`, which part the prompt from its last token and the response.
    """
    samples = [Sample(np.array(each.prompt + each.response)) for each in rollouts]
    packed = pack(samples, row_length, pad=pad, round_rows=True)
    spans = packed["spans"]  # (N, 3) row, first column, length
    batch = {"tokens": packed["tokens"], "documents": packed["documents"]}
    starts = spans[:, 1]
    if padding_side == "left":
        room = (batch["documents"] == 0).sum(dim=1)  # (B,) padding of each row, all at its right
        shifted = (torch.arange(row_length) - room[:, None]) % row_length
        batch = {name: tensor.gather(1, shifted) for name, tensor in batch.items()}
        starts = starts + room[spans[:, 0]]
    mask = response_mask(rollouts)
    prompt_lengths = torch.tensor([len(rollout.prompt) for rollout in rollouts])
    first = (starts + prompt_lengths - 1)[:, None]  # (N, 1) where each episode's first action is
    columns = (first + torch.arange(mask.shape[1]))[mask]
    rows = spans[:, :1].expand(mask.shape)[mask]
    batch["actions"] = torch.zeros(batch["tokens"].shape, dtype=torch.bool)
    batch["actions"][rows, columns] = True
    if not read_prompt:
        # The last token of the prompt, the response, and the response's last token, which is no action.
        seen = batch["actions"] | (batch["actions"].roll(1, dims=1) & (batch["documents"] > 0))
        batch["critic_documents"] = batch["documents"] * 2 + seen
    return PackedEpisodes(batch, mask, rows, columns)
