// Several answers put in order, by dragging or by keys. Dashed answers are level with the one above.
import { ask, complain, thank } from "/web/js/actions.js";
import { api } from "/web/js/api.js";
import { openDialog } from "/web/js/dialog.js";
import { announce, h, icon, iconButton, toast } from "/web/js/dom.js";
import { Prose } from "/web/js/message.js";
import { settings } from "/web/js/remembered.js";
import { emit, hasFailed, isRunning, on, state } from "/web/js/state.js";
import { t } from "/web/js/texts.js";

const MOST = 9;

export function openRanking(question) {
  const ranking = new Ranking(question);
  ranking.open();
  return ranking;
}

class Ranking {
  constructor(question) {
    this.question = question;
    this.items = [];
    this.count = 0; // of those that were ever shown: a name is given once
    this.list = h("ol.ranking", { "aria-label": t("rankTitle") });
    this.more = h("button.button", { type: "button", onclick: () => this.oneMore() }, icon("plus"), t("rankMore"));
    this.save = h("button.button.main", { type: "button", onclick: () => this.send() }, t("rankSend"));
  }

  open() {
    this.take();
    const off = [on("message", () => this.update())];
    this.dialog = openDialog(t("rankTitle"), [h("p.hint", t("rankHint")), this.list], [this.more, this.save], {
      wide: true, onclose: () => off.forEach((end) => end()) });
    if (this.items.length < 2) this.oneMore();
    this.items[0]?.element.focus();
  }

  // The answers there are, in the order they came, but for those that failed; new ones go to the end.
  take() {
    const known = new Set(this.items.map((item) => item.id));
    const sound = (state.tree.children.get(this.question) ?? []).filter((id) => !hasFailed(state.tree.get(id)));
    for (const id of sound.slice(-MOST)) {
      if (!known.has(id)) this.items.push(this.item(id, this.count++));
    }
    this.arrange();
    this.update();
  }

  item(id, index) {
    const name = t("answerName", { letter: String.fromCharCode(65 + index) });
    const item = { id, name, tied: false, prose: new Prose(), place: h("span.rank-place") };
    const handle = h("div.rank-handle", item.place, icon("grip"));
    const button = (icon, label, run) => iconButton(icon, `${name}: ${label}`, run);
    item.equal = h("button.icon-button.equal", { type: "button", "aria-pressed": "false",
      "aria-label": `${name}: ${t("level")}`, title: t("level"), onclick: () => this.tie(item) }, "=");
    item.element = h("li.rank-item", { tabindex: "0", "data-id": id },
      handle, h("div", h("h3", name), item.prose.element),
      h("div.rank-buttons", button("arrowUp", t("moveUp"), () => this.move(item, -1)),
        button("arrowDown", t("moveDown"), () => this.move(item, 1)), item.equal));
    item.element.addEventListener("keydown", (event) => this.key(event, item));
    handle.addEventListener("pointerdown", (event) => this.drag(event, item));
    return item;
  }

  update() {
    const failed = this.items.filter((item) => hasFailed(state.tree.get(item.id)));
    if (failed.length) {
      this.items = this.items.filter((item) => !failed.includes(item));
      for (const item of failed) item.element.remove();
      this.arrange();
    }
    for (const item of this.items) item.prose.update(state.tree.get(item.id));
    const running = this.items.some((item) => isRunning(state.tree.get(item.id)));
    this.save.disabled = running || this.items.length < 2;
    this.save.title = this.save.disabled ? t("rankNeed") : "";
    this.more.disabled = running || this.items.length >= MOST;
  }

  arrange() {
    let place = 0;
    this.items.forEach((item, index) => {
      if (index === 0) item.tied = false;
      if (!item.tied) place = index + 1;
      item.place.textContent = String(place);
      item.element.classList.toggle("tied", item.tied);
      item.equal.setAttribute("aria-pressed", String(item.tied));
      item.equal.disabled = index === 0;
      item.element.setAttribute("aria-label", t("rankItem", { name: item.name, place }));
      if (this.list.children[index] !== item.element) {
        this.list.insertBefore(item.element, this.list.children[index] ?? null);
      }
    });
  }

  move(item, by) {
    const from = this.items.indexOf(item);
    const to = Math.max(0, Math.min(this.items.length - 1, from + by));
    if (to === from) return;
    const held = document.activeElement;
    this.items.splice(from, 1);
    this.items.splice(to, 0, item);
    item.tied = false;
    this.arrange();
    held?.focus();
    announce(t("rankMoved", { name: item.name, place: to + 1, count: this.items.length }));
  }

  tie(item) {
    if (this.items.indexOf(item) === 0) return;
    item.tied = !item.tied;
    this.arrange();
    announce(t(item.tied ? "rankTied" : "rankUntied", { name: item.name }));
  }

  key(event, item) {
    if (event.target !== item.element) return;
    const at = this.items.indexOf(item);
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (step && event.altKey) this.move(item, step);
    else if (step) this.items[at + step]?.element.focus();
    else if (event.key === "=") this.tie(item);
    else if (/^[1-9]$/.test(event.key)) this.move(item, Number(event.key) - 1 - at);
    else return;
    event.preventDefault();
  }

  // The lifted answer follows the pointer; it changes places when it passes the middle of another.
  drag(event, item) {
    if (event.button !== 0) return;
    event.preventDefault();
    const { element } = item;
    let start = event.clientY;
    element.setPointerCapture(event.pointerId);
    element.classList.add("lifted");
    const moved = (now) => {
      element.style.transform = `translateY(${now.clientY - start}px)`;
      const at = this.items.indexOf(item);
      for (const step of [-1, 1]) {
        const other = this.items[at + step]?.element.getBoundingClientRect();
        const own = element.getBoundingClientRect();
        const passed = other && (step < 0 ? own.top < other.top + other.height / 2 : own.bottom > other.top + other.height / 2);
        if (!passed) continue;
        const before = element.offsetTop;
        this.move(item, step);
        start += element.offsetTop - before;
        element.style.transform = `translateY(${now.clientY - start}px)`;
        break;
      }
    };
    const dropped = () => {
      element.removeEventListener("pointermove", moved);
      element.classList.remove("lifted");
      element.style.transform = "";
    };
    element.addEventListener("pointermove", moved);
    element.addEventListener("lostpointercapture", dropped, { once: true });
  }

  async oneMore() {
    this.more.disabled = true;
    try {
      await ask(this.question);
      this.take();
    } catch (error) {
      complain(error);
      this.update();
    }
  }

  async send() {
    const groups = [];
    for (const item of this.items) {
      if (item.tied && groups.length) groups.at(-1).push(item.id);
      else groups.push([item.id]);
    }
    try {
      await api.rank({ groups, consent: settings.consent });
      this.dialog.close();
      if (settings.consent) toast(t("rankDone", { count: pairsOf(groups) }));
      else thank();
      state.leaf = state.tree.leaf(groups[0][0]);
      emit("thread");
    } catch (error) {
      complain(error);
    }
  }
}

function pairsOf(groups) {
  let count = 0;
  groups.forEach((group, index) => {
    for (const worse of groups.slice(index + 1)) count += group.length * worse.length;
  });
  return count;
}
