"""What must hold before PPO starts: errors that would otherwise show as a run that quietly does not work."""

from collections.abc import Sequence

from torch import nn

from chatloom import runtime
from chatloom.chat.message import Conversation
from chatloom.chat.render import ChatFormat
from chatloom.models import Decoder
from chatloom.rl.config import PPOConfig
from chatloom.rl.rewards import Reward


def check_setup(
    config: PPOConfig,
    *,
    dropouts: tuple[float, float],
    reference: Decoder,
    policy: nn.Module,
    reward: Reward,
    chat: ChatFormat,
    prompts: Sequence[Conversation],
    has_ptx: bool,
) -> None:
    """Raise ValueError, saying what to change, if the parts do not fit the config or one another.

    `dropouts` are those of the actor's and the critic's training configs.
    """
    if (config.ptx_coefficient > 0) != has_ptx:
        given = "pretraining text was given" if has_ptx else "no pretraining text was given"
        raise ValueError(
            f"ptx_coefficient is {config.ptx_coefficient} and {given}; set it to 0 for plain PPO, or give both"
        )
    if config.dropout_off and any(dropouts):
        raise ValueError(
            "dropout_off is set, but a trainer's config has dropout; make it with training.actor_training and "
            "training.critic_training"
        )
    if reference is policy:
        raise ValueError("the reference is the very model that is trained, so KL would always be 0; give a copy")
    if getattr(reward, "read_prompt", config.read_prompt) != config.read_prompt:
        raise ValueError(f"read_prompt is {config.read_prompt} for PPO and not so for the reward; make them agree")
    _check_episodes(config)
    _check_prompts(config, chat, prompts, reference.config.context_length)


def _check_episodes(config: PPOConfig) -> None:
    ranks = runtime.world_size()
    if config.episodes_per_iteration % ranks:
        raise ValueError(
            f"{config.episodes_per_iteration} episodes an iteration cannot be shared alike by {ranks} ranks; "
            f"use a multiple of {ranks}"
        )
    if config.minibatches > config.episodes_per_iteration // ranks:
        raise ValueError(
            f"each of {ranks} ranks has {config.episodes_per_iteration // ranks} episodes, too few for "
            f"{config.minibatches} minibatches; raise episodes_per_iteration or lower minibatches"
        )


def _check_prompts(config: PPOConfig, chat: ChatFormat, prompts: Sequence[Conversation], context_length: int) -> None:
    if not prompts:
        raise ValueError("there are no prompts to answer; give at least one")
    room = context_length - config.max_response_tokens
    too_long = sum(len(tokens) > room for tokens in chat.prompt_many(prompts))
    if too_long:
        raise ValueError(
            f"{too_long} of {len(prompts)} prompts are longer than {room} tokens, which is what responses of up to "
            f"{config.max_response_tokens} leave of the context of {context_length}; leave them out, or lower "
            "max_response_tokens"
        )
