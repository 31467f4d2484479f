"""Generation: the same object for rollouts, evaluation, prompting and chat.

`request` and `grammar` (what is asked), `blocks` and `scheduler` (what is computed next, and where it lies) and `text`
(tokens to text) import no torch. `settle` makes rows of requests, `runner` computes a step of them, `sampling` draws
tokens, `multi_lora` adds each request's adapter, `structured` says which ones a grammar lets come, `speculative`
guesses tokens, `beams` searches for the likeliest answers, `weights` notices that the model has changed, `lowered` has
its matrices as they are read, of types that `quantised` has; `native` is compiled code and `fused` a step of it,
`engine` is the interface, `stream` one request of it, `language_model` what `chatloom.load` gives.
"""
