// The loop: how much feedback there is, of which kind and model, and what would be trained on it.
import { complain } from "/web/js/actions.js";
import { api } from "/web/js/api.js";
import { copyText, fill, h, iconButton } from "/web/js/dom.js";
import { number, t } from "/web/js/texts.js";

const KINDS = ["rating", "pair", "ranking", "edit"];

export function loopView() {
  const body = h("div");
  const element = h("div.view.loop", { tabindex: "-1" },
    h("div.column", h("h1", t("loopTitle")), h("p.lead", t("loopLead")), body));
  api.loop().then((figures) => fill(body, figuresOf(figures), kinds(figures), models(figures), training(figures)))
    .catch(complain);
  return element;
}

function figuresOf(figures) {
  const share = figures.agreement;
  const card = (value, label, note) => h("li", h("b", value), h("span", label), note && h("small", note));
  return h("ul.figures",
    card(number(figures.total), t("loopAll")),
    card(number(figures.raters), t("loopRaters")),
    card(number(figures.pairs), t("loopPairs"), t("loopPairsNote")),
    card(share === null ? "–" : `${number(100 * share)} %`, t("loopAgreement"), share === null ? t("loopAgreementNone") : t("loopUnits", { count: number(figures.agreement_units) })));
}

function kinds(figures) {
  const most = Math.max(1, ...KINDS.map((kind) => figures.kinds[kind]));
  return [h("h2", t("loopKinds")), h("ul.bars", KINDS.map((kind) => {
    const count = figures.kinds[kind];
    const { up, down } = figures.thumbs;
    const parts = kind === "rating" ? [part(up / most, "good"), part(down / most, "bad")] : [part(count / most, "")];
    const note = kind === "rating" ? ` (${number(up)} ${t("positive")}, ${number(down)} ${t("negative")})` : "";
    return h("li", h("span", t(`kind_${kind}`)),
      h("div.bar", { role: "img", "aria-label": `${number(count)}${note}` }, parts), h("span.count", number(count)));
  }))];
}

function part(share, kind) {
  return h(kind ? `i.${kind}` : "i", { style: { width: `${100 * share}%` } });
}

function models(figures) {
  if (!figures.models.length) return null;
  const head = ["model", ...KINDS.map((kind) => `kind_${kind}`), "total"];
  return [h("h2", t("loopModels")), h("div.table", h("table",
    h("thead", h("tr", head.map((key, index) => h(index ? "th.count" : "th", { scope: "col" }, t(key))))),
    h("tbody", figures.models.map((model) => h("tr", h("td", model.name),
      KINDS.map((kind) => h("td.count", number(model[kind] ?? 0))),
      h("td.count", number(KINDS.reduce((sum, kind) => sum + (model[kind] ?? 0), 0))))))))];
}

function training(figures) {
  const rows = figures.examples.map((pair) => h("tr",
    [pair.prompt, pair.chosen, pair.rejected].map((text) => h("td", h("div", text)))));
  const table = h("div.table", h("table.pairs",
    h("thead", h("tr", ["loopPrompt", "loopChosen", "loopRejected"].map((key) => h("th", { scope: "col" }, t(key))))),
    h("tbody", rows)));
  const withheld = figures.withheld > 0 && t("loopWithheld", { count: number(figures.withheld) });
  const notes = [withheld, ...figures.notes].filter(Boolean);
  const command = figures.commands.join("\n");
  const copy = iconButton("copy", t("copy"), (event) => copyText(command, event.currentTarget));
  return [
    h("h2", t("loopTrain")), rows.length ? table : h("p.hint", t(figures.texts ? "loopTrainNone" : "loopHidden")),
    notes.length > 0 && h("ul.notes", notes.map((note) => h("li", note))),
    h("h2", t("loopCommand")), h("div.command", h("code", { tabindex: "0" }, command), copy),
  ];
}
