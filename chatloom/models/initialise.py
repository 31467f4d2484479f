"""GPT-2's fresh weights, which most families take: N(0, std), and less for what is added to the residual stream.

With 2 additions a layer the output projections start at std / sqrt(2 * layers), so that the sum does not grow with
depth (Radford et al. 2019, section 2.3). Biases are zero and norms as they are made.
"""

from typing import Any

from torch import nn

from chatloom.models.decoder import Decoder
from chatloom.nn.feedforward import FeedForward, SwiGLU


def draw_normal(model: Decoder, std: float) -> None:
    """Draw all weights from torch's generator."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    residual_std = std / (2 * len(model.blocks)) ** 0.5
    for each in model.blocks:
        block: Any = each
        nn.init.normal_(block.attention.output.weight, std=residual_std)
        for part in block.feedforward.modules():
            if isinstance(part, (FeedForward, SwiGLU)):
                nn.init.normal_(part.down.weight, std=residual_std)
