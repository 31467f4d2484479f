// The branch that is shown, from its first message to its last.
import { ask, complain, pairOf, send } from "/web/js/actions.js";
import { copyText, fill, h, iconButton } from "/web/js/dom.js";
import { MessageView } from "/web/js/message.js";
import { PairView } from "/web/js/pair.js";
import { settings } from "/web/js/remembered.js";
import { isRunning, on, state } from "/web/js/state.js";
import { t } from "/web/js/texts.js";

const NEAR = 90; // pixels from the end that count as the end

export class Thread {
  constructor() {
    this.views = new Map();
    this.pair = null;
    this.list = h("ol.messages.column", { "aria-label": t("conversations") });
    this.title = h("h1.unseen");
    this.element = h("div.view.thread", { id: "thread", tabindex: "-1" });
    this.toLatest = iconButton("arrowDown", t("toLatest"), () => this.toEnd(true));
    this.toLatest.className = "to-latest";
    this.toLatest.hidden = true;
    this.atEnd = true;
    this.element.addEventListener("scroll", () => this.scrolled());
    for (const event of ["wheel", "touchmove", "keydown"]) {
      this.element.addEventListener(event, () => { this.moved = true; }, { passive: true });
    }
    this.element.addEventListener("click", (event) => copyCode(event));
    on("conversation", () => this.begin());
    on("thread", () => this.draw());
    on("message", (id) => this.changed(id));
    new ResizeObserver(() => this.stay()).observe(this.list);
  }

  begin() {
    this.views.clear();
    this.atEnd = true;
    this.draw();
    this.toEnd();
  }

  draw() {
    const path = state.leaf ? state.tree.path(state.leaf) : [];
    const before = this.pair?.question;
    this.pair = null;
    if (!path.length) {
      fill(this.element, welcome());
      return;
    }
    const items = [];
    for (const message of path) {
      items.push(this.view(message.id).element);
      const ids = pairOf(message.id)?.filter((id) => state.tree.get(id));
      if (ids?.length === 2) {
        this.pair = new PairView(message.id, ids);
        items.push(this.pair.element);
        break;
      }
    }
    const last = path.at(-1);
    if (!this.pair && last.role === "user") items.push(unanswered(last));
    this.title.textContent = state.conversation?.title || t("newChat");
    this.list.setAttribute("aria-label", this.title.textContent);
    if (this.list.parentNode !== this.element) fill(this.element, this.title, this.list);
    arrange(this.list, items);
    if (this.pair && this.pair.question !== before) this.moved = false;
    this.stay();
  }

  view(id) {
    const known = this.views.get(id);
    if (known) known.update();
    else this.views.set(id, new MessageView(id));
    return this.views.get(id);
  }

  changed(id) {
    if (this.pair?.ids.includes(id)) this.pair.update();
    else this.views.get(id)?.update();
    this.stay();
  }

  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    this.atEnd = !this.pair && scrollHeight - scrollTop - clientHeight < NEAR;
    this.toLatest.hidden = this.atEnd;
  }

  // Two answers are read from their beginning, until the reader moves.
  toPair() {
    this.pair.element.previousElementSibling.scrollIntoView({ block: "start" });
    this.atEnd = false;
    this.scrolled();
  }

  stay() {
    if (this.pair && !this.moved) this.toPair();
    else if (this.atEnd) this.toEnd();
    else this.scrolled();
  }

  toEnd(smooth = false) {
    this.element.scrollTo({ top: this.element.scrollHeight, behavior: smooth ? "smooth" : "instant" });
  }
}

// Put the items in the list without touching those that are in their place: focus and selection stay.
function arrange(list, items) {
  items.forEach((item, index) => {
    if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
  });
  while (list.children.length > items.length) list.lastChild.remove();
}

// A question whose answer never began, such as after an error.
function unanswered(message) {
  if ((state.tree.children.get(message.id) ?? []).some((id) => isRunning(state.tree.get(id)))) return h("li");
  return h("li.message.assistant.unanswered", h("div.state", h("button.button", {
    type: "button", onclick: () => ask(message.id).catch(complain) }, t("regenerate"))));
}

function copyCode(event) {
  const button = event.target.closest(".code-copy");
  if (!button) return;
  copyText(button.closest(".code").querySelector("pre").textContent, button);
  button.textContent = t("copied");
  setTimeout(() => { button.textContent = t("copy"); }, 1500);
}

function welcome() {
  const suggestions = [1, 2, 3, 4].map((index) => t(`suggestion${index}`));
  return h("div.welcome.column",
    h("img", { src: "/web/icon.svg", alt: "", width: 52, height: 52 }),
    h("h1", t("greeting")),
    h("p", t("greetingNote", { model: settings.model || t("appName") })),
    h("div.suggestions", suggestions.map((text) =>
      h("button", { type: "button", onclick: () => send(text).catch(complain) }, text))));
}
