"""The task "concise": prompts as people write them, and a preference for short, honest answers in the asked form.

Three things to know:
* The prompts are in `concise.jsonl`, written for this task in the ten use cases of InstructGPT in about its shares
  (Ouyang et al. 2022, arXiv:2203.02155, table 1); one in ten cannot be answered and one in three asks for a form.
* Splits are fixed in that file: "feedback" for the reward model and PPO, "test" and "validation" for measuring, and a
  few in "train" as worked examples. `examples` raises where more are asked for than there are.
* The gold score is `concise_grading`; every `Example.reference` has the top grade.
"""

import functools
import json
import random
from importlib.resources import files
from typing import Any

from chatloom.chat.message import Conversation
from chatloom.tasks.concise_grading import grade
from chatloom.tasks.example import Example, Grade


class Concise:
    """The task "concise"; see the module docstring. It has no state."""

    name = "concise"

    def examples(self, split: str, count: int, seed: int = 0) -> list[Example]:
        """`count` examples of "train", "validation", "test" or "feedback", in an order drawn from the seed."""
        splits = _splits()
        if split not in splits:
            raise ValueError(f"the split is {split!r}; it must be one of {', '.join(sorted(splits))}")
        available = splits[split]
        if not 0 <= count <= len(available):
            raise ValueError(
                f"{count} examples of {split!r} are asked for; the task 'concise' has {len(available)}, ask for fewer"
            )
        return random.Random(f"concise|{split}|{seed}").sample(available, len(available))[:count]

    def num_examples(self, split: str) -> int:
        """How many examples a split has."""
        return len(_splits()[split])

    def prompt(self, example: Example) -> Conversation:
        """What the model is given."""
        return example.prompt

    def grade(self, example: Example, answer: str, *, stopped: bool = True) -> Grade:
        """The gold score of an answer, without noise."""
        return grade(example, answer, stopped=stopped)


@functools.cache
def _splits() -> dict[str, list[Example]]:
    splits: dict[str, list[Example]] = {}
    text = files("chatloom.tasks").joinpath("concise.jsonl").read_text(encoding="utf-8")
    for line in text.splitlines():
        record: dict[str, Any] = json.loads(line)
        splits.setdefault(record["split"], []).append(Example.from_record(record))
    return splits
