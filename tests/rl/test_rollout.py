"""Rollouts and the two layouts: what is an action, and that nothing is lost between them."""

import dataclasses

import numpy as np
import pytest
import torch

from chatloom.chat.message import Conversation, Message
from chatloom.chat.render import ChatFormat
from chatloom.engine.engine import Engine
from chatloom.engine.request import SamplingParams
from chatloom.rl.rollout import Rollout, collect, fitting_row_length, pack_episodes, response_mask
from chatloom.testing.engine import ScriptedEngine
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer


def rollout(prompt: list[int], response: list[int]) -> Rollout:
    return Rollout((Message("user", "?"),), prompt, response, [-1.0] * len(response), "", True)


THREE = [rollout([11, 12, 13], [21, 22]), rollout([31], [41, 42, 43]), rollout([51, 52, 53, 54], [61])]


def test_actions_choose_the_response(chat: ChatFormat) -> None:
    episodes = pack_episodes(THREE, row_length=8, pad=0)
    tokens, actions = episodes.batch["tokens"], episodes.batch["actions"]
    assert episodes.num_actions == 6
    assert not actions[:, -1].any()
    chosen = tokens.roll(-1, dims=1)
    assert sorted(chosen[actions].tolist()) == [21, 22, 41, 42, 43, 61]
    # In the (N, L) layout each response stands in its own row.
    assert episodes.from_rows(chosen).tolist() == [[21, 22, 0], [41, 42, 43], [61, 0, 0]]
    # An action is at a token of its own document.
    rows = torch.where(actions, episodes.batch["documents"], 0)
    assert (rows[actions] > 0).all()


@pytest.mark.parametrize("side", ["right", "left"])
def test_there_and_back(side: str) -> None:
    episodes = pack_episodes(THREE, row_length=9, pad=0, padding_side=side)  # type: ignore[arg-type]
    values = torch.arange(1.0, 10.0).view(3, 3) * episodes.mask
    packed = episodes.to_rows(values)
    assert torch.equal(episodes.from_rows(packed), values)
    assert packed[~episodes.batch["actions"]].abs().sum() == 0
    assert (packed[episodes.batch["actions"]] > 0).all()


def test_left_padding_is_at_the_left() -> None:
    episodes = pack_episodes([THREE[0]], row_length=8, pad=9, padding_side="left")
    assert episodes.batch["tokens"].tolist() == [[9, 9, 9, 11, 12, 13, 21, 22]]
    assert episodes.batch["documents"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]
    assert episodes.batch["actions"].nonzero()[:, 1].tolist() == [5, 6]


def test_critic_documents_part_prompt_and_response() -> None:
    episodes = pack_episodes([THREE[0]], row_length=8, pad=0, read_prompt=False)
    assert episodes.batch["critic_documents"][0].tolist() == [2, 2, 3, 3, 3, 0, 0, 0]


def test_collect_gives_what_the_engine_said_in_order(chat: ChatFormat) -> None:
    prompts: list[Conversation] = [(Message("user", text),) for text in ("one", "three", "two")]
    engine = ScriptedEngine(byte_tokenizer(), lambda prompt: "yes" if "three" in prompt else "no")
    rollouts = collect(engine, chat, prompts, SamplingParams(max_tokens=3))
    assert [each.text for each in rollouts] == ["no", "yes", "no"]
    assert [each.stopped for each in rollouts] == [True, False, True]  # "yes" and its end are four tokens
    assert rollouts[0].response == [*byte_tokenizer().encode("no"), chat.end_of_turn]
    assert rollouts[1].answered == (Message("user", "three"), Message("assistant", "yes"))
    assert rollouts[0].prompt == chat.prompt(prompts[0])


def test_a_seed_is_a_result(chat: ChatFormat, prompts: list[Conversation]) -> None:
    def draw(seed: int) -> list[list[int]]:
        engine = Engine(tiny_llama(), byte_tokenizer())
        sampling = SamplingParams(max_tokens=6, temperature=1.0, seed=seed)
        return [each.response for each in collect(engine, chat, prompts, sampling)]

    assert draw(1) == draw(1) != draw(2)


def test_masks_and_row_lengths() -> None:
    assert response_mask(THREE).tolist() == [[True, True, False], [True] * 3, [True, False, False]]
    assert [fitting_row_length(longest, 1024) for longest in (5, 128, 129, 200)] == [128, 128, 192, 256]
    assert fitting_row_length(50, 64) == 64
    assert fitting_row_length(70, 64) == 70
    assert len(dataclasses.replace(THREE[0], response=[1])) == 4
    assert np.shape(THREE[0].prompt) == (3,)
