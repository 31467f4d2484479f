"""Two iterations of PPO-ptx on however many ranks torchrun started; run by test_ppo_loop.py.

Greedy samples (top_k=1) do not depend on the ranks' seeds, so any number of ranks has the same episodes.
"""

import json
import sys
from pathlib import Path

import torch
from ppo_parts import build_ppo, pretraining
from safetensors.torch import save_file

from chatloom import runtime
from chatloom.rl.training import pretraining_rows


def main(folder: Path) -> None:
    """Write metrics.json and weights.safetensors."""
    with runtime.distributed():
        rows = 4 // runtime.world_size()
        ppo = build_ppo(
            rollout_top_k=1,
            minibatches=1,
            reward_normalisation="reference",
            ptx_coefficient=3.0,
            ptx=pretraining_rows(pretraining(8), rows=rows, seed=0),
        )
        ppo.iteration()
        metrics = ppo.iteration()
        modules = (ppo.actor.model, ppo.critic.model)
        weights = torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])
        everyone = runtime.gather_objects(weights)
        assert all(torch.equal(weights, other) for other in everyone), "ranks have drifted apart"
        if runtime.is_main():
            (folder / "metrics.json").write_text(json.dumps(metrics))
            save_file({"weights": weights}, folder / "weights.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
