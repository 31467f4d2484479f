"""Does llama.cpp continue an exported model as Chatloom does? `python benchmarks/llama_cpp.py [REF ...]`.

Each model (default: smollm2) is exported as GGUF in fp32 and opened by llama.cpp (`xllamacpp`, llama.cpp with its
server built in). Counted: texts that both cut into the same tokens, conversations that both render to the same
tokens, and greedy answers that are the same token for token. Differences are shown; the exit status is then 1.
"""

import json
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import torch
import xllamacpp
from rich.console import Console

import chatloom
from chatloom import cli
from chatloom.engine.language_model import LanguageModel

TEXTS = (
    *("Hello world", "It's 12345 o'clock, isn't it?", "  two blanks,\ttab\n\nand lines  "),
    *("def f(x):\n    return x**2", "Füße, naïve café – “quotes” …", "你好，世界！今天是2024年。", "мир и любовь"),
    *("🙂🙃 emoji 👩‍👩‍👧", "<|im_start|>forged", "I'LL they'Re WE'VE", "100,000.50 €", "a" * 50, " ", "\n"),
    *("e\u0301 combining", "CamelCaseAndACRONYMs", "٣٤٥ ½ Ⅷ"),
)
ASKED = (
    *("What is the capital of France?", "Name three colours.", "Write a short poem about rain.", "What is 2 + 2?"),
    *("Explain photosynthesis in two sentences.", "Say hello in Spanish.", "List the days of the week."),
    *("Who wrote Hamlet?",),
)
SYSTEM = {"role": "system", "content": "You answer in one short sentence."}
MAX_TOKENS = 48
console = Console(width=110, highlight=False)


class LlamaCpp:
    """llama.cpp with one model, on one thread."""

    def __init__(self, path: Path) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 1024, 1, 0, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.use_jinja = True
        params.verbosity = 0
        params.port = 0
        self.server = xllamacpp.Server(params)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.server.listening_address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def tokens(self, text: str, *, special: bool = False) -> list[int]:
        body = {"content": text, "add_special": special, "parse_special": special}
        return list(self._post("/tokenize", body)["tokens"])

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        return self.tokens(self._post("/apply-template", {"messages": messages})["prompt"], special=True)

    def continued(self, tokens: list[int]) -> list[int]:
        body = {"prompt": tokens, "n_predict": MAX_TOKENS, "temperature": 0, "return_tokens": True, "top_k": 1}
        return list(self._post("/completion", body | {"cache_prompt": False})["tokens"])


def compare(ref: str) -> bool:
    """Whether everything agreed."""
    lm: LanguageModel = chatloom.load(ref, dtype="fp32")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        assert cli.main(["export", ref, "--to", "gguf", "--dtype", "fp32", "--output", str(path)]) == 0
        peer = LlamaCpp(path)
        conversations = [[{"role": "user", "content": text}] for text in ASKED]
        conversations += [[SYSTEM, *each] for each in conversations[:3]]
        conversations.append([*conversations[0], {"role": "assistant", "content": "Paris."}, *conversations[1]])
        prompts = [lm.prompt_tokens(each) for each in conversations]
        stops = set(lm.chat_format.stop_tokens)
        checks = {
            "texts to tokens": [(text, lm.tokenizer.encode(text), peer.tokens(text)) for text in TEXTS],
            "conversations to tokens": [
                (str(each), ours, peer.prompt(each)) for each, ours in zip(conversations, prompts)
            ],
            "greedy answers": [
                (str(each), _unstopped(done.tokens, stops), _unstopped(peer.continued(prompt), stops))
                for each, prompt, done in zip(
                    conversations, prompts, lm.generate(prompts, max_tokens=MAX_TOKENS, temperature=0.0)
                )
            ],
        }
        del peer
    agreed = True
    for name, rows in checks.items():
        same = sum(ours == theirs for _, ours, theirs in rows)
        agreed &= same == len(rows)
        console.print(f"{ref:>12}  {name:<24} {same} of {len(rows)} the same")
        for what, ours, theirs in rows:
            if ours != theirs:
                console.print(f"{'':>14}{what[:60]!r}\n{'':>16}ours   {ours[:24]}\n{'':>16}theirs {theirs[:24]}")
    return agreed


def _unstopped(tokens: list[int], stops: set[int]) -> list[int]:
    """Tokens before the end of turn, which one side reports and the other does not."""
    return next((tokens[:index] for index, token in enumerate(tokens) if token in stops), tokens)


if __name__ == "__main__":
    torch.set_num_threads(1)
    agreements = [compare(ref) for ref in sys.argv[1:] or ["smollm2"]]
    sys.exit(0 if all(agreements) else 1)
