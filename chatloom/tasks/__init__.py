"""Tasks: examples that can also grade an answer. One file serves SFT data, evaluation and reward.

A task is listed in one literal dict; adding one is a file and a line here.
"""

from chatloom.tasks.concise import Concise
from chatloom.tasks.example import Example, Grade, Task
from chatloom.tasks.labeler import Labeler, agreement, calibrate_noise
from chatloom.tasks.miniature import Miniature

__all__ = ["TASKS", "Concise", "Example", "Grade", "Labeler", "Task", "agreement", "calibrate_noise", "get_task"]

TASKS: dict[str, Task] = {"concise": Concise(), "miniature": Miniature()}


def get_task(name: str) -> Task:
    """The task of that name. ValueError, naming those that exist, for any other."""
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; the tasks are {', '.join(sorted(TASKS))}")
    return TASKS[name]
