"""PPO's rollouts before and after: `python benchmarks/rollout.py --before CHECKOUT --prompts FILE`.

CHECKOUT is a folder with another version of this project, as `git worktree add` makes it; FILE the prompts of a run of
`chatloom smollm2-rlhf`. Each side is a process that decodes answers with SmolLM2 and a LoRA adapter that has just been
changed, as after PPO's update, in bf16, as that recipe does: prompts, sampling and lengths are alike. In turn, medians.
"""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

# Runs in either version, so it uses what both have.
SIDE = """
import json, sys, time
import torch
import chatloom
from chatloom import adapters
from chatloom.engine.engine import Engine
from chatloom.engine.request import SamplingParams
given = json.loads(sys.argv[1])
torch.set_num_threads(given["threads"])
lm = chatloom.load("smollm2", dtype="fp32")
adapters.attach(lm.model, adapters.AdapterConfig(adapter="lora"))
loras = adapters.loras(lm.model).values()
prompts = [lm.prompt_tokens(each) for each in given["prompts"]]
engine = Engine(lm.model, lm.tokenizer, max_batch=given["rows"], autocast="bf16")
stops = tuple(lm.chat_format.stop_tokens)
sampling = SamplingParams(max_tokens=given["max_tokens"], temperature=1.0, seed=1, stop_tokens=stops)
found = []
for number in range(given["rounds"] + 1):
    for lora in loras:
        torch.nn.init.normal_(lora.B.weight, std=0.002)
    started = time.perf_counter()
    made = engine.generate(prompts, sampling)
    found.append(time.perf_counter() - started)
print(json.dumps([found[1:], sum(len(each.tokens) for each in made)]))
"""


@dataclass(frozen=True)
class Config:
    """Measure rollouts."""

    before: Path
    prompts: Path
    rows: int = 64
    max_tokens: int = 48
    threads: int = 2
    rounds: int = 2
    # How often each side's process runs.
    turns: int = 2


def seconds(folder: Path, config: Config) -> tuple[list[float], int]:
    """Seconds of each round in the version that lies in `folder`, and tokens of the last."""
    records = [json.loads(line) for line in config.prompts.read_text(encoding="utf-8").splitlines()[: config.rows]]
    given = {
        "threads": config.threads,
        "rows": config.rows,
        "rounds": config.rounds,
        "max_tokens": config.max_tokens,
        "prompts": [record.get("messages") or [{"role": "user", "content": record["prompt"]}] for record in records],
    }
    environment = os.environ | {"PYTHONPATH": str(folder.resolve()), "OMP_NUM_THREADS": str(config.threads)}
    command = [sys.executable, "-c", SIDE, json.dumps(given)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=900, check=False
    )
    if done.returncode:
        raise SystemExit(f"{folder}: {done.stderr[-2000:]}")
    found, tokens = json.loads(done.stdout.splitlines()[-1])
    return found, tokens


def main() -> None:
    """Measure both versions in turn."""
    config = tyro.cli(Config)
    sides = {"before": config.before, "now": Path(__file__).parents[1]}
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(config.turns):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            times, tokens = seconds(sides[name], config)
            found[name] += times
            print(f"{name}: {', '.join(f'{each:.2f}' for each in times)} s, {tokens:,} tokens", flush=True)
    medians = {name: statistics.median(times) for name, times in found.items()}
    print(f"{medians['before']:.2f} s before, {medians['now']:.2f} s now: {medians['before'] / medians['now']:.2f} x")


if __name__ == "__main__":
    main()
