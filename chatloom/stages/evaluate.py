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
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from chatloom import checkpoint, runtime
from chatloom.data.sources import read_texts
from chatloom.engine.engine import Engine
from chatloom.engine.request import SamplingParams
from chatloom.evals import generation, intervals, judge, likelihood, results
from chatloom.evals.generation import Answer
from chatloom.evals.intervals import Estimate
from chatloom.evals.report import write_report
from chatloom.models import Decoder
from chatloom.rl import diagnostics, scoring
from chatloom.rl.best_of import best_of_kl
from chatloom.rl.overoptimisation import parting_step
from chatloom.rl.rewards import RewardModelReward
from chatloom.rl.rollout import fitting_row_length, pack_episodes
from chatloom.stages.lineage import lineage_of, resources_of
from chatloom.stages.run import Run, open_run, read_manifest
from chatloom.tasks import Example, Grade, Labeler, get_task
from chatloom.train.metrics import read_metrics
from chatloom.train.progress import progress

_SHOWN = 12  # sample prompts in the report


@dataclass(frozen=True)
class Config:
    """Compare a base, a fine-tuned model and aligned models on a task's held-out prompts; writes report.html."""

    # Folder of the fine-tuned model, against which wins and KL are measured.
    model: str
    # Where report.json and report.html are written.
    output_dir: str
    # Folder of the base model, asked with worked examples. None: left out.
    base: str | None = None
    # Folder of the reward model, for best-of-n and its own accuracy. None: left out.
    reward: str | None = None
    # Folder of the model aligned by plain PPO. None: left out.
    ppo: str | None = None
    # Folder of the model aligned by PPO-ptx. None: left out.
    ppo_ptx: str | None = None
    # Held-out documents for bits per byte. None: the task's own.
    data: str | None = None
    num_documents: int = 300
    task: str = "miniature"
    # Held-out prompts.
    num_prompts: int = 400
    # The reward model chooses among this many samples of the fine-tuned model.
    best_of: int = 4
    num_shots: int = 4
    max_tokens: int = 64
    # Of the sampled answers; 1 is the distribution that the models learned and that KL is measured on.
    temperature: float = 1.0
    # The simulated labelers' noise, for the reward model's accuracy on noisy labels. None: as the rank run measured.
    labeler_noise: float | None = None
    dtype: str = "fp32"
    # Tokens of text that bits per byte and perplexity are measured in at a time. None: the model's context.
    row_length: int | None = None
    title: str = "From raw text to an aligned assistant"
    # What the report calls `model`.
    label: str = "SFT"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_prompts", 1), ("num_documents", 1), ("num_shots", 0), ("max_tokens", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.reward is not None and self.best_of < 2:
            raise ValueError(f"best_of is {self.best_of}; the reward model chooses among at least 2")
        if self.temperature < 0 or (self.temperature == 0 and self.reward is not None):
            raise ValueError(f"temperature is {self.temperature}; it must be above 0, so that samples differ")
        runtime.pick_dtype(self.dtype)


@dataclass
class _Evaluation:
    """What the parts of an evaluation share."""

    config: Config
    stage: Run
    examples: list[Example]
    texts: list[str]
    sft: checkpoint.Pretrained
    sft_likelihood: likelihood.Likelihood
    answers: dict[str, list[Answer]]
    grades: dict[str, list[Grade]]
    greedy_grades: dict[str, list[Grade]] = field(default_factory=dict)

    @property
    def greedy(self) -> SamplingParams:
        return SamplingParams(max_tokens=self.config.max_tokens)

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.config.max_tokens, temperature=self.config.temperature, seed=self.config.seed
        )


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
    sft = checkpoint.load_pretrained(config.model, dtype="fp32", device=runtime.pick_device())
    _check_tokenizers(config, sft)
    measured = _likelihood(sft.model, sft, texts, config)
    evaluation = _Evaluation(config, stage, examples, texts, sft, measured, {}, {})
    rows: list[results.StageResult] = []
    with progress("evaluate", 2 + sum(value is not None for value in inputs.values())) as advance:
        # SFT first, because everything is measured against it; the report's order is the recipe's.
        rows.append(_chat_model(evaluation, results.SFT, config.label, sft, measured))
        advance()
        if config.base is not None:
            rows.insert(0, _base(evaluation, checkpoint.load_pretrained(config.base, dtype="fp32")))
            advance()
        reward_result: results.RewardResult | None = None
        best: tuple[results.BestOfN, ...] = ()
        if config.reward is not None:
            best_row, reward_result, best = _reward(evaluation)
            rows.append(best_row)
            advance()
        for name, label, folder in (
            (results.PPO, "PPO", config.ppo),
            (results.PPO_PTX, "PPO-ptx", config.ppo_ptx),
        ):
            if folder is not None:
                opened = checkpoint.load_pretrained(folder, dtype="fp32", device=runtime.pick_device())
                rows.append(
                    _chat_model(evaluation, name, label, opened, _likelihood(opened.model, opened, texts, config))
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


def _likelihood(
    model: Decoder, opened: checkpoint.Pretrained, texts: Sequence[str], config: Config
) -> likelihood.Likelihood:
    return likelihood.measure(
        model,
        tokenizer=opened.tokenizer,
        texts=texts,
        batch_rows=16,
        row_length=config.row_length,
        autocast=config.dtype,
    )


def _engine(opened: checkpoint.Pretrained, config: Config) -> Engine:
    return Engine(opened.model, opened.tokenizer, max_batch=256, autocast=config.dtype)


# --- the models -----------------------------------------------------------------------------------------------


def _base(evaluation: _Evaluation, opened: checkpoint.Pretrained) -> results.StageResult:
    config = evaluation.config
    pool = get_task(config.task).examples("train", 400, seed=config.seed)
    greedy, sampled = (
        generation.answer_few_shot(
            _engine(opened, config),
            tokenizer=opened.tokenizer,
            pool=pool,
            examples=evaluation.examples,
            sampling=sampling,
            context_length=opened.model.config.context_length,
            num_shots=config.num_shots,
            seed=config.seed,
        )
        for sampling in (evaluation.greedy, evaluation.sampling)
    )
    measured = _likelihood(opened.model, opened, evaluation.texts, config)
    return _row(evaluation, results.BASE, "Base, few-shot", sampled, greedy=greedy, measured=measured)


def _chat_model(
    evaluation: _Evaluation, name: str, label: str, opened: checkpoint.Pretrained, measured: likelihood.Likelihood
) -> results.StageResult:
    greedy, sampled = (
        generation.answer(
            _engine(opened, evaluation.config),
            chat_format=opened.chat,
            examples=evaluation.examples,
            sampling=sampling,
        )
        for sampling in (evaluation.greedy, evaluation.sampling)
    )
    kl = None if name == results.SFT else _kl_from_sft(evaluation, opened.model, sampled)
    return _row(evaluation, name, label, sampled, greedy=greedy, measured=measured, kl=kl)


def _kl_from_sft(evaluation: _Evaluation, model: Decoder, answers: Sequence[Answer]) -> Estimate:
    """Mean over answers of log p(answer) - log p_sft(answer), in nats."""
    rollouts = [answer.rollout for answer in answers]
    config = evaluation.config
    length = fitting_row_length(max(map(len, rollouts)), model.config.context_length)
    episodes = pack_episodes(rollouts, row_length=length, pad=evaluation.sft.tokenizer.filler)
    options = {"temperature": config.temperature or 1.0, "microbatch_rows": 32, "dtype": config.dtype}
    ours = scoring.logprobs(model, episodes, **options)  # type: ignore[arg-type]
    theirs = scoring.logprobs(evaluation.sft.model, episodes, **options)  # type: ignore[arg-type]
    return intervals.mean((ours - theirs).sum(dim=1).tolist())


def _row(
    evaluation: _Evaluation,
    name: str,
    label: str,
    sampled: list[Answer],
    *,
    greedy: list[Answer] | None = None,
    measured: likelihood.Likelihood | None = None,
    kl: Estimate | None = None,
) -> results.StageResult:
    """Grade a model's answers; wins are against SFT's answers to the same prompts, sampled alike."""
    grades, summary = _graded(evaluation, sampled)
    evaluation.answers[name], evaluation.grades[name] = sampled, grades
    greedy_grades, followed = (grades, summary) if greedy is None else _graded(evaluation, greedy)
    if greedy is not None:
        evaluation.greedy_grades[name] = greedy_grades
    win_rate = win_rate_greedy = None
    if name != results.SFT:
        win_rate = _wins(grades, evaluation.grades[results.SFT])
        if greedy is not None and results.SFT in evaluation.greedy_grades:
            win_rate_greedy = _wins(greedy_grades, evaluation.greedy_grades[results.SFT])
    best = evaluation.grades.get(f"{results.BEST_OF_N}{evaluation.config.best_of}")
    over_best = None
    if best is not None and name in (results.PPO, results.PPO_PTX):
        over_best = intervals.mean([ours.score - theirs.score for ours, theirs in zip(grades, best, strict=True)])
    has_rise = measured is not None and name not in (results.SFT, results.BASE)
    return results.StageResult(
        name=name,
        label=label,
        follows=None if greedy is None else followed.follows,
        follows_sampled=summary.follows,
        gold=summary.gold,
        win_rate=win_rate,
        win_rate_greedy=win_rate_greedy,
        gold_over_best=over_best,
        bits_per_byte=None if measured is None else measured.bits_per_byte(),
        bits_per_byte_rise=(
            likelihood.rise(measured, evaluation.sft_likelihood) if measured is not None and has_rise else None
        ),
        perplexity_rise=(
            likelihood.perplexity_rise(measured, evaluation.sft_likelihood)
            if measured is not None and has_rise
            else None
        ),
        stop_rate=summary.stop_rate,
        kl_nats=kl,
        response_tokens=summary.response_tokens,
        categories=followed.categories,
    )


def _wins(ours: Sequence[Grade], theirs: Sequence[Grade]) -> Estimate:
    return judge.compare([grade.score for grade in ours], [grade.score for grade in theirs]).win_rate


def _graded(evaluation: _Evaluation, answers: list[Answer]) -> tuple[list[Grade], generation.Summary]:
    grades = generation.grade(get_task(evaluation.config.task), examples=evaluation.examples, answers=answers)
    return grades, generation.summarise(examples=evaluation.examples, answers=answers, grades=grades)


# --- the reward model -----------------------------------------------------------------------------------------


def _reward(
    evaluation: _Evaluation,
) -> tuple[results.StageResult, results.RewardResult, tuple[results.BestOfN, ...]]:
    """Best-of-n of the fine-tuned model by the reward model, and how well the reward model knows the gold score."""
    config = evaluation.config
    assert config.reward is not None
    opened = checkpoint.load_reward(config.reward, dtype="fp32", device=runtime.pick_device())
    reward = RewardModelReward(opened.model, opened.chat, dtype=config.dtype)
    task = get_task(config.task)
    answers = generation.answer(
        _engine(evaluation.sft, config),
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
    row = _row(evaluation, name, f"Best of {config.best_of}", chosen)
    ordered = any(len({gold[index] for index in range(at, at + config.best_of)}) > 1 for at in starts)
    if not ordered:  # every prompt's answers are worth the same, so there is no pair to judge by
        return row, results.RewardResult(), tuple(best_rows)
    found = results.RewardResult(
        gold_accuracy=judge.pairwise_accuracy(proxy, gold, groups),
        calibration=judge.calibration(proxy, gold, groups),
        **_label_accuracy(evaluation, answers, proxy),
    )
    return row, found, tuple(best_rows)


def _label_accuracy(evaluation: _Evaluation, answers: Sequence[Answer], proxy: Sequence[float]) -> dict[str, Estimate]:
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


# --- what else the report shows -------------------------------------------------------------------------------


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


def _samples(evaluation: _Evaluation) -> tuple[results.Sample, ...]:
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


def _diagnostics(evaluation: _Evaluation, rows: Sequence[results.StageResult]) -> tuple[results.Diagnostic, ...]:
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
