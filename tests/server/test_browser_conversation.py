"""As a person would: ask, stop, go on, ask again, edit and branch, reload; keep conversations in order."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from browsing import Site, Visit
from playwright.sync_api import expect

from chatloom.testing.tokenizer import byte_tokenizer

Visits = Callable[..., Visit]


def test_first_visit_to_answered_question(visit: Visits, site: Site) -> None:
    person = visit().open()
    expect(person.page.get_by_role("heading", name="What shall we work on?")).to_be_visible()
    answer = person.ask("What is a loom?")
    expect(answer).to_contain_text("to: What is a loom?")
    expect(person.page).to_have_title("What is a loom? · Chatloom")
    expect(person.page.locator(".conversations li.current a")).to_have_text("What is a loom?")
    assert "#/c/" in person.page.url
    stored = site.messages()[-1]
    assert stored.status == "done"
    assert stored.made is not None
    assert stored.made.model == "weaver"
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(stored.made.tokens) == stored.content
    assert tokenizer.decode(stored.made.prompt_tokens, skip_special=False).endswith(
        "<|user|>What is a loom?<|end_of_turn|><|assistant|>"
    )


def test_the_answer_is_drawn_as_it_comes_and_the_suggestions_ask(visit: Visits, site: Site) -> None:
    person = visit().open()
    site.engine.hold()
    person.page.get_by_role("button", name="Give me five names for a black cat.").click()
    expect(person.page.get_by_role("img", name="Answering")).to_be_visible()
    site.engine.say(10)
    expect(person.answers()).to_contain_text("Answer ")
    expect(person.answers()).not_to_contain_text("cat")
    expect(person.button("Stop answering")).to_be_visible()
    site.engine.release()
    person.finished()
    expect(person.answers()).to_contain_text("takes a while.")
    expect(person.page.locator("#announcer")).to_have_text("The answer is complete.")
    expect(person.page.locator(".quiet")).to_contain_text("of 4,096 tokens of context")


def test_stop_and_continue(visit: Visits, site: Site) -> None:
    person = visit().open()
    site.engine.hold()
    person.composer.fill("Tell me everything")
    person.composer.press("Enter")
    expect(person.page.get_by_role("img", name="Answering")).to_be_visible()
    site.engine.say(24)
    expect(person.answers()).to_contain_text("to: Tell")
    person.page.keyboard.press("Escape")
    expect(person.page.locator(".state")).to_contain_text("Stopped")
    stopped = site.messages()[-1]
    assert stopped.status == "stopped"
    assert stopped.content == person.answers().inner_text()
    assert stopped.made is not None
    assert byte_tokenizer().decode(stopped.made.tokens) == stopped.content
    site.engine.release()
    person.button("Continue").click()
    expect(person.answers()).to_contain_text("takes a while.")
    person.finished()
    whole = site.messages()[-1]
    assert whole.id == stopped.id
    assert whole.content.startswith(stopped.content)
    assert whole.made is not None
    assert byte_tokenizer().decode(whole.made.tokens) == whole.content
    assert whole.made.finish_reason == "stop"
    expect(person.page.locator(".state")).to_have_count(0)


def test_another_answer_is_a_branch(visit: Visits, site: Site) -> None:
    person = visit().open()
    first = person.ask("Say something").inner_text()
    person.button("Another answer").click()
    expect(person.page.get_by_role("group", name="2 of 2")).to_be_visible()
    person.finished()
    assert person.answers().inner_text() != first
    person.button("Previous version").click()
    expect(person.answers()).to_have_text(first)
    expect(person.button("Previous version")).to_be_disabled()
    assert len({message.parent for message in site.answers()}) == 1


def test_edit_an_earlier_message_and_branch(visit: Visits, site: Site) -> None:
    person = visit().open()
    person.ask("first question")
    second = person.ask("second question").inner_text()
    person.page.locator(".message.user").first.hover()
    person.page.get_by_role("button", name="Edit the message").first.click()
    field = person.page.get_by_role("textbox", name="Edit the message")
    expect(field).to_be_focused()
    field.fill("changed question")
    field.press("Control+Enter")
    expect(person.questions()).to_have_text(["changed question"])
    expect(person.answers()).to_have_count(1)
    expect(person.answers()).to_contain_text("to: changed question")
    person.finished()
    person.page.get_by_role("button", name="Previous version").click()
    expect(person.questions()).to_have_text(["first question", "second question"])
    expect(person.answers().nth(1)).to_have_text(second)
    person.page.reload()
    expect(person.questions()).to_have_text(["first question", "second question"])
    roots = [message for message in site.messages() if message.parent is None]
    assert [message.content for message in roots] == ["first question", "changed question"]


def test_reload_in_mid_answer(visit: Visits, site: Site) -> None:
    person = visit().open()
    site.engine.hold()
    person.composer.fill("a long story")
    person.composer.press("Enter")
    expect(person.page.get_by_role("img", name="Answering")).to_be_visible()
    site.engine.say(30)
    expect(person.answers()).to_contain_text("a long")
    person.page.reload()
    expect(person.answers()).to_contain_text("a long")
    site.engine.say(10)
    expect(person.answers()).to_contain_text("story. It")
    site.engine.release()
    person.finished()
    assert person.answers().inner_text() == site.messages()[-1].content
    assert len(site.answers()) == 1


def test_search_rename_and_delete(visit: Visits, site: Site) -> None:
    person = visit().open()
    person.ask("About zebras in Kenya")
    person.button("New chat", within=".sidebar").click()
    person.ask("About trains")
    listed = person.page.locator(".conversations li a")
    person.page.keyboard.press("Control+k")
    search = person.page.get_by_role("searchbox", name="Search conversations")
    expect(search).to_be_focused()
    search.fill("zebra")
    expect(listed).to_have_text(["About zebras in Kenya"])
    person.button("Options of About zebras in Kenya").click()
    person.page.get_by_role("menuitem", name="Rename").click()
    person.page.get_by_role("textbox", name="Title").fill("Stripes")
    person.page.keyboard.press("Enter")
    expect(listed).to_have_text(["Stripes"])
    person.button("Options of Stripes").click()
    person.page.get_by_role("menuitem", name="Delete").click()
    dialog = person.page.get_by_role("dialog", name="Delete this conversation?")
    expect(dialog).to_contain_text("Stripes")
    dialog.get_by_role("button", name="Delete").click()
    expect(person.page.locator(".conversations")).to_contain_text("Nothing found.")
    search.fill("")
    expect(listed.first).to_have_text("About trains")
    assert not site.store.conversations(owner="", search="zebra")


def test_model_adapter_system_message_and_sampling(visit: Visits, site: Site) -> None:
    person = visit().open()
    person.button("Model: weaver").click()
    person.page.get_by_role("menuitemradio", name="weaver + mine").click()
    expect(person.button("Model: weaver + mine")).to_be_visible()
    person.button("Settings", within=".composer").click()
    person.page.get_by_role("textbox", name="System message").fill("Be brief.")
    slider = person.page.get_by_role("slider", name="Temperature")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    person.page.get_by_role("spinbutton", name="Longest answer").fill("40")
    person.page.keyboard.press("Escape")
    person.ask("Who are you?")
    assert site.engine.prompts[-1].startswith("<|begin_of_text|><|system|>Be brief.<|end_of_turn|>")
    assert site.engine.sampling[-1].temperature == pytest.approx(0.9)
    assert site.engine.sampling[-1].adapter == "mine"
    expect(person.page.locator(".state")).to_contain_text("reached its length limit")
    made = site.messages()[-1].made
    assert made is not None
    assert (made.model, made.adapter, made.sampling["max_tokens"], made.finish_reason) == (
        "weaver",
        "mine",
        40,
        "length",
    )
    assert len(made.tokens) == 40


def test_an_error_is_said_and_nothing_is_lost(visit: Visits) -> None:
    person = visit().open()
    person.composer.fill("x" * 5000)
    person.composer.press("Enter")
    expect(person.page.get_by_role("alert")).to_contain_text("maximum context length is 4096 tokens")
    expect(person.questions()).to_have_count(1)
    person.page.locator(".message.user").hover()
    person.button("Edit the message").click()
    field = person.page.get_by_role("textbox", name="Edit the message")
    field.fill("shorter")
    person.button("Send", within=".editor").click()
    expect(person.answers()).to_contain_text("to: shorter")
    person.finished()
    person.problems = [problem for problem in person.problems if "status of 400" not in problem]


def test_export_and_import(visit: Visits, site: Site, tmp_path: Path) -> None:
    person = visit().open()
    person.ask("Export me")
    with person.page.expect_download() as coming:
        person.button("Options of Export me").click()
        person.page.get_by_role("menuitem", name="Export").click()
    path = tmp_path / coming.value.suggested_filename
    coming.value.save_as(path)
    assert path.name == "Export-me.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["conversations"][0]["title"] = "Brought back"
    path.write_text(json.dumps(data), encoding="utf-8")
    before = site.answers()[0]
    with person.page.expect_file_chooser() as choosing:
        person.button("More", within=".sidebar-foot").click()
        person.page.get_by_role("menuitem", name="Import conversations").click()
    choosing.value.set_files(path)
    expect(person.page.get_by_text("Conversations imported: 1").first).to_be_visible()
    person.page.get_by_role("link", name="Brought back").first.click()
    expect(person.answers()).to_have_text(before.content)
    back = site.store.conversations(owner="", search="Brought back")[0]
    again = site.store.messages(back.id)[-1]
    assert (again.content, again.made, again.created) == (before.content, before.made, before.created)


def test_a_stream_that_is_refused_is_taken_up_again_and_one_that_is_gone_ends(visit: Visits, site: Site) -> None:
    person = visit().open()
    site.engine.hold()
    person.page.route("**/events*", lambda route: route.fulfill(status=503))
    person.composer.fill("Tell me of rivers")
    person.composer.press("Enter")
    expect(person.page.locator(".toast")).to_have_text("Reconnecting …")
    person.page.unroute("**/events*")
    site.engine.release()
    person.finished()
    expect(person.answers()).to_contain_text("to: Tell me of rivers")
    site.engine.hold()
    person.page.route("**/events*", lambda route: route.fulfill(status=404))
    person.page.route("**/api/conversations/*", lambda route: route.fulfill(status=404))
    person.button("Another answer", within=".message.assistant").click()
    expect(person.page.locator(".toast.bad")).to_be_visible()
    expect(person.page.locator(".prose.running")).to_have_count(0)
    assert all("503" in problem or "404" in problem for problem in person.problems)
    person.problems.clear()
