"""Feedback where the eye is: what a person clicks, drags and types is stored, and is training data as it stands."""

import json
from collections.abc import Callable
from pathlib import Path

from browsing import NO_OFFERS, Site, Visit
from playwright.sync_api import expect

from chatloom.feedback.export import export, write
from chatloom.feedback.records import Edit, Feedback, Pair, Ranking, Rating
from chatloom.stages import reward
from chatloom.testing.serving import tiny

Visits = Callable[..., Visit]


def given(site: Site, kind: type) -> list[Feedback]:
    """The feedback of this kind on the conversation that was used last."""
    here = site.store.conversations(owner="", limit=1)[0].id
    return [each for each in site.store.feedback(conversation=here, consent=None) if isinstance(each, kind)]


def test_thumb_with_reasons_and_comment_and_taken_back(visit: Visits, site: Site) -> None:
    person = visit().open()
    person.ask("Is the moon made of cheese?")
    person.button("Bad answer").click()
    expect(person.button("Bad answer")).to_have_attribute("aria-pressed", "true")
    form = person.page.get_by_role("form", name="What was wrong?")
    form.get_by_role("button", name="Not true").click()
    form.get_by_role("textbox", name="Comment").fill("It is rock.")
    form.get_by_role("button", name="Send").click()
    expect(form).to_have_count(0)
    expect(person.page.locator(".toast")).to_have_text("Thank you. This is now training data.")
    (rating,) = given(site, Rating)
    assert isinstance(rating, Rating)
    assert (rating.value, rating.tags, rating.comment, rating.consent) == (-1, ("wrong",), "It is rock.", True)
    person.page.reload()
    expect(person.button("Bad answer")).to_have_attribute("aria-pressed", "true")
    person.button("Bad answer").click()
    expect(person.button("Bad answer")).to_have_attribute("aria-pressed", "false")
    expect(person.page.get_by_text("Taken back.").first).to_be_visible()
    assert not given(site, Rating)


def test_of_two_answers_one_is_chosen(visit: Visits, site: Site) -> None:
    person = visit().open()
    site.engine.hold()
    person.ask_in_another_way("Name a colour", "Two answers, side by side")
    expect(person.page.get_by_role("heading", name="Two answers are being written.")).to_be_visible()
    expect(person.button("B is better")).to_be_disabled()
    person.page.reload()  # both are still there
    site.engine.release()
    expect(person.page.get_by_role("heading", name="Which answer is better?")).to_be_visible()
    columns = person.page.locator(".pair-answer .prose")
    expect(columns).to_have_count(2)
    better = columns.nth(1).inner_text()
    person.button("B is better").click()
    expect(person.answers()).to_have_text([better])
    expect(person.page.get_by_role("group", name="2 of 2")).to_be_visible()
    (pair,) = given(site, Pair)
    assert isinstance(pair, Pair)
    assert (pair.chosen.content, pair.tie) == (better, False)
    assert pair.prompt[-1].content == "Name a colour"


def test_an_answer_that_failed_is_neither_chosen_nor_ranked(visit: Visits, site: Site) -> None:
    person = visit().open()
    person.ask_in_another_way("Name a stone", "Two answers, side by side")
    expect(person.button("B is better")).to_be_enabled()
    failed, good = site.answers()
    site.store.update_message(failed.id, status="failed")
    person.page.reload()
    expect(person.page.get_by_role("heading", name="One of the two answers could not be finished.")).to_be_visible()
    for name in ("A is better", "B is better", "Equally good"):
        expect(person.button(name)).to_be_disabled()
    person.page.locator(".pair-foot .bare").click()
    expect(person.answers()).to_have_text([good.content])
    person.button("More", within=".message.assistant").click()
    person.page.get_by_role("menuitem", name="Several answers, to rank").click()
    items = person.page.get_by_role("dialog", name="Best answer first").locator(".rank-item")
    expect(items).to_have_count(2)  # the good one and one more
    ids = items.evaluate_all("items => items.map((item) => item.dataset.id)")
    assert good.id in ids
    assert failed.id not in ids


def test_two_answers_are_offered_at_times_and_chosen_by_key(visit: Visits, site: Site) -> None:
    person = visit({"offer": True, "offerShare": 1.0}).open()
    person.composer.fill("Name a fish")
    person.composer.press("Enter")
    expect(person.page.get_by_role("heading", name="Which answer is better?")).to_be_visible()
    person.composer.blur()
    person.page.keyboard.press("0")
    expect(person.page.locator(".pair")).to_have_count(0)
    (pair,) = given(site, Pair)
    assert isinstance(pair, Pair)
    assert pair.tie


def test_two_models_side_by_side_are_not_named_before_the_choice(visit: Visits, site: Site) -> None:
    person = visit({**NO_OFFERS, "sampling": {"max_tokens": 12}}).open()
    person.ask_in_another_way("Name a cloud", "Beside tiny")
    person.button("A is better").click(trial=True)
    assert "weaver" not in person.page.locator(".pair").inner_text()
    person.button("Equally good").click()
    expect(person.page.locator(".pair")).to_have_count(0)
    (pair,) = given(site, Pair)
    assert isinstance(pair, Pair)
    assert {answer.made.model for answer in (pair.chosen, pair.rejected) if answer.made} == {"weaver", "tiny"}


def test_rank_by_keyboard(visit: Visits, site: Site) -> None:
    person = visit().open()
    person.ask_in_another_way("Name a bird", "Several answers, to rank")
    dialog = person.page.get_by_role("dialog", name="Best answer first")
    items = dialog.get_by_role("listitem")
    expect(items).to_have_count(3)
    dialog.get_by_role("button", name="One more answer").click()
    expect(items).to_have_count(4)
    expect(dialog.locator(".prose.running")).to_have_count(0)
    texts = dialog.locator(".rank-item .prose").all_inner_texts()
    items.nth(0).focus()
    person.page.keyboard.press("Alt+ArrowDown")
    expect(person.page.locator("#announcer")).to_contain_text("Answer A: place 2 of 4")
    person.page.keyboard.press("ArrowDown")  # to the third, which goes to the front
    person.page.keyboard.press("1")
    person.page.keyboard.press("ArrowDown")
    person.page.keyboard.press("ArrowDown")
    person.page.keyboard.press("=")  # A is level with B
    expect(dialog.locator(".rank-place")).to_have_text(["1", "2", "2", "4"])
    dialog.get_by_role("button", name="Save the ranking").click()
    expect(person.page.get_by_text("Ranking saved: 5 pairs for training.").first).to_be_visible()
    (ranking,) = given(site, Ranking)
    assert isinstance(ranking, Ranking)
    ordered = [{answer.content for answer in group} for group in ranking.groups]
    assert ordered == [{texts[2]}, {texts[0], texts[1]}, {texts[3]}]


def test_rank_by_dragging(visit: Visits, site: Site) -> None:
    person = visit().open()
    person.ask_in_another_way("Name a tree", "Several answers, to rank")
    dialog = person.page.get_by_role("dialog", name="Best answer first")
    expect(dialog.get_by_role("listitem")).to_have_count(3)
    expect(dialog.locator(".prose.running")).to_have_count(0)
    expect(dialog.locator(".rank-item .prose").nth(2)).to_contain_text("Name a tree")
    texts = dialog.locator(".rank-item .prose").all_inner_texts()
    start, end = (dialog.locator(".rank-handle").nth(index).bounding_box() for index in (0, 2))
    assert start is not None
    assert end is not None
    mouse = person.page.mouse
    mouse.move(start["x"] + 10, start["y"] + 10)
    mouse.down()
    mouse.move(start["x"] + 10, end["y"] + 40, steps=12)
    mouse.up()
    expect(dialog.locator("h3")).to_have_text(["Answer B", "Answer C", "Answer A"])
    dialog.get_by_role("button", name="Save the ranking").click()
    expect(dialog).to_have_count(0)
    (ranking,) = given(site, Ranking)
    assert isinstance(ranking, Ranking)
    assert [group[0].content for group in ranking.groups] == [texts[1], texts[2], texts[0]]


def test_an_answer_as_it_should_have_been(visit: Visits, site: Site) -> None:
    person = visit().open()
    first = person.ask("What is two and two?").inner_text()
    person.button("More", within=".message.assistant").click()
    person.page.get_by_role("menuitem", name="Write what it should have said").click()
    field = person.page.get_by_role("textbox", name="Write what it should have said")
    expect(field).to_have_value(first)
    field.fill("Two and two is **four**.")
    person.button("Save", within=".editor").click()
    expect(person.answers()).to_have_text(["Two and two is four."])
    expect(person.page.locator(".byline")).to_have_text("Your version")
    (edit,) = given(site, Edit)
    assert isinstance(edit, Edit)
    assert (edit.answer.content, edit.text) == (first, "Two and two is **four**.")
    person.ask("And three?")
    assert "Two and two is **four**.<|end_of_turn|>" in site.engine.prompts[-1]
    person.page.get_by_role("button", name="Previous version").click()
    expect(person.answers()).to_have_text([first])


def test_without_consent_it_is_kept_and_not_exported(visit: Visits, site: Site) -> None:
    person = visit({**NO_OFFERS, "consent": False}).open()
    person.ask("A private matter")
    person.button("Good answer").click()
    expect(person.button("Good answer")).to_have_attribute("aria-pressed", "true")
    (rating,) = given(site, Rating)
    assert not rating.consent
    assert all("A private matter" not in json.dumps(row) for row in export(site.store, "kto").rows)


def test_from_a_click_to_a_step_of_a_reward_model(visit: Visits, site: Site, tmp_path: Path) -> None:
    person = visit().open()
    for question in ("Name a river", "Name a lake"):
        person.ask_in_another_way(question, "Two answers, side by side")
        person.button("A is better").click()
        expect(person.page.locator(".pair")).to_have_count(0)
    person.page.get_by_role("link", name="The loop").click()
    expect(person.page.get_by_role("heading", name="What a reward model would train on")).to_be_visible()
    expect(person.page.locator(".pairs tbody")).to_contain_text("Name a lake")
    assert "chatloom feedback export" in person.page.locator(".command").inner_text()
    write(export(site.store, "reward"), tmp_path / "feedback.jsonl")
    tiny().save(tmp_path / "model")
    reward.run(reward.Config(str(tmp_path / "model"), str(tmp_path / "feedback.jsonl"), str(tmp_path / "reward")))
    lines = (tmp_path / "reward" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert "loss" in json.loads(lines[0])
    person.page.get_by_role("link", name="Back to the conversation").click()
    expect(person.questions()).to_have_count(2)
