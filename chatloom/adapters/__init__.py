"""Adapters: a few trained numbers that change a frozen model, attached from outside to any family.

* LoRA hangs on linear layers, found by module path (`lora`); prompt tuning (`prompt`) and prefix tuning (`prefix`) are
  a cache that starts non-empty. `attach` puts one on a model, and everything else (training, generation, heads) goes
  on as if the model were an ordinary one.
* A model has one adapter. Several adapters on one set of weights are several module trees whose frozen tensors are
  the very same (`shared`): policy, reference, reward model and critic differ in their adapters alone, and no call has
  to say which of them it means.
* Switched `off`, a model is its base bit for bit. `merge` writes LoRA into the weights, `unmerge` takes it out again.
"""

from chatloom.adapters.attach import attach, detach, dormant_names, hold_frozen, is_adapted, loras, off, shared
from chatloom.adapters.config import AdapterConfig
from chatloom.adapters.merge import merge, unmerge

__all__ = [
    "AdapterConfig",
    "attach",
    "detach",
    "dormant_names",
    "hold_frozen",
    "is_adapted",
    "loras",
    "merge",
    "off",
    "shared",
    "unmerge",
]
