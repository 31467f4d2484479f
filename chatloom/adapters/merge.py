"""Write LoRA into the weights, and take it out again.

The merged weight is another tensor: models that share the base do not see it, and unmerging puts the very same tensor
back, bit for bit. Prompt and prefix tuning have nothing to merge.
"""

from typing import Any

from torch import nn

from chatloom.adapters.attach import is_adapted, loras


def merge(decoder: Any) -> None:
    """Put merged weights in the place of the layers' own. ValueError for an adapter that is not LoRA."""
    if is_adapted(decoder) and decoder.prefix is not None:
        raise ValueError(
            f"{decoder.adapter_config.adapter} tuning adds virtual tokens, which cannot be merged into the weights; "
            "keep the adapter, or train one with adapter='lora'"
        )
    for path, lora in loras(decoder).items():
        if lora.unmerged is None:
            linear: Any = decoder.get_submodule(path)
            lora.unmerged = (linear.weight,)
            linear.weight = nn.Parameter(lora.merged(linear.weight), requires_grad=False)
            lora.enabled = False


def unmerge(decoder: nn.Module) -> None:
    """Undo of `merge`: the layers have their own weights again and LoRA beside them."""
    for path, lora in loras(decoder).items():
        if lora.unmerged is not None:
            linear: Any = decoder.get_submodule(path)
            (linear.weight,) = lora.unmerged
            lora.unmerged, lora.enabled = None, True
