"""A conversation in a store, said in few words."""

from typing import Any

from chatloom.feedback.records import Made, Message
from chatloom.feedback.store import Store


class Talk:
    """One conversation, said in few words."""

    def __init__(self, store: Store, owner: str = "", system: str = "") -> None:
        self.store = store
        self.conversation = store.create_conversation(owner=owner, title="A talk", system=system)

    def ask(self, question: str, parent: Message | None = None) -> Message:
        """The user says something, at the start or after an answer."""
        below = None if parent is None else parent.id
        return self.store.add_message(self.conversation.id, parent=below, role="user", content=question)

    def answer(
        self, question: Message, content: str, model: str = "tiny", status: Any = "done", **made: Any
    ) -> Message:
        """The assistant answers; several answers to one question are branches."""
        known: dict[str, Any] = {"sampling": {"temperature": 0.7}, "seed": 7, "prompt_tokens": [1, 2, 3], "tokens": [4]}
        return self.store.add_message(
            self.conversation.id,
            parent=question.id,
            role="assistant",
            content=content,
            status=status,
            made=Made(model, **known | made),
        )
