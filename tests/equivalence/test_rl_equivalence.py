"""Invariants 2 and 5 of RLHF: rollout log-probabilities are training log-probabilities, on whichever side one pads,
and a conversation is the same tokens in training, in the folder that training saved, and when it is served.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from chatloom import checkpoint, cli, load
from chatloom.chat.message import Conversation, Message, to_dicts
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.data.formats import read_conversations
from chatloom.engine.engine import Engine
from chatloom.engine.request import SamplingParams
from chatloom.models import Decoder, build, gpt2
from chatloom.rl import scoring
from chatloom.rl.rollout import Rollout, collect, pack_episodes, response_mask, rollout_logprobs
from chatloom.stages import sft
from chatloom.testing.models import VOCAB_SIZE, tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer
from chatloom.train.metrics import read_metrics

CHAT = ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE)
PROMPTS: list[Conversation] = [
    (Message("user", text),) for text in ("a", "bcd", "efghij", "kl", "mnopq and a longer one", "王 😀")
]


def tiny_gpt2() -> Decoder:
    torch.manual_seed(0)
    model = build(gpt2.Config(vocab_size=VOCAB_SIZE, context_length=64, num_layers=2, width=32, num_heads=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def roll_out(model: Decoder, *, temperature: float, dtype: str) -> list[Rollout]:
    engine = Engine(model, byte_tokenizer(), autocast=dtype, max_batch=4)  # two batches, of rows that end apart
    sampling = SamplingParams(max_tokens=12, temperature=temperature, seed=1, stop_tokens=CHAT.stop_tokens)
    return collect(engine, CHAT, PROMPTS, sampling)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_rollout_logprobs_are_training_logprobs(make: type[Decoder], temperature: float, side: str) -> None:
    """fp32: to 1e-4 of a nat, the rounding of sums in another order, one token at a time or all at once."""
    model = make()
    rollouts = roll_out(model, temperature=temperature, dtype="fp32")
    mask = response_mask(rollouts)
    sampled = rollout_logprobs(rollouts, mask)
    for row_length in (40, 64):  # alone in a row, or packed
        episodes = pack_episodes(rollouts, row_length=row_length, pad=CHAT.tokenizer.pad, padding_side=side)  # type: ignore[arg-type]
        trained = scoring.logprobs(model, episodes, temperature=temperature)
        torch.testing.assert_close(trained, sampled, rtol=0, atol=1e-4)
    assert sampled[mask].std() > 0.5  # there was something to get wrong
    wrong = scoring.logprobs(model, episodes, temperature=temperature * 1.1)
    assert (wrong - sampled).abs().max() > 0.05


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_in_bf16_they_agree_as_far_as_bf16_can(make: type[Decoder]) -> None:
    """Eight bits of mantissa: single tokens within 0.15 nats at logits of this size, the mean within 0.02.

    That is why `recompute_logprobs` is on by default: the ratio of a policy to itself would otherwise not be 1.
    """
    model = make()
    rollouts = roll_out(model, temperature=1.0, dtype="bf16")
    mask = response_mask(rollouts)
    episodes = pack_episodes(rollouts, row_length=64, pad=CHAT.tokenizer.pad)
    difference = (scoring.logprobs(model, episodes, dtype="bf16") - rollout_logprobs(rollouts, mask))[mask]
    assert difference.abs().max() < 0.15
    assert abs(float(difference.mean())) < 0.02
    # Training twice in bf16 is the same bits, which is what PPO's first ratio of exactly 1 rests on.
    twice = [scoring.logprobs(model, episodes, dtype="bf16") for _ in range(2)]
    assert torch.equal(*twice)


def test_ppo_with_left_or_right_padding_is_the_same_ppo(quickstart: Path, tmp_path: Path) -> None:
    """The whole stage, rollouts to saved policy; sums in another order leave 1e-4 of an update."""
    arguments = [
        *("ppo", "--model", str(quickstart / "sft"), "--reward", str(quickstart / "reward")),
        *("--data", str(quickstart / "data" / "prompts.jsonl"), "--ptx-coefficient", "0", "--iterations", "2"),
        *("--episodes-per-iteration", "8", "--minibatches", "2", "--epochs-per-batch", "2", "--adam-epsilon", "1e-3"),
        *("--max-response-tokens", "8", "--warmup-iterations", "0", "--actor-learning-rate", "1e-2"),
    ]
    for side in ("left", "right"):
        assert cli.main([*arguments, "--padding-side", side, "--output-dir", str(tmp_path / side)]) == 0
    left, right, start = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "left", tmp_path / "right", quickstart / "sft")
    )
    moved = max(float((right[name] - start[name]).abs().max()) for name in start)
    apart = max(float((left[name] - right[name]).abs().max()) for name in start)
    assert moved > 1e-4
    assert apart < 0.01 * moved
    for one, other in zip(*(read_metrics(tmp_path / side / "metrics.jsonl") for side in ("left", "right"))):
        for key in ("objective/kl", "objective/score", "policy/loss", "value/loss", "objective/entropy", "val/ratio"):
            assert one[key] == pytest.approx(other[key], rel=1e-4, abs=1e-5), key


def test_what_was_trained_is_what_is_served(quickstart: Path, tmp_path: Path) -> None:
    """Through a fine-tuned checkpoint: the trained rows, cut where an answer begins, are the prompts served."""
    conversations = list(read_conversations(quickstart / "data" / "demonstrations.jsonl"))
    before = checkpoint.load_pretrained(quickstart / "base").chat  # what the SFT stage rendered with
    trained = sft._samples(conversations, before, "all")
    served = load(quickstart / "sft")
    served.save(tmp_path / "again")
    again = load(tmp_path / "again")
    stop = served.chat_format.end_of_turn
    assert len([turns for turns in conversations if len(turns) > 2]) > 5
    for turns, sample in zip(conversations, trained):
        tokens, mask = sample.tokens.tolist(), np.asarray(sample.loss_mask, dtype=bool)
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            prompt = served.prompt_tokens(to_dicts(turns[:index]))
            assert prompt == again.prompt_tokens(to_dicts(turns[:index]))
            reply = [*served.tokenizer.encode(turn.content), stop]
            assert tokens[: len(prompt) + len(reply)] == [*prompt, *reply]
            # The answer and its end are learned, and nothing just before or after.
            assert mask[len(prompt) : len(prompt) + len(reply)].all()
            assert not mask[len(prompt) - 1]
            assert not mask[len(prompt) + len(reply) : len(prompt) + len(reply) + 1].any()
    assert stop in served.chat_format.stop_tokens
