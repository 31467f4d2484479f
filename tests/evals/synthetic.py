"""Plausible results and metrics for tests of the report, and for looking at the page while working on it.

`python tests/evals/synthetic.py FOLDER` writes a report there.
"""

import json
import math
import random
import sys
from pathlib import Path

from chatloom.chat.message import Message
from chatloom.evals import intervals, judge, report
from chatloom.evals.results import (
    BestOfN,
    CategoryResult,
    Diagnostic,
    LineageStep,
    OptimisationPath,
    PathPoint,
    ResourceUse,
    Results,
    RewardResult,
    Sample,
    SampleAnswer,
    StageResult,
)
from chatloom.rl.best_of import best_of_kl

CATEGORIES = (
    "generation", "open QA", "brainstorming", "chat", "rewrite",
    "summarisation", "classification", "other", "closed QA", "extract",
)  # fmt: skip
LINEAGE = (
    ("data", "miniature, seed 0"), ("tokenizer", "tokenizer"), ("base", "base"),
    ("SFT", "sft"), ("reward model", "reward"), ("policy", "ppo"),
)  # fmt: skip
LEVELS = {
    "base": ("Base, few-shot", 0.31, -0.42, 0.97, None, 1.102, 0.0),
    "sft": ("SFT", 0.91, 1.91, 0.99, None, 1.128, 0.0),
    "best_of_4": ("Best of 4", 0.95, 2.32, 0.995, 0.66, None, 0.636),
    "ppo": ("PPO", 0.96, 2.44, 1.0, 0.74, 1.271, 7.9),
    "ppo_ptx": ("PPO-ptx", 0.965, 2.49, 1.0, 0.755, 1.146, 6.8),
}


def results(num_prompts: int = 450, *, text: str = "Mira lives in Tollen and keeps three grey goats.") -> Results:
    generator = random.Random(0)
    stages = []
    for name, (label, follows, gold, stops, wins, bits, kl) in LEVELS.items():
        rise = None if bits is None else intervals.Estimate(bits - 1.128, bits - 1.133, bits - 1.123, 200)
        stages.append(
            StageResult(
                name=name,
                label=label,
                follows=intervals.wilson(round(follows * num_prompts), num_prompts),
                gold=intervals.mean([gold + generator.gauss(0, 0.6) for _ in range(num_prompts)]),
                win_rate=None if wins is None else intervals.wilson(wins * num_prompts, num_prompts),
                bits_per_byte=None if bits is None else intervals.Estimate(bits, bits - 0.012, bits + 0.012, 200),
                bits_per_byte_rise=rise if name in ("ppo", "ppo_ptx") else None,
                stop_rate=intervals.wilson(stops * num_prompts, num_prompts),
                kl_nats=intervals.Estimate(kl, kl * 0.95, kl * 1.05, num_prompts) if kl else None,
                response_tokens=intervals.Estimate(19.3, 18.7, 19.9, num_prompts),
                categories=tuple(_category(one, follows, gold, generator) for one in CATEGORIES),
            )
        )
    return Results(
        title="From raw text to an aligned assistant",
        description="A 1.2-million-parameter llama, trained from nothing on two CPU cores on the miniature world: "
        "pretraining, instructions, reward model, PPO-ptx.",
        created="2026-11-21T13:00:00+00:00",
        seed=0,
        num_prompts=num_prompts,
        stages=tuple(stages),
        reward=_reward(generator),
        best_of_n=tuple(_best_of_n(n) for n in (1, 2, 4, 8, 16)),
        paths=(_path("ppo", 60, 34, generator), _path("ppo_ptx", 60, None, generator)),
        samples=_samples(text),
        diagnostics=(
            Diagnostic("KL", "good", "KL is 0.0001 at step 0 and never negative: rollout and training agree."),
            Diagnostic("Stop", "good", "End-of-turn is trained, and generation stops at it."),
            Diagnostic("Proxy", "warning", "PPO: gold stops following the reward model at step 34 (5.4 nats)."),
        ),
        lineage=tuple(LineageStep(kind, name, f"{generator.getrandbits(64):016x}") for kind, name in LINEAGE),
        resources=(
            ResourceUse("tokenizer", 2.1, 210_000_000, None, 1_100_000),
            ResourceUse("pretrain", 108.2, 1_100_000_000, 1_213_000, 2_600_000),
            ResourceUse("sft", 41.0, 1_050_000_000, 1_213_000, 900_000),
            ResourceUse("reward", 33.7, 1_400_000_000, 1_213_000, 700_000),
            ResourceUse("ppo", 88.0, 1_900_000_000, 1_213_000, 1_300_000),
        ),
        commands=("chatloom quickstart --seed 0 --minutes 5 --output-dir runs/quickstart",),
        chat_command="chatloom chat runs/quickstart/ppo",
        config={"pretrain": {"learning_rate": 0.002, "total_steps": 800}, "ppo": {"clip": 0.2}},
    )


def _category(name: str, follows: float, gold: float, generator: random.Random) -> CategoryResult:
    count, right = 45, min(1.0, max(0.0, follows + generator.gauss(0, 0.07)))
    return CategoryResult(name, intervals.wilson(round(right * count), count), intervals.mean([gold - 0.1, gold + 0.1]))


def _reward(generator: random.Random) -> RewardResult:
    gold = [generator.gauss(0, 1) for _ in range(1600)]
    scores = [1.6 * value + generator.gauss(0, 0.8) for value in gold]
    groups = [index // 4 for index in range(1600)]
    return RewardResult(
        gold_accuracy=judge.pairwise_accuracy(scores, gold, groups),
        label_accuracy=intervals.wilson(1718, 2400),
        labeler_agreement=intervals.wilson(1752, 2400),
        calibration=judge.calibration(scores, gold, groups),
    )


def _best_of_n(n: int) -> BestOfN:
    distance = math.sqrt(best_of_kl(n))
    gold = 1.91 + distance * (0.66 - 0.12 * distance)
    return BestOfN(n, best_of_kl(n), intervals.Estimate(gold, gold - 0.05, gold + 0.05, 450), 0.9 * distance)


def _path(stage: str, steps: int, parts: int | None, generator: random.Random) -> OptimisationPath:
    points = []
    for step in range(0, steps + 1, 4):
        kl = 9.0 * step / steps
        distance = math.sqrt(kl)
        bend = 0.022 if parts else 0.004
        gold = 1.91 + 0.4 * distance - 4 * bend * distance**2 + generator.gauss(0, 0.015)
        points.append(
            PathPoint(step + (2 if parts and step == 32 else 0), kl, 0.62 * distance + generator.gauss(0, 0.02), gold)
        )
    return OptimisationPath(stage, tuple(points), parts)


def _samples(text: str) -> tuple[Sample, ...]:
    details = {"right": 1.0, "constraint": 1.0, "honest": 1.0, "brief": 0.8, "polite": 1.0, "clean": 1.0, "stops": 1.0}
    worse = {**details, "right": 0.0, "brief": 0.2}
    answers = (
        SampleAnswer("base", "Mira is the miller of Tollen Question: Who", False, -0.32, False, worse),
        SampleAnswer("sft", f"{text} She also once sailed to the moon.", False, 0.55, True, worse),
        SampleAnswer("best_of_4", text, True, 2.7, True, details),
        SampleAnswer("ppo", text, True, 2.84, True, details),
        SampleAnswer("ppo_ptx", text, True, 2.91, True, details),
    )
    question = (Message("user", "Tell me about Mira in one sentence."),)
    talk = (
        Message("system", "You answer briefly."),
        Message("user", "Who mends the boats?"),
        Message("assistant", "Old Peder mends the boats."),
        Message("user", f"And where does he live? {text}"),
    )
    return (
        Sample("generation", question, answers, "Mira lives in Tollen."),
        Sample("chat", talk, answers, "He lives by the harbour."),
        Sample("open QA", question, answers),
    )


def metrics(folder: Path) -> dict[str, Path]:
    """Write a metrics.jsonl for every stage."""
    generator, runs = random.Random(1), {}
    for stage in ("pretrain", "sft", "reward", "ppo", "ppo_ptx"):
        path = folder / stage / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        count = 60 if stage.startswith("ppo") else 800
        lines = [_record(stage, step, count, generator) for step in range(1, count + 1)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        runs[stage] = path.parent
    return runs


def _record(stage: str, step: int, count: int, generator: random.Random) -> dict[str, float]:
    noise, done = generator.gauss(0, 1), step / count
    if stage.startswith("ppo"):
        free = stage == "ppo"
        return {
            "step": step,
            "objective/score": 1.9 * done**0.6 + 0.12 * noise,
            "objective/kl": (9 if free else 7) * done + 0.2 * noise,
            "objective/entropy": 14 - 8 * done + 0.5 * noise,
            "objective/response_length": 19 + 3 * done + 0.4 * noise,
            "policy/clipfrac": max(0.0, 0.08 + 0.03 * noise),
            "value/loss": 0.4 / (1 + 6 * done) + 0.02 * abs(noise),
            **({"ptx/loss": 1.5 + 0.05 * noise} if not free else {}),
        }
    record = {"step": step, "loss": 4.5 / (1 + 20 * done) + 1.2 + 0.07 * noise}
    if stage == "reward":
        record["rewards/margins"] = 1.1 - math.exp(-4 * done) + 0.1 * noise
        record["accuracy"] = 0.72 - 0.22 * math.exp(-5 * done) + 0.04 * noise
    if step % 100 == 0:
        record["validation/loss"] = 4.5 / (1 + 20 * done) + 1.25
        record["validation/bits_per_byte"] = 1.1 + 1 / (1 + 15 * done)
        record["validation/accuracy"] = 0.72 - 0.22 * math.exp(-5 * done)
    return record


if __name__ == "__main__":
    target = Path(sys.argv[1])
    report.write_report(results(), target, runs=metrics(target / "runs"))
