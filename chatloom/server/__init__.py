"""The server: OpenAI's API and the page, over engines that are shared by all who ask.

`served` has the models by name, `generation` brings an engine's answers to the event loop, `events` and `errors` are
how they leave; `openai` lists models, `chat_completions` and `completions` answer; `observe` watches; `app` joins them
and `command` is `chatloom serve`.
"""
