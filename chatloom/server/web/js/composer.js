// Where a person writes; below it, quietly, how much context is used.
import { complain, send, stopAll } from "/web/js/actions.js";
import { fill, h, icon, iconButton } from "/web/js/dom.js";
import { openMenu } from "/web/js/menu.js";
import { settings } from "/web/js/remembered.js";
import { openSettings } from "/web/js/settings.js";
import { isRunning, on, runningOnPath, state } from "/web/js/state.js";
import { number, t } from "/web/js/texts.js";

export class Composer {
  constructor(thread) {
    this.area = h("textarea", { id: "composer", rows: 1, placeholder: t("placeholder"), "aria-label": t("messageLabel"),
      "aria-describedby": "composer-hint" });
    this.button = h("button.send", { type: "submit" });
    this.quiet = h("div.quiet");
    const form = h("form.composer", { onsubmit: (event) => { event.preventDefault(); this.act(); } },
      this.area,
      h("div.composer-tools",
        iconButton("plus", t("moreWays"), (event) => this.menu(event.currentTarget), { "aria-haspopup": "menu" }),
        iconButton("sliders", t("settings"), () => openSettings("sampling")),
        h("span.space"), this.button));
    this.element = h("div.composer-area.column", thread.toLatest, form, this.quiet,
      h("span.unseen", { id: "composer-hint" }, t("composerHint")));
    this.area.addEventListener("input", () => this.changed());
    this.area.addEventListener("keydown", (event) => this.key(event));
    form.addEventListener("click", (event) => { if (event.target === form) this.area.focus(); });
    for (const event of ["conversation", "thread", "message"]) on(event, () => this.update());
    this.update();
  }

  key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
      event.preventDefault();
      if (this.area.value.trim()) this.submit();
    } else if (event.key === "ArrowUp" && !this.area.value) {
      const own = [...document.querySelectorAll(".message.user .icon-pen")].at(-1);
      if (own) {
        event.preventDefault();
        own.closest("button").click();
      }
    }
  }

  changed() {
    this.area.style.height = "auto";
    this.area.style.height = `${this.area.scrollHeight}px`;
    this.update();
  }

  act() {
    if (this.stops) stopAll();
    else this.submit();
  }

  async submit(ways = null) {
    const text = this.area.value.trim();
    if (!text || this.sending) return;
    this.sending = true;
    this.area.value = "";
    this.changed();
    try {
      await send(text, ways);
    } catch (error) {
      complain(error);
      if (!this.area.value && !error.said) this.area.value = text;
      this.changed();
    } finally {
      this.sending = false;
    }
  }

  menu(button) {
    const others = state.models.map((model) => model.name).filter((name) => name !== settings.model).slice(0, 6);
    openMenu(button, t("moreWays"), [
      { label: t("askTwo"), icon: "columns", run: () => this.submit("two") },
      { label: t("askRank"), icon: "rank", run: () => this.submit("rank") },
      ...others.map((name) => ({ label: t("askBeside", { model: name }), icon: "columns",
        run: () => this.submit({ beside: name }) })),
    ], { above: true });
  }

  update() {
    this.stops = runningOnPath().length > 0 && !this.area.value.trim();
    const label = t(this.stops ? "stopAll" : "send");
    if (this.shown !== label) {
      fill(this.button, icon(this.stops ? "stop" : "send"));
      this.button.setAttribute("aria-label", label);
      this.button.title = label;
      this.shown = label;
    }
    this.button.disabled = !this.stops && !this.area.value.trim();
    this.figures();
  }

  figures() {
    const message = state.leaf ? state.tree.get(state.leaf) : null;
    const figures = message?.figures;
    const parts = [];
    if (isRunning(message) && figures?.tokens_per_second) parts.push(t("speed", { count: number(figures.tokens_per_second) }));
    if (figures?.context) {
      parts.push(t("contextUsed", { used: number(figures.context_used), all: number(figures.context) }));
    }
    const nearly = figures?.context && figures.context_used > 0.9 * figures.context;
    if (nearly) parts.unshift(t("contextNearlyFull"));
    this.quiet.classList.toggle("nearly", Boolean(nearly));
    this.quiet.textContent = parts.join("  ·  ");
  }
}
