"""Generation: the same object for rollouts, evaluation, prompting and chat.

`request` (what is asked) and `text` (tokens to text) import no torch; `sampling` draws tokens, `runner` is the
decoding loop, `engine` the interface, `language_model` what `chatloom.load` gives.
"""
