"""Compare models on prompts that none of them was trained on, and write the report that says why they differ.

Everything is judged by the task's gold score, without noise: the share of instructions followed, wins against the
fine-tuned model on the same prompts, best-of-n by the reward model, KL from the fine-tuned model, and bits per byte
on held-out documents (what alignment costs elsewhere). Whether instructions are followed is asked of greedy answers;
wins, gold score and KL are of answers sampled from the distribution that the models learned and PPO changes. The base
model, which never saw a chat, is asked with worked examples (Brown et al. 2020). Every figure comes with its 95 %
interval.
"""

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from chatloom import checkpoint, runtime
from chatloom.data.sources import read_texts
from chatloom.evals import results
from chatloom.evals.intervals import Estimate
from chatloom.evals.report import write_report
from chatloom.rl import diagnostics
from chatloom.rl.overoptimisation import parting_step
from chatloom.stages import best_of
from chatloom.stages.evaluation import Config, Evaluation, base_row, chat_row, likelihood_of, open_model
from chatloom.stages.lineage import lineage_of, resources_of
from chatloom.stages.run import open_run, read_manifest
from chatloom.tasks import get_task
from chatloom.train.metrics import read_metrics
from chatloom.train.progress import progress

__all__ = ["Config", "folders", "run"]
_SHOWN = 12  # sample prompts in the report


def run(config: Config) -> results.Results:
    """Answer, grade, compare, and write the report."""
    inputs: dict[str, str | Path | None] = {
        name: getattr(config, name) for name in ("model", "base", "reward", "ppo", "ppo_ptx", "data")
    }
    stage = open_run("evaluate", config, inputs=inputs)
    if stage.complete:
        found = results.read(stage.folder / "report.json")
        stage.say(f"done before: {stage.folder / 'report.html'}")
        return found
    task = get_task(config.task)
    examples = task.examples("test", config.num_prompts, seed=config.seed)
    texts = _held_out_texts(config)
    sft = open_model(config.model, config)
    _check_tokenizers(config, sft)
    measured = likelihood_of(sft.model, sft, texts, config)
    evaluation = Evaluation(config, stage, examples, texts, sft, measured, {}, {})
    rows: list[results.StageResult] = []
    with progress("evaluate", 2 + sum(value is not None for value in inputs.values())) as advance:
        # SFT first, because everything is measured against it; the report's order is the recipe's.
        rows.append(chat_row(evaluation, results.SFT, config.label, sft, measured))
        advance()
        if config.base is not None:
            rows.insert(0, base_row(evaluation, open_model(config.base, config)))
            advance()
        reward_result: results.RewardResult | None = None
        best: tuple[results.BestOfN, ...] = ()
        if config.reward is not None:
            best_row, reward_result, best = best_of.reward_row(evaluation)
            rows.append(best_row)
            advance()
        for name, label, folder in (
            (results.PPO, "PPO", config.ppo),
            (results.PPO_PTX, "PPO-ptx", config.ppo_ptx),
        ):
            if folder is not None:
                opened = open_model(folder, config)
                rows.append(
                    chat_row(evaluation, name, label, opened, likelihood_of(opened.model, opened, texts, config))
                )
                advance()
    behind = folders(config)
    found = results.Results(
        title=config.title,
        stages=tuple(rows),
        description=f"{len(examples)} held-out prompts of the {config.task} task. Follows: greedy answers; "
        f"everything else: answers sampled at temperature {config.temperature:g}. With 95 % intervals.",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=config.seed,
        num_prompts=len(examples),
        reward=reward_result,
        best_of_n=best,
        paths=_paths(config),
        samples=_samples(evaluation),
        diagnostics=_diagnostics(evaluation, rows),
        lineage=lineage_of(behind),
        resources=(*resources_of(behind), results.ResourceUse("evaluate", stage.seconds, runtime.peak_memory_bytes())),
        chat_command=shlex.join(["chatloom", "chat", config.ppo_ptx or config.ppo or config.model]),
        config={name: (read_manifest(folder) or {}).get("config", {}) for name, folder in behind.items()},
    )
    metrics = {name: folder for name, folder in behind.items() if (folder / "metrics.jsonl").exists()}
    page = write_report(found, stage.folder, runs=metrics)
    stage.finish(report=str(page))
    return found


def _check_tokenizers(config: Config, sft: checkpoint.Pretrained) -> None:
    """ValueError unless the aligned models have SFT's vocabulary: KL is between distributions over one."""
    for name, folder in (("ppo", config.ppo), ("ppo_ptx", config.ppo_ptx)):
        if folder is not None and checkpoint.load_chat(folder).tokenizer.digest() != sft.tokenizer.digest():
            raise ValueError(
                f"--{name.replace('_', '-')} {folder} and --model {config.model} have different tokenizers, so there "
                "is no KL between them; give the model that it was aligned from"
            )


def folders(config: Config) -> dict[str, Path]:
    """The run folders behind the report, by stage."""
    named = {
        "pretrain": config.base,
        "sft": config.model,
        "reward": config.reward,
        "ppo": config.ppo,
        "ppo_ptx": config.ppo_ptx,
    }
    return {name: Path(folder) for name, folder in named.items() if folder is not None}


def _held_out_texts(config: Config) -> list[str]:
    if config.data is not None:
        return list(islice(read_texts(config.data), config.num_documents))
    task: Any = get_task(config.task)
    if not hasattr(task, "documents"):
        raise ValueError(f"task {config.task!r} has no documents of its own; give held-out text with --data")
    # A seed that no corpus is written with, so that these documents are new to every model.
    return list(task.documents(seed=config.seed + 987_654_321, count=config.num_documents))


def _paths(config: Config) -> tuple[results.OptimisationPath, ...]:
    """Proxy and gold along each PPO run that logged both."""
    found = []
    for name, folder in ((results.PPO, config.ppo), (results.PPO_PTX, config.ppo_ptx)):
        if folder is None or not (Path(folder) / "metrics.jsonl").exists():
            continue
        records = [record for record in read_metrics(Path(folder) / "metrics.jsonl") if "objective/gold" in record]
        if not records:
            continue
        points = tuple(
            results.PathPoint(
                step=record["step"],
                kl_nats=record["objective/kl"],
                proxy=record["objective/score"],
                gold=record["objective/gold"],
            )
            for record in records
        )
        parts = parting_step(
            [point.kl_nats for point in points],
            [point.proxy for point in points],
            [point.gold for point in points],
            steps=[point.step for point in points],
        )
        found.append(results.OptimisationPath(name, points, parts))
    return tuple(found)


def _samples(evaluation: Evaluation) -> tuple[results.Sample, ...]:
    """A few prompts of different use cases with every model's answer."""
    order = [results.BASE, results.SFT, f"{results.BEST_OF_N}{evaluation.config.best_of}", results.PPO, results.PPO_PTX]
    shown: dict[str, list[int]] = {}
    for index, example in enumerate(evaluation.examples):
        shown.setdefault(example.category, []).append(index)
    picks = [indices[turn] for turn in range(2) for indices in shown.values() if turn < len(indices)][:_SHOWN]
    return tuple(
        results.Sample(
            category=evaluation.examples[index].category,
            prompt=evaluation.examples[index].prompt,
            reference=evaluation.examples[index].reference,
            answers=tuple(
                results.SampleAnswer(
                    stage=name,
                    text=evaluation.answers[name][index].text,
                    follows=evaluation.grades[name][index].follows,
                    score=evaluation.grades[name][index].score,
                    stopped=evaluation.answers[name][index].stopped,
                    details=evaluation.grades[name][index].details,
                )
                for name in order
                if name in evaluation.answers
            ),
        )
        for index in picks
    )


def _diagnostics(evaluation: Evaluation, rows: Sequence[results.StageResult]) -> tuple[results.Diagnostic, ...]:
    """The stop check and the KL check, in sentences."""
    chat = evaluation.sft.chat
    task: Any = get_task(evaluation.config.task)
    found: list[results.Diagnostic] = []
    if hasattr(task, "demonstrations"):
        rendered = chat.render_many(task.demonstrations(64, seed=evaluation.config.seed))
        stop_rate = next((row.stop_rate.value for row in rows if row.name == results.SFT and row.stop_rate), None)
        findings = diagnostics.check_stop(
            rendered, end_of_turn=chat.end_of_turn, stop_tokens=chat.stop_tokens, stop_rate=stop_rate
        )
        good = "The end of turn is trained in every sample, it is what stops generation, and answers do stop."
        found += [results.Diagnostic("Stop", "bad", finding.message) for finding in findings] or [
            results.Diagnostic("Stop", "good", good)
        ]
    for row in rows:
        if row.kl_nats is not None:
            found.append(_kl_verdict(row.label, row.kl_nats))
    return tuple(found)


def _kl_verdict(label: str, kl: Estimate) -> results.Diagnostic:
    if kl.high < 0:
        return results.Diagnostic(
            "KL",
            "bad",
            f"The KL of {label} from SFT is {kl.value:.2f} nats: a KL cannot be negative, so the two "
            "were not computed alike (sampling warpers, dropout, padding, number type or another reference).",
        )
    return results.Diagnostic(
        "KL", "good", f"{label} is {kl.value:.2f} nats an answer from SFT, positive as a KL must be."
    )
