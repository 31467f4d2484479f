// One message: what it says, where its branches are, and what can be done with it.
import { ask, complain, goOn, pairOf, say, switchBranch } from "/web/js/actions.js";
import { copyText, fill, h, icon, iconButton, safeMarkup } from "/web/js/dom.js";
import { editAnswer, openReasons, rateTap } from "/web/js/feedback.js";
import { openMenu } from "/web/js/menu.js";
import { emit, hasFailed, isRunning, state } from "/web/js/state.js";
import { number, t } from "/web/js/texts.js";

// Blocks of safe markup; only those that changed are drawn again.
export class Prose {
  constructor() {
    this.element = h("div.prose");
    this.shown = [];
  }

  update(message) {
    const blocks = message.blocks ?? [];
    this.element.classList.toggle("running", isRunning(message));
    while (this.element.children.length > blocks.length) this.element.lastChild.remove();
    this.shown.length = Math.min(this.shown.length, blocks.length);
    blocks.forEach((markup, index) => {
      if (this.shown[index] === markup) return;
      const block = h("div.block", safeMarkup(markup));
      for (const button of block.querySelectorAll(".code-copy")) button.textContent = t("copy");
      for (const label of block.querySelectorAll(".code-language:empty")) label.textContent = t("codeLabel");
      for (const code of block.querySelectorAll("pre")) {
        code.setAttribute("role", "region");
        code.setAttribute("aria-label", t("codeLabel"));
      }
      if (index < this.element.children.length) this.element.children[index].replaceWith(block);
      else this.element.append(block);
      this.shown[index] = markup;
    });
    if (isRunning(message) && !blocks.length) fill(this.element, waiting());
    else this.element.querySelector(":scope > .waiting")?.remove();
  }
}

function waiting() {
  return h("div.waiting", { role: "img", "aria-label": t("thinking") }, h("i"), h("i"), h("i"));
}

export class MessageView {
  constructor(id) {
    this.id = id;
    this.editing = false;
    const role = state.tree.get(id).role;
    this.element = h(`li.message.${role}`, { "data-id": id });
    this.article = h("article");
    this.element.append(this.article);
    this.prose = role === "assistant" ? new Prose() : null;
    if (role === "assistant") this.buildAnswer();
    this.update();
  }

  buildAnswer() {
    this.byline = h("div.byline");
    this.state = h("div");
    this.actions = h("div.actions");
    this.panel = h("div");
    fill(this.article, this.byline, this.prose.element, this.state, this.actions, this.panel);
  }

  update() {
    if (this.editing) return;
    const message = state.tree.get(this.id);
    if (message.role === "user") this.updateQuestion(message);
    else this.updateAnswer(message);
  }

  updateQuestion(message) {
    this.article.setAttribute("aria-label", t("youSaid"));
    fill(this.article, h("div.bubble", message.content), h("div.actions",
      iconButton("copy", t("copy"), (event) => copyText(message.content, event.currentTarget)),
      iconButton("pen", t("editMessage"), () => this.editQuestion()),
      branches(message)));
  }

  updateAnswer(message) {
    const name = message.made ? message.made.model : t("yourVersion");
    this.article.setAttribute("aria-label", t("answerFrom", { model: name }));
    this.article.setAttribute("aria-busy", String(isRunning(message)));
    fill(this.byline,
      message.made ? h("span", name) : h("span.own", t("yourVersion")),
      message.made?.adapter && h("span.adapter", `+ ${message.made.adapter}`));
    this.prose.update(message);
    fill(this.state, ending(message));
    const held = document.activeElement;
    const label = this.actions.contains(held) ? held.getAttribute("aria-label") : null;
    fill(this.actions, isRunning(message) ? null : this.buttons(message));
    if (label) this.actions.querySelector(`[aria-label="${CSS.escape(label)}"]`)?.focus();
  }

  buttons(message) {
    const judged = message.made && !hasFailed(message);
    const rated = message.rating?.value ?? 0;
    const thumb = (value, name, label) => iconButton(name, label, () => this.rate(value), {
      "aria-pressed": String(rated === value) });
    return [
      branches(message),
      iconButton("copy", t("copy"), (event) => copyText(message.content, event.currentTarget)),
      judged && thumb(1, "up", t("good")),
      judged && thumb(-1, "down", t("bad")),
      iconButton("again", t("regenerate"), () => ask(message.parent).catch(complain)),
      iconButton("more", t("more"), (event) => this.menu(event.currentTarget, message), { "aria-haspopup": "menu" }),
      message.made?.tokens_per_second > 0 &&
        h("span.figure", t("speed", { count: number(message.made.tokens_per_second, 0) })),
    ];
  }

  menu(button, message) {
    const several = { label: t("askRank"), icon: "rank", run: () => emit("rank", message.parent) };
    openMenu(button, t("more"), [
      { label: t("askTwo"), icon: "columns", run: () => ask(message.parent, "two").catch(complain) },
      several,
      message.made && !hasFailed(message) && { label: t("editAnswer"), icon: "pen", run: () => this.editAnswer() },
      message.can_continue && { label: t("goOn"), icon: "forward", run: () => goOn(this.id).catch(complain) },
    ].filter(Boolean));
  }

  async rate(value) {
    const message = state.tree.get(this.id);
    const given = await rateTap(message, value);
    this.update();
    fill(this.panel);
    if (given) openReasons(this.panel, message, () => this.update());
  }

  editAnswer() {
    editAnswer(this, state.tree.get(this.id));
  }

  editQuestion() {
    const message = state.tree.get(this.id);
    this.edit(message.content, t("editMessage"), t("editNote"), t("sendEdited"), async (text) => {
      await say(message.parent, text);
    });
  }

  // The message becomes a field; `done(text)` is given what was written.
  edit(content, label, note, action, done) {
    this.editing = true;
    this.article.classList.add("editing");
    const area = h("textarea", { value: content, "aria-label": label, rows: 3 });
    const close = () => {
      this.editing = false;
      this.article.classList.remove("editing");
      if (this.prose) this.buildAnswer();
      this.update();
    };
    const save = async () => {
      const text = area.value.trim();
      if (!text) return;
      try {
        close();
        if (text !== content) await done(text);
      } catch (error) {
        complain(error);
      }
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); close(); }
      else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    });
    fill(this.article, h("form.editor", { onsubmit: (event) => { event.preventDefault(); save(); } }, area,
      h("div.row", h("span.hint", note),
        h("button.button", { type: "button", onclick: close }, t("cancel")),
        h("button.button.main", { type: "submit" }, action))));
    area.style.height = `${Math.min(area.scrollHeight + 4, window.innerHeight * 0.5)}px`;
    area.focus();
    area.setSelectionRange(content.length, content.length);
  }
}

function branches(message) {
  const siblings = state.tree.siblings(message.id);
  if (siblings.length < 2 || pairOf(message.parent)) return null;
  const at = siblings.indexOf(message.id);
  const step = (by, name, label) => iconButton(name, label, () => switchBranch(message.id, by), {
    disabled: !siblings[at + by] });
  return h("span.branches", { role: "group", "aria-label": t("branch", { index: at + 1, count: siblings.length }) },
    step(-1, "left", t("previous")), h("span", `${at + 1}/${siblings.length}`), step(1, "right", t("next")));
}

function ending(message) {
  if (hasFailed(message)) {
    return h("div.state.failed", icon("warning"), h("span", message.problem || t("failed")), again(message));
  }
  if (!message.can_continue || isRunning(message)) return null;
  const why = message.status === "stopped" ? t("stopped") : t("cut");
  return h("div.state", h("span", why), h("button.button", {
    type: "button", onclick: () => goOn(message.id).catch(complain) }, icon("forward"), t("goOn")));
}

function again(message) {
  return h("button.button", { type: "button", onclick: () => ask(message.parent).catch(complain) },
    icon("again"), t("regenerate"));
}
