"""Each cause of a negative KL is caused here, and is named; a sound setup has no finding."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from chatloom.chat.message import Conversation, Message
from chatloom.chat.render import ChatFormat, Rendered
from chatloom.engine.engine import Engine
from chatloom.engine.request import SamplingParams
from chatloom.models import Decoder
from chatloom.rl.diagnostics import Finding, check_kl, check_stop, digest, kl_is_negative, training_scorer
from chatloom.rl.rollout import Rollout, collect
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

FULL = SamplingParams(max_tokens=8, temperature=1.0, seed=0)
PAD = byte_tokenizer().pad


def rollouts(
    chat: ChatFormat, prompts: list[Conversation], sampling: SamplingParams = FULL, *, autocast: str = "fp32"
) -> list[Rollout]:
    return collect(Engine(tiny_llama(), byte_tokenizer(), autocast=autocast), chat, prompts * 8, sampling)


def scorer(model: Decoder, **options: Any) -> Any:
    return training_scorer(model, pad=PAD, context_length=64, **options)


def findings(episodes: list[Rollout], **changes: Any) -> list[Finding]:
    policy, reference = scorer(tiny_llama()), scorer(tiny_llama())
    sound = {"policy": policy, "reference": reference, "sampling": FULL, "policy_is_initial": True}
    return check_kl(episodes, **{**sound, **changes})


def causes(found: list[Finding]) -> list[str]:
    return [finding.cause for finding in found]


def kl(episodes: list[Rollout], policy: Any, reference: Any) -> Tensor:
    return torch.stack([(p - r).sum() for p, r in zip(policy(episodes), reference(episodes))])


def test_a_sound_setup_has_no_finding(chat: ChatFormat, prompts: list[Conversation]) -> None:
    assert findings(rollouts(chat, prompts), reference_is_initial=True) == []


def test_sampling_warpers(chat: ChatFormat, prompts: list[Conversation]) -> None:
    warped = SamplingParams(max_tokens=8, temperature=1.0, top_k=3, top_p=0.9, seed=0)
    found = findings(rollouts(chat, prompts, warped), sampling=warped)
    assert causes(found) == ["sampling"]
    assert "top_k is 3 and top_p is 0.9" in found[0].message
    cold = SamplingParams(max_tokens=8, temperature=0.5, seed=0)
    found = findings(rollouts(chat, prompts, cold), sampling=cold)
    assert causes(found) == ["sampling"]
    assert "temperature is 0.5 and training scores at 1.0" in found[0].message


def test_dropout(chat: ChatFormat, prompts: list[Conversation]) -> None:
    model = tiny_llama()
    model.set_dropout(0.3)
    model.train()
    episodes = rollouts(chat, prompts)
    found = findings(episodes, policy=scorer(model))
    assert causes(found) == ["dropout"]
    assert "for the policy" in found[0].message
    # And this is how it shows: samples of the clean policy look unlikely to the noisy one.
    assert kl_is_negative(kl(episodes, scorer(model), scorer(tiny_llama())))
    assert "for the reference" in findings(episodes, reference=scorer(model))[0].message


def careless(model: Decoder) -> Any:
    """Left-pads a batch and forgets both mask and positions."""

    def score(episodes: Sequence[Rollout]) -> list[Tensor]:
        longest = max(len(episode) for episode in episodes)
        rows = torch.full((len(episodes), longest), PAD)
        for row, episode in zip(rows, episodes):
            row[longest - len(episode) :] = torch.tensor(episode.prompt + episode.response)
        with torch.no_grad():
            logprobs = model(rows).log_softmax(dim=-1)
        chosen = logprobs[:, :-1].gather(2, rows[:, 1:, None]).squeeze(2)
        return [row[-len(episode.response) :] for row, episode in zip(chosen, episodes)]

    return score


def test_padding(chat: ChatFormat, prompts: list[Conversation]) -> None:
    episodes = rollouts(chat, prompts)
    assert causes(findings(episodes, policy=careless(tiny_llama()), policy_is_initial=False)) == ["padding"]
    assert kl_is_negative(kl(episodes, careless(tiny_llama()), scorer(tiny_llama())))
    for side in ("left", "right"):
        assert findings(episodes, policy=scorer(tiny_llama(), padding_side=side)) == []


def test_dtype(chat: ChatFormat, prompts: list[Conversation]) -> None:
    low = rollouts(chat, prompts, autocast="bf16")
    found = findings(low, rollout_dtype="bf16")
    assert causes(found) == ["dtype"]
    assert "rollout (bf16) and of training (fp32)" in found[0].message
    same = {name: scorer(tiny_llama(), dtype="bf16") for name in ("policy", "reference")}
    assert findings(low, rollout_dtype="bf16", training_dtype="bf16", **same) == []
    # An engine with other weights than training's looks alike, and is told apart by the dtypes' agreeing.
    other = scorer(tiny_llama(3))
    found = findings(rollouts(chat, prompts), policy=other, reference=other)
    assert causes(found) == ["dtype"]
    assert "give the engine the model that is trained" in found[0].message


def test_stale_reference(chat: ChatFormat, prompts: list[Conversation]) -> None:
    episodes = rollouts(chat, prompts)
    found = findings(episodes, reference=scorer(tiny_llama(5)))
    assert causes(found) == ["stale_reference"]
    assert "before the first step it differs" in found[0].message
    assert causes(findings(episodes, policy_is_initial=False, reference_is_initial=False)) == ["stale_reference"]
    assert digest(tiny_llama()) == digest(tiny_llama()) != digest(tiny_llama(5))


def test_negative_beyond_noise() -> None:
    assert kl_is_negative(torch.tensor([-1.0, -1.2, -0.9, -1.1]))
    assert not kl_is_negative(torch.tensor([-1.0, 1.1, -0.9, 0.8]))
    assert not kl_is_negative(torch.zeros(8))
    assert kl_is_negative(torch.tensor([-1.0]))
    assert not kl_is_negative(torch.tensor([]))


@pytest.fixture
def rendered(chat: ChatFormat) -> list[Rendered]:
    turns = (Message("user", "hi"), Message("assistant", "hello"))
    return chat.render_many([turns] * 4)


def stop(samples: list[Rendered], chat: ChatFormat, **changes: Any) -> list[str]:
    known: dict[str, Any] = {"end_of_turn": chat.end_of_turn, "stop_tokens": chat.stop_tokens, **changes}
    return [finding.message for finding in check_stop(samples, **known)]


def test_end_of_turn_is_trained_and_is_the_stop(chat: ChatFormat, rendered: list[Rendered]) -> None:
    assert stop(rendered, chat, stop_rate=0.97) == []
    unmasked = [Rendered(s.tokens, [*s.loss_mask[:-1], 0]) for s in rendered[:3]]
    assert "not trained in 3 of 4 samples; it is there but" in stop([*unmasked, rendered[3]], chat)[0]
    without = [Rendered(s.tokens[:-1], s.loss_mask[:-1]) for s in rendered]
    # The user's turn ends with the same token, which does not count.
    assert "not trained in 4 of 4" in stop(without, chat)[0]
    assert "not among the stop tokens [1]" in stop(rendered, chat, stop_tokens=(1,))[0]
    (rarely,) = stop(rendered, chat, stop_rate=0.2)
    assert rarely.startswith("Only 20% of responses stop by themselves; responses are cut at the token limit")
