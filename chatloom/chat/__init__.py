"""Conversations, chat templates, and the only place where text becomes training tokens."""

from chatloom.chat.calls import CallForm
from chatloom.chat.message import ROLES, Conversation, Message, Role, ToolCall, check_trainable, conversation, to_dicts
from chatloom.chat.render import ChatFormat, Rendered
from chatloom.chat.templates import CHATLOOM_TEMPLATE, ChatTemplate

__all__ = [
    "CHATLOOM_TEMPLATE",
    "ROLES",
    "CallForm",
    "ChatFormat",
    "ChatTemplate",
    "Conversation",
    "Message",
    "Rendered",
    "Role",
    "ToolCall",
    "check_trainable",
    "conversation",
    "to_dicts",
]
