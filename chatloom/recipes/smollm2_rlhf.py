"""RLHF on a real chat model on a laptop: SmolLM2-135M-Instruct learns a preference, and the report says how well.

Comparisons → reward model → PPO-ptx → report. The preference is that of the task "concise": short, honest, in the
asked form; the labeler who ranks the model's own answers is simulated and as noisy as InstructGPT's. Everything is
trained with LoRA: policy, reference, reward model and critic share one copy of the base weights. The text for ptx is
what the model itself writes when it is begun with nothing, so that no corpus is needed; perplexity is measured on text
that people wrote: the docstrings of Python's standard library, or a file of one's own.
"""

import ast
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from chatloom import catalogue, runtime
from chatloom.adapters import AdapterConfig
from chatloom.checkpoint import load_pretrained
from chatloom.engine.engine import Engine
from chatloom.engine.request import SamplingParams
from chatloom.evals import results as schema
from chatloom.evals.claims import interval_percent, percent
from chatloom.recipes import running
from chatloom.rl import training
from chatloom.rl.config import PPOConfig, RewardModelConfig
from chatloom.stages import evaluate, ppo, rank, reward
from chatloom.tasks.concise import Concise
from chatloom.train.train_config import TrainConfig

_TASK = "concise"
# Of rankings, rollouts and evaluation: at 1 a model this small writes nonsense. Ziegler et al. (2019) sampled at 0.7.
_TEMPERATURE = 0.7
_TEXT_TOKENS = 128  # of a piece of ptx text, and of a row of it
_CONTEXT = 256  # of held-out text in which perplexity is measured
WIN_RATE, PERPLEXITY_RISE = 0.75, 0.02


@dataclass(frozen=True)
class Config:
    """Align SmolLM2-135M-Instruct with a stated preference; interrupted, the same command goes on where it stopped."""

    # Where everything is written.
    output_dir: str = "runs/smollm2-rlhf"
    # The chat model: smollm2, or whatever else `chatloom chat` opens.
    model: str = "smollm2"
    # Held-out text for perplexity, a file or folder. None: docstrings of Python's standard library.
    text: str | None = None
    # Of everything that is random.
    seed: int = 0
    # A run of seconds that exercises everything and learns little; for tests.
    tiny: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be at least 0")


@dataclass(frozen=True)
class Amounts:
    """How much of everything."""

    ranked_prompts: int = 200
    responses: int = 4
    agreement: float = 0.73  # of two labelers; InstructGPT's people 72.6 %
    max_tokens: int = 64
    reward_epochs: int = 1
    ptx_texts: int = 40
    iterations: int = 10
    episodes: int = 64
    evaluated: int = 145
    held_out_documents: int = 48


TINY = Amounts(
    ranked_prompts=12,
    agreement=0.6,  # what a model without sense writes is too alike for more
    max_tokens=8,
    ptx_texts=4,
    responses=4,
    iterations=2,
    episodes=8,
    evaluated=6,
    held_out_documents=4,
)


def tiny(output_dir: str, *, model: str) -> Config:
    """The recipe in seconds, on a model that is tiny too."""
    return Config(output_dir=output_dir, model=model, tiny=True)


def stages(config: Config) -> dict[str, tuple[Any, Any]]:
    """Name -> (stage module, its config), in the order in which they run."""
    size, root, seed = TINY if config.tiny else Amounts(), Path(config.output_dir), config.seed
    data = {name: str(root / "data" / f"{name}.jsonl") for name in ("prompts", "own_text", "held_out")}
    folder = {name: str(root / name) for name in ("comparisons", "reward", "ppo", "evaluation")}
    lora = AdapterConfig(adapter="lora")
    shared: dict[str, Any] = {"dtype": "bf16", "seed": seed, "weight_decay": 0.0}
    return {
        "comparisons": (
            rank,
            rank.Config(
                model=config.model,
                output_dir=folder["comparisons"],
                task=_TASK,
                num_prompts=size.ranked_prompts,
                fewest_responses=size.responses,
                most_responses=size.responses,
                max_tokens=size.max_tokens,
                temperature=_TEMPERATURE,
                agreement=size.agreement,
                dtype="bf16",
                seed=seed,
            ),
        ),
        "reward": (
            reward,
            reward.Config(
                model=config.model,
                data=str(Path(folder["comparisons"]) / rank.TRAIN),
                validation_data=str(Path(folder["comparisons"]) / rank.VALIDATION),
                output_dir=folder["reward"],
                epochs=size.reward_epochs,
                # Even odds to begin with: a few hundred comparisons are too few to unlearn a random head first.
                head=RewardModelConfig(reward_head_init="zero"),
                adaptation=lora,
                train=TrainConfig(
                    **shared,
                    row_length=_CONTEXT,
                    learning_rate=1e-3,
                    schedule="cosine",
                    warmup_steps=5,
                    batch_rows=2,
                ),
            ),
        ),
        "ppo": (
            ppo,
            ppo.Config(
                model=config.model,
                reward=folder["reward"],
                data=data["prompts"],
                output_dir=folder["ppo"],
                ptx_data=data["own_text"],
                ptx_end=False,
                gold_task=_TASK,
                rollout_dtype="bf16",
                adaptation=lora,
                ppo=PPOConfig(
                    iterations=size.iterations,
                    episodes_per_iteration=size.episodes,
                    epochs_per_batch=1,
                    minibatches=4,
                    recompute_logprobs=False,
                    max_response_tokens=size.max_tokens,
                    actor_learning_rate=7e-4,
                    critic_learning_rate=5e-4,
                    whiten_rewards=False,
                    clip_value=None,
                    # An answer is judged once, at its end, and the critic has few updates to learn what leads there.
                    gae_lambda=1.0,
                    whiten_scope="batch",
                    warmup_iterations=0,
                    kl_coefficient=0.05,
                    actor_ema_decay=None,
                    ptx_coefficient=0.2,
                    ptx_rows=1,
                    rollout_temperature=_TEMPERATURE,
                ),
                train=replace(training.BASE, dtype="bf16", seed=seed, row_length=_TEXT_TOKENS, save_every_steps=2),
            ),
        ),
        "evaluation": (
            evaluate,
            evaluate.Config(
                model=config.model,
                reward=folder["reward"],
                ppo_ptx=folder["ppo"],
                output_dir=folder["evaluation"],
                data=config.text or data["held_out"],
                num_documents=size.held_out_documents,
                task=_TASK,
                num_prompts=size.evaluated,
                best_of=2,
                max_tokens=size.max_tokens,
                temperature=_TEMPERATURE,
                dtype="bf16",
                row_length=_CONTEXT,
                title=f"RLHF on {'SmolLM2-135M-Instruct' if config.model == 'smollm2' else config.model}",
                label="Original",
                seed=seed,
            ),
        ),
    }


def run(config: Config) -> dict[str, Any]:
    """Write the data, run every stage that is not done, and show what came of it."""
    started = time.monotonic()
    root = Path(config.output_dir)
    catalogue.resolve(config.model)  # what is wrong with it is said before the folder is made
    running.claim(root, config, recipe="smollm2_rlhf")
    _write_data(root / "data", config)
    steps = stages(config)
    found = running.run_stages(steps)
    found = replace(found, promises=_promises(found))
    running.publish(found, steps["evaluation"][1])
    running.show(found, root, time.monotonic() - started)
    return {"report": str(root / "report.html")}


def _write_data(folder: Path, config: Config) -> None:
    """The prompts, the model's own text, and the held-out text, as files that a user might have."""
    size = TINY if config.tiny else Amounts()
    task = Concise()
    examples = task.examples("feedback", task.num_examples("feedback"), seed=config.seed)
    running.write_lines(folder / "prompts.jsonl", (each.to_record() for each in examples))
    running.write_lines(folder / "own_text.jsonl", _own_text(config, size.ptx_texts))
    if config.text is None:
        some = islice(docstrings(), size.held_out_documents)
        running.write_lines(folder / "held_out.jsonl", ({"text": text} for text in some))


def _own_text(config: Config, count: int) -> Iterator[dict[str, str]]:
    """What the model writes when it is begun with nothing, sampled at temperature 1: its own distribution."""
    opened = load_pretrained(config.model, dtype="fp32", device=runtime.pick_device())
    tokenizer = opened.tokenizer
    engine = Engine(opened.model, tokenizer, max_batch=128, autocast="bf16")
    # Between documents the SmolLM2 family reads <|endoftext|>, though its chat models declare other tokens.
    begin = tokenizer.document_start or [tokenizer.special.get("<|endoftext|>", 0)]
    length = min(_TEXT_TOKENS, engine.context_length - len(begin))
    sampling = SamplingParams(max_tokens=length, temperature=1.0, seed=training.stream_seed(config.seed, "own text"))
    for completion in engine.generate([begin] * count, sampling):
        yield {"text": completion.text}


def docstrings(folders: Sequence[Path] | None = None, *, shortest: int = 400) -> Iterator[str]:
    """Docstrings of modules and classes that have at least so many characters, file by file in order of name."""
    roots = [Path(sysconfig.get_paths()["stdlib"])] if folders is None else list(folders)
    for path in sorted(path for root in roots for path in root.glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, OSError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = (ast.get_docstring(node) or "").strip()
                if len(text) >= shortest:
                    yield text


def _promises(found: schema.Results) -> tuple[schema.Claim, ...]:
    """What this recipe promises, held against what was measured."""
    aligned = found.stage(schema.PPO_PTX)
    claims = []
    if aligned is not None and aligned.win_rate is not None:
        greedy = "" if aligned.win_rate_greedy is None else f"; greedy {interval_percent(aligned.win_rate_greedy)}"
        claims.append(
            schema.Claim(
                f"The aligned model beats the original in at least {percent(WIN_RATE, 0)} of held-out comparisons",
                f"{interval_percent(aligned.win_rate)} of {aligned.win_rate.count:,} prompts{greedy}",
                aligned.win_rate.value >= WIN_RATE,
            )
        )
    if aligned is not None and aligned.perplexity_rise is not None:
        rise = aligned.perplexity_rise
        claims.append(
            schema.Claim(
                f"Its perplexity on held-out text rises by less than {percent(PERPLEXITY_RISE, 0)}",
                f"{100 * rise.value:+.2f} % ({100 * rise.low:+.2f} to {100 * rise.high:+.2f})",
                rise.value < PERPLEXITY_RISE,
            )
        )
    return tuple(claims)
