"""Everybody's page: safe, in two languages, on a phone, in the dark, by keyboard, and for who listens to it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import NO_OFFERS, Site, Visit
from openai import OpenAI
from playwright.sync_api import Page, expect

from chatloom.feedback.store import Store
from chatloom.testing.paced import PacedEngine
from chatloom.testing.serving import serve, tiny

Visits = Callable[..., Visit]
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def check(page: Page) -> None:
    """The rules of WCAG 2.2 A and AA, and good practice, as axe-core judges them; in the dark only colours differ."""
    dark = page.evaluate("document.documentElement.dataset.theme") == "dark"
    every = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    rules = {"runOnly": ["color-contrast"] if dark else every}
    found = Axe().run(page, options=rules).response["violations"]
    told = [(each["id"], each["help"], [node["html"][:160] for node in each["nodes"]]) for each in found]
    assert not told, told


def narrow(page: Page) -> bool:
    """Whether nothing sticks out to the side."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def test_what_a_model_writes_never_runs(visit: Visits) -> None:
    person = visit().open()
    answer = person.ask("something evil")
    expect(answer).to_contain_text("<script>window.pwned = 1</script>")
    expect(answer).to_contain_text('<img src=x onerror="window.pwned = 2">')
    answer.get_by_role("link", name="picture").hover()
    assert answer.locator("img, script, svg, [onmouseover]").count() == 0
    assert answer.locator("a[href^=javascript]").count() == 0
    answer.locator("pre").hover()
    person.page.reload()
    person.finished()
    assert person.page.evaluate("window.pwned") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_everywhere(visit: Visits, scheme: str) -> None:
    person = visit(color_scheme=scheme).open()
    page = person.page
    check(page)
    person.ask("something rich")
    person.button("Good answer").click()
    check(page)
    page.get_by_role("button", name="Edit the message").click()
    check(page)
    page.keyboard.press("Escape")
    person.button("More", within=".message.assistant").click()
    check(page)
    page.keyboard.press("Escape")
    person.ask_in_another_way("Name a stone", "Two answers, side by side")
    expect(person.button("A is better")).to_be_enabled()
    check(page)
    person.button("A is better").click()
    person.button("More", within=".message:last-child").click()
    page.get_by_role("menuitem", name="Several answers, to rank").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    check(page)
    page.keyboard.press("Escape")
    for within in (".composer", ".sidebar"):
        person.button("Settings", within=within).click()
        check(page)
        page.keyboard.press("Escape")
    page.get_by_role("link", name="The loop").click()
    expect(page.locator(".bars")).to_be_visible()
    check(page)


def test_past_requests_are_shown_to_whom_may_see_them(visit: Visits, site: Site) -> None:
    client = OpenAI(base_url=f"{site.address}/v1", api_key="none")
    client.chat.completions.create(model="weaver", messages=[{"role": "user", "content": "hi"}])
    person = visit().open()
    person.button("More", within=".sidebar-foot").click()
    person.page.get_by_role("menuitem", name="Past requests").click()
    row = person.page.locator("tbody tr").first
    expect(row).to_contain_text("/v1/chat/completions")
    expect(row).to_contain_text("weaver")
    check(person.page)


def test_by_keyboard_alone(visit: Visits, site: Site) -> None:
    person = visit().open()
    page = person.page
    expect(person.composer).to_be_focused()
    person.ask("one")
    page.keyboard.press("Shift+Tab")  # out of the field, into the thread
    page.keyboard.press("/")
    expect(person.composer).to_be_focused()
    page.keyboard.press("ArrowUp")  # to what was said last
    expect(page.get_by_role("textbox", name="Edit the message")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+Shift+o")
    expect(page.get_by_role("heading", name="What shall we work on?")).to_be_visible()
    assert page.evaluate("document.querySelector('a, button, input, textarea, [tabindex]').className") == "skip"
    page.get_by_role("link", name="Skip to the conversation").focus()
    names = []
    for _ in range(8):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent"))
    assert names[:4] == ["Hide conversations", "New chat", "Search conversations", "one"], names
    page.keyboard.press("Control+Shift+s")
    expect(page.locator(".sidebar")).not_to_be_visible()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keyboard")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    person.button("Model: weaver").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("menuitemradio", name="weaver", exact=False).first).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(person.button("Model: weaver + mine")).to_be_focused()


def test_in_chinese_and_back(visit: Visits, site: Site) -> None:
    person = visit(locale="zh-CN").open()
    page = person.page
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    expect(page.get_by_role("heading", name="今天想做点什么？")).to_be_visible()
    person.composer.fill("nihao")
    person.composer.press("Enter")
    expect(person.button("回答得好")).to_be_visible()
    check(page)
    person.button("设置", within=".sidebar").click()
    page.get_by_role("radio", name="English").click(force=True)
    expect(person.button("Good answer")).to_be_visible()
    assert page.evaluate("document.documentElement.lang") == "en"
    page.reload()
    expect(person.button("Good answer")).to_be_visible()


def test_on_a_phone(visit: Visits) -> None:
    person = visit(**PHONE).open()
    page = person.page
    expect(page.locator(".sidebar")).not_to_be_visible()
    person.ask("something rich")
    assert narrow(page)
    check(page)
    person.button("More ways to answer").tap()
    page.keyboard.press("Escape")
    person.ask_in_another_way("Name a shell", "Two answers, side by side")
    expect(person.button("A is better")).to_be_enabled()
    boxes = [box for each in page.locator(".pair-answer").all() if (box := each.bounding_box())]
    assert boxes[1]["y"] > boxes[0]["y"]  # below one another
    assert narrow(page)
    person.button("A is better").tap()
    person.button("Show conversations").tap()
    expect(page.locator(".conversations li").first).to_be_visible()
    check(page)
    page.get_by_role("link", name="The loop").tap()
    expect(page.locator(".bars")).to_be_visible()
    expect(page.locator(".sidebar")).not_to_be_visible()
    assert narrow(page)
    page.get_by_role("link", name="Back to the conversation").tap()
    person.button("New chat", within=".topbar").tap()
    expect(page.get_by_role("heading", name="What shall we work on?")).to_be_visible()
    for box in (button.bounding_box() for button in page.locator(".topbar button:visible").all()):
        assert box is not None
        assert min(box["width"], box["height"]) >= 36  # for thumbs


def test_dark_when_the_system_is_or_when_asked(visit: Visits) -> None:
    def brightness(person: Visit) -> int:
        colour = person.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour[4:-1].split(","))

    assert brightness(visit(color_scheme="dark").open()) < 200
    person = visit({**NO_OFFERS, "theme": "auto"}, color_scheme="light").open()
    assert brightness(person) > 600
    person.button("Settings", within=".sidebar").click()
    person.page.get_by_role("radio", name="Dark").click(force=True)
    assert brightness(person) < 200
    person.page.reload()
    expect(person.composer).to_be_visible()
    assert brightness(person) < 200


def test_code_is_copied(visit: Visits) -> None:
    person = visit(permissions=["clipboard-read", "clipboard-write"]).open()
    answer = person.ask("something rich")
    expect(answer.get_by_role("table")).to_contain_text("Mars")
    assert answer.locator(".code .k").count() >= 2  # coloured
    answer.get_by_role("button", name="Copy").click()
    expect(answer.get_by_role("button", name="Copied")).to_be_visible()
    copied = person.page.evaluate("navigator.clipboard.readText()")
    assert copied == "def reverse(text: str) -> str:\n    return text[::-1]  # a step of -1\n"


def test_where_there_are_users_one_signs_in_and_out(visit: Visits, tmp_path: Path) -> None:
    with Store.open(tmp_path / "feedback.db") as store, serve({"tiny": tiny()}, store=store) as running:
        accounts = running.app.state.accounts
        accounts.add_user("ann", password="a long enough pass phrase", role="user")
        accounts.add_user("bob", password="another long pass phrase", role="user")
        store.create_conversation(owner="bob", title="Of Bob")
        store.create_conversation(owner="ann", title="Of Ann")
        person = visit()
        person.site = Site(running.base_url, store, PacedEngine(str))
        page = person.page
        page.goto(running.base_url)
        page.get_by_role("textbox", name="Name").fill("ann")
        check(page)
        page.get_by_role("textbox", name="Password").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("Name or password is wrong.")
        page.get_by_role("textbox", name="Password").fill("a long enough pass phrase")
        page.keyboard.press("Enter")
        expect(person.composer).to_be_visible()
        expect(page.locator(".conversations li a")).to_have_text(["Of Ann"])
        person.button("More", within=".sidebar-foot").click()
        expect(page.get_by_role("menuitem", name="Past requests")).to_have_count(0)
        page.get_by_role("menuitem", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        person.problems = [problem for problem in person.problems if "status of 401" not in problem]
