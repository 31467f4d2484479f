"""Writes the screenshots of docs/: `PYTHONPATH=tests/server python tests/server/screenshots.py`, smollm2 answering.

What is shown is real: the model's own answers (seeded), rated, compared and ranked through the page.
"""

import io
import json
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

import chatloom
from chatloom.engine.language_model import LanguageModel
from chatloom.feedback.store import Store
from chatloom.testing.serving import serve

DOCS = Path(__file__).parent.parent.parent / "docs"
SETTINGS = {"offer": False, "sampling": {"seed": 7, "max_tokens": 220, "temperature": 0.7}}
COLOURS = 256


def save(page: Page, name: str) -> None:
    """A picture of what is shown, in few colours and so small."""
    page.mouse.move(2, 300)
    page.wait_for_timeout(400)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(DOCS / name, optimize=True)


def opened(browser: Browser, address: str, **options: Any) -> Page:
    """A window on the page."""
    context = browser.new_context(**{"viewport": {"width": 1180, "height": 760}, "locale": "en-GB", **options})
    context.add_init_script(f"localStorage['chatloom.settings'] ??= {json.dumps(json.dumps(SETTINGS))}")
    page = context.new_page()
    page.set_default_timeout(240_000)
    page.goto(address)
    page.wait_for_selector(".welcome")
    return page


def ask(page: Page, text: str, way: str | None = None) -> None:
    """Ask, and wait for the answers."""
    count = page.locator(".message").count()
    page.fill("#composer", text)
    if way is None:
        page.keyboard.press("Enter")
    else:
        page.click(".composer .icon-plus")
        page.get_by_role("menuitem", name=way).click()
    page.locator(".message").nth(count + 1).wait_for()
    page.wait_for_selector(".prose.running")
    expect(page.locator(".prose.running")).to_have_count(0, timeout=240_000)


def main() -> None:
    """All of them."""
    model: LanguageModel = chatloom.load("smollm2", dtype="bf16")
    with (
        tempfile.TemporaryDirectory() as folder,
        Store.open(Path(folder) / "feedback.db") as store,
        serve({"smollm2": model}, store=store) as running,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--headless", "--disable-gpu"]
        )
        page = opened(browser, running.base_url)
        ask(page, "Give me five names for a black cat.")
        page.click(".message:last-child .icon-up")
        page.click("text=Helpful")
        page.click(".reasons button[type=submit]")
        page.click(".new-chat")
        ask(page, "Why is the sky blue? Two sentences.", "Two answers, side by side")
        page.wait_for_selector(".pick:not(:disabled)")
        save(page, "page-pair.png")
        page.click(".pick >> nth=1")
        page.click(".new-chat")
        ask(page, "Name three uses of an old newspaper.", "Several answers, to rank")
        expect(page.locator(".rank-item")).to_have_count(3)
        page.keyboard.press("Alt+ArrowDown")
        page.locator("#toasts").evaluate("each => each.replaceChildren()")
        save(page, "page-rank.png")
        page.click(".dialog-foot .main")
        page.click(".new-chat")
        ask(page, "Write a Python function that reverses a string, and explain it.")
        page.wait_for_timeout(3500)
        page.locator(".thread").evaluate("each => each.scrollTo(0, 0)")
        save(page, "page.png")
        page.click(".foot-link")
        page.wait_for_selector(".bars")
        save(page, "page-loop.png")
        phone = {"viewport": {"width": 390, "height": 760}, "is_mobile": True, "has_touch": True}
        small = opened(browser, running.base_url, locale="zh-CN", color_scheme="dark", **phone)
        ask(small, "Make a table of three planets and their moons.")
        save(small, "page-phone.png")
        browser.close()
    for path in sorted(DOCS.glob("page*.png")):
        assert path.stat().st_size < 150_000, path


if __name__ == "__main__":
    main()
