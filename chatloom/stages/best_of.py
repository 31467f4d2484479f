"""The reward model's part of an evaluation: best-of-n of the fine-tuned model, and how well it knows the gold score."""

from collections.abc import Sequence
from pathlib import Path

from chatloom import checkpoint, runtime
from chatloom.evals import generation, intervals, judge, results
from chatloom.evals.generation import Answer
from chatloom.evals.intervals import Estimate
from chatloom.rl.best_of import best_of_kl
from chatloom.rl.rewards import RewardModelReward
from chatloom.stages.evaluation import Evaluation, engine_of, row_of
from chatloom.stages.run import read_manifest
from chatloom.tasks import Labeler, get_task


def reward_row(
    evaluation: Evaluation,
) -> tuple[results.StageResult, results.RewardResult, tuple[results.BestOfN, ...]]:
    """Best-of-n of the fine-tuned model by the reward model, and how well the reward model knows the gold score."""
    config = evaluation.config
    assert config.reward is not None
    opened = checkpoint.load_reward(config.reward, dtype="fp32", device=runtime.pick_device())
    reward = RewardModelReward(opened.model, opened.chat, dtype=config.dtype)
    task = get_task(config.task)
    answers = generation.answer(
        engine_of(evaluation.sft, config),
        chat_format=evaluation.sft.chat,
        examples=evaluation.examples,
        sampling=evaluation.sampling,
        num_samples=config.best_of,
    )
    rollouts = [answer.rollout for answer in answers]
    proxy = reward.score([each.answered for each in rollouts], stopped=[each.stopped for each in rollouts]).tolist()
    grades = generation.grade(task, examples=evaluation.examples, answers=answers)
    gold = [grade.score for grade in grades]
    groups = [answer.example_id for answer in answers]
    starts = range(0, len(answers), config.best_of)
    best_rows = []
    chosen: list[Answer] = []
    for n in sorted({1, 2, config.best_of}):
        picks = [max(range(at, at + n), key=lambda index: proxy[index]) for at in starts]
        best_rows.append(
            results.BestOfN(
                n=n,
                kl_nats=best_of_kl(n),
                gold=intervals.mean([gold[index] for index in picks]),
                proxy=sum(proxy[index] for index in picks) / len(picks),
            )
        )
        chosen = [answers[index] for index in picks]
    name = f"{results.BEST_OF_N}{config.best_of}"
    row = row_of(evaluation, name, f"Best of {config.best_of}", chosen)
    ordered = any(len({gold[index] for index in range(at, at + config.best_of)}) > 1 for at in starts)
    if not ordered:  # every prompt's answers are worth the same, so there is no pair to judge by
        return row, results.RewardResult(), tuple(best_rows)
    found = results.RewardResult(
        gold_accuracy=judge.pairwise_accuracy(proxy, gold, groups),
        calibration=judge.calibration(proxy, gold, groups),
        **_label_accuracy(evaluation, answers, proxy),
    )
    return row, found, tuple(best_rows)


def _label_accuracy(evaluation: Evaluation, answers: Sequence[Answer], proxy: Sequence[float]) -> dict[str, Estimate]:
    """Accuracy on a noisy labeler's rankings, and how often two such labelers agree."""
    config = evaluation.config
    noise = config.labeler_noise
    if noise is None:
        noise = _measured_noise(Path(str(config.reward)))
    if noise is None:
        return {}
    task = get_task(config.task)
    labelers = [Labeler(config.seed + 1_000 + number, task=task, noise=noise) for number in range(2)]
    rankings: list[list[list[float]]] = [[], []]
    labels: list[float] = []
    for index, example in enumerate(evaluation.examples):
        mine = answers[index * config.best_of : (index + 1) * config.best_of]
        for number, labeler in enumerate(labelers):
            ranks = labeler.rank(example, [each.text for each in mine], stopped=[each.stopped for each in mine])
            rankings[number].append([float(rank) for rank in ranks])
        labels += [-rank for rank in rankings[0][-1]]
    return {
        "label_accuracy": judge.pairwise_accuracy(proxy, labels, [answer.example_id for answer in answers]),
        "labeler_agreement": judge.ranking_agreement(rankings[0], rankings[1]),
    }


def _measured_noise(reward: Path) -> float | None:
    """The noise that the rank run behind a reward model measured, from its manifest."""
    for entry in (read_manifest(reward) or {}).get("lineage", []):
        manifest = read_manifest(entry["folder"]) if entry["stage"] == "rank" else None
        if manifest is not None:
            return float(manifest["results"]["noise"])
    return None
