"""Useful tokens per second of supervised fine-tuning: `chatloom sft`'s packing and trainer against TRL's SFTTrainer.

Run `make peers`, then `.venv-peers/bin/python benchmarks/sft.py --data FILE`, with nothing else running; FILE is any
file of conversations that `chatloom sft` reads, such as 5,000 Alpaca instructions.

Both sides fine-tune all weights of SmolLM2-135M-Instruct on the same conversations, in its own chat template, for one
epoch a round, counting the loss on the answers alone. A useful token is one of a conversation; padding is not. TRL runs
with its packing off, on (its default, best-fit) and, as everybody does, with rows as long as the longest allowed.
"""

import ctypes
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import datasets
import numpy as np
import torch
import transformers
import trl
import tyro
from comparison import begin, console, in_turn, show
from transformers.trainer_callback import PrinterCallback

import chatloom
from chatloom import runtime
from chatloom.chat.message import Conversation, to_dicts
from chatloom.data.formats import read_conversations
from chatloom.data.loader import Loader
from chatloom.data.pack import Sample
from chatloom.engine.language_model import LanguageModel
from chatloom.objectives.causal_lm import causal_lm
from chatloom.train.train_config import TrainConfig
from chatloom.train.trainer import Trainer

GOALS = {"packing off": 3.0, "packing on": 1.2}
LEARNING_RATE = 1e-5
REF = "smollm2"

NOT_ALIKE = """Not alike: TRL's packing on a CPU lets a conversation see those before it in its row (its document masks
need a fused kernel for GPUs); ours does not. Both train under bf16 autocast with fp32 weights and AdamW, clip at norm 1
and read the loss back. TRL without packing has {batch} conversations a batch, padded to the longest of them; with it,
as ours, rows of {row_length} tokens, {rows} a batch. Neither compiles or recomputes activations."""


@dataclass(frozen=True)
class Config:
    """Measure fine-tuning."""

    # Conversations: any file that `chatloom sft` reads.
    data: str
    conversations: int = 64
    row_length: int = 512
    rows: int = 2
    # Of TRL without packing.
    batch: int = 8
    threads: int = 2
    rounds: int = 2
    # Measure the processor's time, not the clock's: for development with one thread on a busy machine.
    cpu_time: bool = False

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds."""
        return time.process_time if self.cpu_time else time.perf_counter


def pick(config: Config, lm: LanguageModel) -> tuple[list[Conversation], int]:
    """The first conversations of one answer that fit a row, and their tokens in all."""
    chosen, num_tokens = [], 0
    for conversation in read_conversations(config.data):
        length = len(lm.chat_format.render(conversation).tokens)
        if sum(message.role == "assistant" for message in conversation) == 1 and length <= config.row_length:
            chosen.append(conversation)
            num_tokens += length
        if len(chosen) == config.conversations:
            break
    return chosen, num_tokens


class Ours:
    """The loader and the trainer of `chatloom sft`."""

    def __init__(self, config: Config, lm: LanguageModel, conversations: list[Conversation]) -> None:
        rendered = lm.chat_format.render_many(conversations)
        samples = [Sample(np.asarray(each.tokens), np.asarray(each.loss_mask)) for each in rendered]
        self.loader = Loader(
            samples,
            batch_rows=config.rows,
            row_length=config.row_length,
            seed=0,
            pad=lm.tokenizer.pad if lm.tokenizer.pad_token else 0,
        )
        options = TrainConfig(
            learning_rate=LEARNING_RATE, dtype="bf16", schedule="constant", warmup_steps=0, weight_decay=0.0
        )
        self.trainer = Trainer(lm.model, causal_lm, options, total_steps=10**6)
        self.clock = config.clock

    def epoch(self) -> float:
        """Seconds, with memory kept as `chatloom sft` keeps it, which TRL's users do not ask for."""
        runtime.keep_freed_memory()
        try:
            started = self.clock()
            for _ in range(self.loader.steps_per_epoch):
                self.trainer.step([self.loader.next_batch()])
            return self.clock() - started
        finally:
            _give_memory_back()


class Peer:
    """TRL's SFTTrainer; an epoch a call."""

    def __init__(self, config: Config, conversations: list[Conversation], *, saved: str, packing: bool) -> None:
        # The same weights from a folder: of a quantised file transformers trains adapters alone.
        tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
        model = transformers.AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
        rows = [{"prompt": to_dicts(each[:-1]), "completion": to_dicts(each[-1:])} for each in conversations]
        self.trainer = trl.SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_list(rows),
            args=trl.SFTConfig(
                output_dir=f"{saved}/trl",
                num_train_epochs=1,
                per_device_train_batch_size=config.rows if packing else config.batch,
                max_length=config.row_length,
                packing=packing,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                bf16=True,
                use_cpu=True,
                gradient_checkpointing=False,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
        )
        self.trainer.remove_callback(PrinterCallback)
        self.clock = config.clock

    def epoch(self) -> float:
        """Seconds."""
        started = self.clock()
        self.trainer.train()
        return self.clock() - started


def _give_memory_back() -> None:
    """The C library's own settings again, of which it says in `mallopt`'s manual what they are."""
    library = ctypes.CDLL(None)
    for option, value in ((-4, 65536), (-1, 128 << 10), (-2, 128 << 10)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
        library.mallopt(option, value)
    library.malloc_trim(0)


def _rate(num_tokens: int, side: Ours | Peer) -> float:
    return num_tokens / side.epoch()


def main(config: Config) -> None:
    begin("fine-tuning SmolLM2-135M-Instruct: chatloom against TRL's SFTTrainer", config.threads)
    datasets.disable_progress_bars()
    lm = chatloom.load(REF, dtype="fp32")
    conversations, num_tokens = pick(config, lm)
    console.print(f"trl {trl.__version__}; {len(conversations)} conversations, {num_tokens:,} tokens, of {config.data}")
    with tempfile.TemporaryDirectory() as saved:
        lm.save(saved)
        ours = Ours(config, lm, conversations)
        console.print(f"our rows are {ours.loader.utilisation:.0%} full")
        for name, goal in GOALS.items():
            peer = Peer(config, conversations, saved=saved, packing=name == "packing on")
            rounds = in_turn(
                partial(_rate, num_tokens, ours),
                partial(_rate, num_tokens, peer),
                rounds=config.rounds,
            )
            show({name: (rounds, "")}, peer="TRL", what="useful tokens/s", digits=0, more_is_better=True, goal=goal)
            del peer
    console.print(NOT_ALIKE.format(batch=config.batch, rows=config.rows, row_length=config.row_length), soft_wrap=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main(tyro.cli(Config, description=__doc__))
