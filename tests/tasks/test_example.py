"""Examples as JSON, and finding a task by its name."""

import json

import pytest

from chatloom.tasks import Example, get_task


def test_examples_survive_json() -> None:
    for example in get_task("miniature").examples("validation", 100, 0):
        assert Example.from_record(json.loads(json.dumps(example.to_record()))) == example


def test_a_record_without_an_example_is_refused() -> None:
    with pytest.raises(ValueError, match='needs the fields "messages" and "example"'):
        Example.from_record({"messages": []})
    with pytest.raises(ValueError, match="lacks \\['category', 'reference', 'check'\\]"):
        Example.from_record({"messages": [], "example": {"id": "1"}})


def test_an_unknown_task_names_those_that_exist() -> None:
    with pytest.raises(ValueError, match="no task 'minature'; the tasks are concise, miniature"):
        get_task("minature")
