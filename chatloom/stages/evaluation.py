"""What the parts of an evaluation share: its options, answers and grades so far, and a model's row of the report."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from chatloom import checkpoint, runtime
from chatloom.engine.cache_config import CacheConfig
from chatloom.engine.engine import Engine
from chatloom.engine.lowered import as_decoded
from chatloom.engine.request import SamplingParams
from chatloom.evals import generation, intervals, judge, likelihood, results
from chatloom.evals.generation import Answer
from chatloom.evals.intervals import Estimate
from chatloom.models import Decoder
from chatloom.models.longer import ContextConfig
from chatloom.rl import scoring
from chatloom.rl.rollout import fitting_row_length, pack_episodes
from chatloom.stages.run import Run
from chatloom.tasks import Example, Grade, get_task


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
    # fp32, bf16, int8 or int4, of the models that are evaluated; a reward model is read in bf16 beside the last two.
    dtype: str = "fp32"
    # Tokens of text that bits per byte and perplexity are measured in at a time. None: the model's context.
    row_length: int | None = None
    title: str = "From raw text to an aligned assistant"
    # What the report calls `model`.
    label: str = "SFT"
    seed: int = 0
    context: ContextConfig = field(default_factory=ContextConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        for name, least in (("num_prompts", 1), ("num_documents", 1), ("num_shots", 0), ("max_tokens", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.reward is not None and self.best_of < 2:
            raise ValueError(f"best_of is {self.best_of}; the reward model chooses among at least 2")
        if self.temperature < 0 or (self.temperature == 0 and self.reward is not None):
            raise ValueError(f"temperature is {self.temperature}; it must be above 0, so that samples differ")
        runtime.pick_dtype(self.dtype, quantised=True)


@dataclass
class Evaluation:
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
        """How answers are asked for that say whether instructions are followed."""
        return SamplingParams(max_tokens=self.config.max_tokens)

    @property
    def sampling(self) -> SamplingParams:
        """How answers are asked for that wins, gold score and KL are of."""
        return SamplingParams(
            max_tokens=self.config.max_tokens, temperature=self.config.temperature, seed=self.config.seed
        )


def open_model(folder: str, config: Config) -> checkpoint.Pretrained:
    """One of the language models that are compared."""
    return checkpoint.load_pretrained(folder, dtype="fp32", device=runtime.pick_device(), context=config.context)


def likelihood_of(
    model: Decoder, opened: checkpoint.Pretrained, texts: Sequence[str], config: Config
) -> likelihood.Likelihood:
    """Nats and bytes of the held-out documents."""
    return likelihood.measure(
        as_decoded(model, config.dtype),
        tokenizer=opened.tokenizer,
        texts=texts,
        batch_rows=16,
        row_length=config.row_length,
        autocast=config.dtype,
    )


def engine_of(opened: checkpoint.Pretrained, config: Config) -> Engine:
    """What generates a model's answers."""
    return Engine(opened.model, opened.tokenizer, max_batch=256, autocast=config.dtype, **config.cache.options)


# --- the models -----------------------------------------------------------------------------------------------


def base_row(evaluation: Evaluation, opened: checkpoint.Pretrained) -> results.StageResult:
    """The row of a model that never saw a chat, asked with worked examples."""
    config = evaluation.config
    pool = get_task(config.task).examples("train", 400, seed=config.seed)
    greedy, sampled = (
        generation.answer_few_shot(
            engine_of(opened, config),
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
    measured = likelihood_of(opened.model, opened, evaluation.texts, config)
    return row_of(evaluation, results.BASE, "Base, few-shot", sampled, greedy=greedy, measured=measured)


def chat_row(
    evaluation: Evaluation, name: str, label: str, opened: checkpoint.Pretrained, measured: likelihood.Likelihood
) -> results.StageResult:
    """The row of a model that is asked in its chat format."""
    greedy, sampled = (
        generation.answer(
            engine_of(opened, evaluation.config),
            chat_format=opened.chat,
            examples=evaluation.examples,
            sampling=sampling,
        )
        for sampling in (evaluation.greedy, evaluation.sampling)
    )
    kl = None if name == results.SFT else _kl_from_sft(evaluation, opened.model, sampled)
    return row_of(evaluation, name, label, sampled, greedy=greedy, measured=measured, kl=kl)


def _kl_from_sft(evaluation: Evaluation, model: Decoder, answers: Sequence[Answer]) -> Estimate:
    """Mean over answers of log p(answer) - log p_sft(answer), in nats."""
    rollouts = [answer.rollout for answer in answers]
    config = evaluation.config
    length = fitting_row_length(max(map(len, rollouts)), model.config.context_length)
    episodes = pack_episodes(rollouts, row_length=length, pad=evaluation.sft.tokenizer.filler)
    options = {"temperature": config.temperature or 1.0, "microbatch_rows": 32, "dtype": config.dtype}
    ours, theirs = (
        scoring.logprobs(as_decoded(each, config.dtype), episodes, **options)  # type: ignore[arg-type]
        for each in (model, evaluation.sft.model)
    )
    return intervals.mean((ours - theirs).sum(dim=1).tolist())


def row_of(
    evaluation: Evaluation,
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


def _graded(evaluation: Evaluation, answers: list[Answer]) -> tuple[list[Grade], generation.Summary]:
    grades = generation.grade(get_task(evaluation.config.task), examples=evaluation.examples, answers=answers)
    return grades, generation.summarise(examples=evaluation.examples, answers=answers, grades=grades)
