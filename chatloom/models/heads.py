"""A scalar on top of a language model: one score a sequence (reward), or one value a token (critic).

The reward head starts N(0, 1/sqrt(width + 1)) (Stiennon et al. 2020) and reads the hidden state of the last real
token. Gain and bias, which give reference responses mean 0 and standard deviation 1 (Ziegler et al. 2019,
section 2.2), are part of the model and are saved with it.
"""

import copy

import torch
from torch import Tensor, nn

from chatloom.models.decoder import Decoder


class RewardModel(nn.Module):
    """score = gain * head(hidden at the last token) + bias."""

    def __init__(self, trunk: Decoder) -> None:
        super().__init__()
        self.trunk = trunk
        self.score_head = nn.Linear(trunk.config.width, 1, bias=False)
        nn.init.normal_(self.score_head.weight, std=(trunk.config.width + 1) ** -0.5)
        self.gain, self.bias = 1.0, 0.0

    def raw_scores(self, tokens: Tensor, *, documents: Tensor | None = None, ends: Tensor) -> Tensor:
        """Scores before gain and bias.

        Args:
            tokens: (B, T) int64.
            documents: (B, T) as in `Decoder.hidden`.
            ends: (N, 2) int64, row and column of each sequence's last token.

        Returns:
            (N,) float32.
        """
        hidden = self.trunk.hidden(tokens, documents=documents)
        last = hidden[ends[:, 0], ends[:, 1]]  # (N, C)
        return _project(last, self.score_head)

    def forward(self, tokens: Tensor, *, documents: Tensor | None = None, ends: Tensor) -> Tensor:
        """Normalised scores (N,); see `raw_scores`."""
        return self.raw_scores(tokens, documents=documents, ends=ends) * self.gain + self.bias


class ValueModel(nn.Module):
    """A critic: the expected final score at every token."""

    def __init__(self, trunk: Decoder) -> None:
        super().__init__()
        self.trunk = trunk
        self.value_head = nn.Linear(trunk.config.width, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @classmethod
    def from_reward_model(
        cls, reward_model: RewardModel, *, copy_head: bool, trunk: Decoder | None = None
    ) -> "ValueModel":
        """InstructGPT's critic: a copy of the reward model (appendix C.4); its head too, or one of zeros.

        `trunk` is the copy of its trunk, where that is not simply one.
        """
        critic = cls(copy.deepcopy(reward_model.trunk) if trunk is None else trunk)
        if copy_head:
            with torch.no_grad():
                critic.value_head.weight.copy_(reward_model.score_head.weight * reward_model.gain)
                critic.value_head.bias.fill_(reward_model.bias)
        return critic

    def forward(self, tokens: Tensor, *, documents: Tensor | None = None) -> Tensor:
        """Values (B, T) float32 of `tokens` (B, T)."""
        return _project(self.trunk.hidden(tokens, documents=documents), self.value_head)


def _project(hidden: Tensor, head: nn.Linear) -> Tensor:
    """(..., C) -> (...) in fp32 even under autocast: three digits are too few for a score."""
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.float()
        return nn.functional.linear(hidden.float(), head.weight.float(), bias).squeeze(-1)
