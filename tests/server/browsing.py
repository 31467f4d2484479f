"""A person at the page: Chromium driven by Playwright against a real server, whose model speaks when a test says so.

Every visit ends by asking that nothing went wrong unseen: no script error, no breach of the content policy (browsers
report both to the console), no request to anywhere else, and no failed request that the test did not expect.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from chatloom.feedback.records import Message
from chatloom.feedback.store import Store
from chatloom.testing.paced import PacedEngine, paced
from chatloom.testing.serving import serve, tiny

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = "--no-sandbox --headless --disable-gpu"
QUIET = "--disable-background-networking --disable-component-update --disable-sync"
NO_OFFERS = {"offer": False}
RICH = """Reversing a string in Python is **one line**:

```python
def reverse(text: str) -> str:
    return text[::-1]  # a step of -1
```

| Planet | Moons |
|:--|--:|
| Earth | 1 |
| Mars | 2 |
"""
EVIL = """Look: <script>window.pwned = 1</script> <img src=x onerror="window.pwned = 2">

![picture](https://example.invalid/track.png) [click](javascript:window.pwned=3) <svg onload="window.pwned=4">

```html"><script>window.pwned=5</script>
<b onmouseover="window.pwned = 6">bold</b>
```
"""


@dataclass
class Author:
    """What the scripted model says: by the question, and never the same twice. A cut answer is continued."""

    given: list[str] = field(default_factory=list)

    def __call__(self, prompt: str) -> str:
        question = prompt.rsplit("<|user|>", 1)[1].split("<|end_of_turn|>")[0]
        begun = prompt.rsplit("<|assistant|>", 1)[1]
        if begun:
            return next(text for text in reversed(self.given) if text.startswith(begun))[len(begun) :]
        text = f"Answer {len(self.given) + 1} to: {question}. It is said in some words, so that it takes a while."
        if "rich" in question:
            text = RICH
        if "evil" in question:
            text = EVIL
        self.given.append(text)
        return text


@dataclass
class Site:
    """A server with the page, its store, and the engine that speaks when told."""

    address: str
    store: Store
    engine: PacedEngine

    def messages(self) -> list[Message]:
        """Those of the conversation that was used last."""
        return self.store.messages(self.store.conversations(owner="", limit=1)[0].id)

    def answers(self) -> list[Message]:
        """Its answers."""
        return [message for message in self.messages() if message.role == "assistant"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One server a module: "weaver" speaks as told and has an adapter "mine", "tiny" is a real model."""
    weaver = paced(Author(), context_length=4096)
    engine = weaver.engine
    assert isinstance(engine, PacedEngine)
    engine.adapters = ("mine",)
    with ExitStack() as stack:
        store = stack.enter_context(Store.open(tmp_path_factory.mktemp("page") / "feedback.db"))
        running = stack.enter_context(serve({"weaver": weaver, "tiny": tiny()}, store=store))
        yield Site(running.base_url, store, engine)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; the tests are skipped, and the summary says so, where there is none."""
    expect.set_options(timeout=20_000)
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        if found is None and Path(playwright.chromium.executable_path).exists():
            found = playwright.chromium.executable_path
        if found is None:
            warnings.warn("NO CHROMIUM: THE PAGE WAS NOT TESTED IN A BROWSER (apt-get install chromium)", stacklevel=1)
            pytest.skip("there is no Chromium")
        browser = playwright.chromium.launch(executable_path=found, args=f"{FLAGS} {QUIET}".split())
        yield browser
        browser.close()


class Visit:
    """One person's browser window on the page."""

    def __init__(self, page: Page, site: Site) -> None:
        self.page, self.site = page, site
        self.problems: list[str] = []
        page.set_default_timeout(20_000)
        page.on("console", lambda message: message.type in ("error", "warning") and self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        page.on("request", lambda request: self._check(request.url))
        page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))

    def _check(self, url: str) -> None:
        if not url.startswith((self.site.address, "data:", "blob:")):
            self.problems.append(f"a request to {url}")

    def open(self, address: str = "/") -> "Visit":
        """Go there and wait until the page can be used."""
        self.page.goto(self.site.address + address)
        expect(self.composer).to_be_visible()
        return self

    @property
    def composer(self) -> Locator:
        """Where one writes."""
        return self.page.locator("#composer")

    def button(self, name: str, *, within: str = "body") -> Locator:
        """A button by its name."""
        return self.page.locator(within).get_by_role("button", name=name, exact=True)

    def questions(self) -> Locator:
        """What the person said, as far as it is shown."""
        return self.page.locator(".message.user .bubble")

    def answers(self) -> Locator:
        """What the model said."""
        return self.page.locator(".message.assistant .prose")

    def ask(self, text: str) -> Locator:
        """Say something; the answer, finished."""
        before = self.answers().count()
        self.composer.fill(text)
        self.composer.press("Enter")
        answer = self.answers().nth(before)
        expect(answer).to_be_visible()
        self.finished()
        return answer

    def ask_in_another_way(self, text: str, way: str) -> None:
        """Say something by the menu at the plus."""
        self.composer.fill(text)
        self.button("More ways to answer").click()
        self.page.get_by_role("menuitem", name=way).click()

    def finished(self) -> None:
        """Wait until nothing is being written."""
        expect(self.page.locator(".prose.running")).to_have_count(0)
        expect(self.page.locator(".message.assistant .prose").last).not_to_be_empty()


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Callable[..., Visit]]:
    """`visit(settings, locale=..., color_scheme=...)` is a new person, whose browser knows nothing yet."""
    visits: list[Visit] = []
    contexts = []

    def begin(settings: dict[str, Any] | None = None, **options: Any) -> Visit:
        usual = {"viewport": {"width": 1200, "height": 800}, "reduced_motion": "reduce", "locale": "en-GB"}
        context = browser.new_context(**{**usual, **options})
        contexts.append(context)
        given = NO_OFFERS if settings is None else settings
        kept = f"localStorage['chatloom.settings'] ??= {json.dumps(json.dumps(given))}"
        context.add_init_script(kept)
        visits.append(Visit(context.new_page(), site))
        return visits[-1]

    site.engine.release()
    yield begin
    site.engine.release()
    for context in contexts:
        context.close()
    problems = [problem for one in visits for problem in one.problems]
    assert not problems, problems
