"""Generation: let a model answer held-out examples, let the task grade the answers, and sum up with intervals.

Chat models are asked in their own chat format and stop at its stop tokens. A model that has only read documents has
never seen a chat token, so it is asked in plain text, `Question: ...` and `Answer: ...` after a few worked examples
(few-shot prompting: Brown et al. 2020), and it stops at the end of the line. To be fair to it, the worked examples
come from the category of the question where there are enough, and what does not fit its context is left out from
the front. Sampling needs a seed: the same call gives the same answers.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from chatloom.chat.render import ChatFormat
from chatloom.engine.request import SamplingParams
from chatloom.evals import intervals
from chatloom.evals.intervals import Estimate
from chatloom.evals.results import CategoryResult
from chatloom.rl.rollout import Generator, Rollout, collect
from chatloom.tasks import Example, Grade, Task
from chatloom.tokenizers.bpe import Tokenizer

END_OF_LINE = "\n"


@dataclass(frozen=True, eq=False)
class Answer:
    """A response and the example it answers. `sample` counts the answers to one example from 0."""

    example_id: str
    sample: int
    rollout: Rollout  # tokens and log-probabilities, so that KL can be measured on the very same answers

    @property
    def text(self) -> str:
        """What is graded: the response without white space around it."""
        return self.rollout.text.strip()

    @property
    def stopped(self) -> bool:
        """Whether it ended by itself rather than at the token limit."""
        return self.rollout.stopped


@dataclass(frozen=True)
class Summary:
    """What a model reached: over all examples and in each category, in order of first appearance."""

    follows: Estimate
    gold: Estimate
    stop_rate: Estimate
    response_tokens: Estimate
    categories: tuple[CategoryResult, ...]


def answer(
    engine: Generator,
    *,
    chat_format: ChatFormat,
    examples: Sequence[Example],
    sampling: SamplingParams,
    num_samples: int = 1,
) -> list[Answer]:
    """Answer every example in the model's chat format, `num_samples` times each.

    The answers of an example follow one another. The format's stop tokens are added to those of `sampling`. Raises
    ValueError for sampling without a seed, and for several samples at temperature 0, which would all be the same.
    """
    _check_repeatable(sampling, num_samples)
    stops = tuple(dict.fromkeys((*sampling.stop_tokens, *chat_format.stop_tokens)))
    asked = _repeated(examples, num_samples)
    prompts = [example.prompt for example, _ in asked]
    rollouts = collect(engine, chat_format, prompts, replace(sampling, stop_tokens=stops))
    return [Answer(example.id, sample, rollout) for (example, sample), rollout in zip(asked, rollouts, strict=True)]


def answer_few_shot(
    engine: Generator,
    *,
    tokenizer: Tokenizer,
    pool: Sequence[Example],
    examples: Sequence[Example],
    sampling: SamplingParams,
    context_length: int,
    num_shots: int = 4,
    num_samples: int = 1,
    seed: int = 0,
) -> list[Answer]:
    """Answer every example with a documents-only model, after `num_shots` worked examples from `pool`.

    Worked examples are left out from the front until prompt and `sampling.max_tokens` fit `context_length`. Raises
    ValueError as `answer` does, and when an example does not fit even without worked examples.
    """
    _check_repeatable(sampling, num_samples)
    room = context_length - sampling.max_tokens
    asked = _repeated(examples, num_samples)
    prompts = []
    for example, sample in asked:
        if sample == 0:
            shots = choose_shots(pool, example=example, count=num_shots, seed=seed)
            prompt = _fitting_prompt(shots, example, tokenizer=tokenizer, room=room)
        prompts.append(prompt)
    stops = tuple(dict.fromkeys((*sampling.stop, END_OF_LINE)))
    ends = [tokenizer.eos] if tokenizer.eos_token is not None else []
    stop_tokens = tuple(dict.fromkeys((*sampling.stop_tokens, *ends)))
    done = engine.generate(prompts, replace(sampling, stop=stops, stop_tokens=stop_tokens))
    return [
        Answer(
            example.id,
            sample,
            Rollout(
                conversation=example.prompt,
                prompt=prompt,
                response=one.tokens,
                logprobs=one.logprobs,
                text=one.text,
                stopped=one.finish_reason == "stop",
            ),
        )
        for (example, sample), prompt, one in zip(asked, prompts, done, strict=True)
    ]


def choose_shots(pool: Sequence[Example], *, example: Example, count: int, seed: int = 0) -> list[Example]:
    """`count` worked examples with references: of the same category first, never the example itself.

    The choice depends on the seed and the example alone, so it is the same however many examples are evaluated.
    """
    able = [other for other in pool if other.reference.strip() and other.id != example.id]
    if len(able) < count:
        raise ValueError(f"{count} worked examples are asked for and the pool has {len(able)} with a reference")
    generator = random.Random(f"{seed}:{example.id}")
    alike = [other for other in able if other.category == example.category]
    rest = [other for other in able if other.category != example.category]
    shots = generator.sample(alike, min(count, len(alike)))
    # Those of the same category come last, next to the question.
    return generator.sample(rest, count - len(shots)) + shots


def few_shot_prompt(shots: Sequence[Example], example: Example) -> str:
    """Worked examples and the question as plain text, ending in "Answer:" without a space.

    Each turn is one line, because the answer ends with its line; a conversation of several turns shows them all, a
    system message as "Instruction: ...".
    """
    blocks = [_as_lines(shot) + f" {_one_line(shot.reference)}\n" for shot in shots]
    return "\n".join([*blocks, _as_lines(example)])


def grade(task: Task, *, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Grade]:
    """One grade an answer. Raises ValueError for an answer to an example that is not among `examples`."""
    by_id = {example.id: example for example in examples}
    if missing := [answer.example_id for answer in answers if answer.example_id not in by_id]:
        raise ValueError(f"{len(missing)} answers belong to no given example, the first to {missing[0]!r}")
    return [task.grade(by_id[item.example_id], item.text, stopped=item.stopped) for item in answers]


def summarise(*, examples: Sequence[Example], answers: Sequence[Answer], grades: Sequence[Grade]) -> Summary:
    """Shares with Wilson's interval and means with the normal one, clustered by example. Needs one grade an answer."""
    if len(answers) != len(grades) or not answers:
        raise ValueError(f"{len(answers)} answers and {len(grades)} grades: need one grade for every answer")
    category_of = {example.id: example.category for example in examples}
    prompts = [item.example_id for item in answers]
    by_category: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_category.setdefault(category_of[prompt], []).append(index)
    everything = list(range(len(answers)))
    follows, gold = _follows_and_gold(prompts, grades, everything)
    return Summary(
        follows=follows,
        gold=gold,
        stop_rate=intervals.proportion([float(item.stopped) for item in answers], groups=prompts),
        response_tokens=intervals.mean([float(len(item.rollout.response)) for item in answers], groups=prompts),
        categories=tuple(
            CategoryResult(category, *_follows_and_gold(prompts, grades, members))
            for category, members in by_category.items()
        ),
    )


def _follows_and_gold(
    prompts: Sequence[str], grades: Sequence[Grade], members: Sequence[int]
) -> tuple[Estimate, Estimate]:
    groups = [prompts[index] for index in members]
    follows = intervals.proportion([float(grades[index].follows) for index in members], groups=groups)
    return follows, intervals.mean([grades[index].score for index in members], groups=groups)


def _repeated(examples: Sequence[Example], num_samples: int) -> list[tuple[Example, int]]:
    return [(example, sample) for example in examples for sample in range(num_samples)]


def _check_repeatable(sampling: SamplingParams, num_samples: int) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1")
    if sampling.temperature > 0 and sampling.seed is None:
        raise ValueError("an evaluation that samples needs a seed: set sampling.seed, or temperature to 0")
    if sampling.temperature == 0 and num_samples > 1:
        raise ValueError(f"{num_samples} samples at temperature 0 are one answer repeated; raise the temperature")


def _fitting_prompt(shots: Sequence[Example], example: Example, *, tokenizer: Tokenizer, room: int) -> list[int]:
    for skipped in range(len(shots) + 1):
        tokens = [*tokenizer.document_start, *tokenizer.encode(few_shot_prompt(shots[skipped:], example))]
        if len(tokens) <= room:
            return tokens
    raise ValueError(
        f"example {example.id!r} takes {len(tokens)} tokens and the context leaves room for {room}: "
        "lower max_tokens or leave the example out"
    )


def _as_lines(example: Example) -> str:
    names = {"system": "Instruction", "user": "Question", "assistant": "Answer"}
    turns = [f"{names[message.role]}: {_one_line(message.content)}" for message in example.prompt]
    return "\n".join([*turns, "Answer:"])


def _one_line(text: str) -> str:
    return " ".join(text.split())
