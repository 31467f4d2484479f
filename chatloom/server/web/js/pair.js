// Two answers side by side; which model wrote which is not said before the choice.
import { choosePair, complain, setPair, show } from "/web/js/actions.js";
import { fill, h } from "/web/js/dom.js";
import { Prose } from "/web/js/message.js";
import { hasFailed, isRunning, state } from "/web/js/state.js";
import { t } from "/web/js/texts.js";

export class PairView {
  constructor(question, ids) {
    this.question = question;
    this.ids = ids;
    this.title = h("h2");
    this.hint = h("span.hint");
    this.sides = ids.map((id, index) => this.side(index));
    this.foot = h("div.pair-foot",
      h("button.button", { type: "button", onclick: () => this.choose(null) }, t("tie")),
      h("button.button.bare", { type: "button", onclick: () => this.skip() }, t("skipPair")));
    this.element = h("li.message.assistant",
      h("section.pair", { "aria-label": t("pairTitle") },
        h("div.pair-head", this.title, this.hint),
        h("div.pair-columns", this.sides.map((side) => side.element)),
        this.foot));
    this.update();
  }

  side(index) {
    const prose = new Prose();
    const name = h("h3", t(index ? "answerB" : "answerA"));
    const problem = h("div");
    const pick = h("button.button.pick", { type: "button", onclick: () => this.choose(index) },
      t(index ? "chooseB" : "chooseA"));
    return { prose, pick, problem, element: h("article.pair-answer", { "aria-label": name.textContent },
      name, prose.element, problem, pick) };
  }

  get ready() {
    return this.ids.every((id) => !isRunning(state.tree.get(id)));
  }

  get broken() {
    return this.ready && this.ids.some((id) => hasFailed(state.tree.get(id)));
  }

  update() {
    const open = this.ready && !this.broken;
    this.ids.forEach((id, index) => {
      const message = state.tree.get(id);
      this.sides[index].prose.update(message);
      fill(this.sides[index].problem, hasFailed(message) && h("div.state.failed", message.problem || t("failed")));
      this.sides[index].pick.disabled = !open;
    });
    this.foot.firstChild.disabled = !open;
    fill(this.title, t(this.broken ? "pairBroken" : open ? "pairTitle" : "pairWait"));
    fill(this.hint, open && t("pairKeys"));
  }

  async choose(index) {
    if (!this.ready || this.broken) return;
    const [first, second] = index === 1 ? [this.ids[1], this.ids[0]] : this.ids;
    await choosePair(this.question, first, second, index === null).catch(complain);
  }

  skip() {
    setPair(this.question, null);
    show(state.tree.leaf(this.ids.find((id) => !hasFailed(state.tree.get(id))) ?? this.ids[0]));
  }

  // 1 and 2 choose, 0 is equal.
  key(key) {
    const index = { 1: 0, 2: 1, 0: null }[key];
    if (index === undefined || !this.ready || this.broken) return false;
    this.choose(index);
    return true;
  }
}
