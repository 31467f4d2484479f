// Which model answers, with which adapter.
import { fill, h, icon } from "/web/js/dom.js";
import { openMenu } from "/web/js/menu.js";
import { change, settings } from "/web/js/remembered.js";
import { emit, state } from "/web/js/state.js";
import { number, t } from "/web/js/texts.js";

export function settleModel() {
  const known = state.models.some((model) => model.name === settings.model);
  if (!known) change({ model: state.models[0]?.name ?? "" });
}

export function modelPicker() {
  const button = h("button.picker", { type: "button", "aria-haspopup": "menu", "aria-expanded": "false",
    onclick: () => open(button) });
  draw(button);
  return button;
}

function draw(button) {
  const model = state.models.find((each) => each.name === settings.model);
  const label = model?.parent ?? model?.name ?? "";
  button.setAttribute("aria-label", `${t("model")}: ${label}${model?.parent ? ` + ${model.name}` : ""}`);
  fill(button,
    h("span.name", label, model?.parent && h("span.adapter", ` + ${model.name}`)), icon("chevron"));
}

function open(button) {
  openMenu(button, t("chooseModel"), state.models.map((model) => ({
    label: model.parent ? `${model.parent} + ${model.name}` : model.name,
    note: model.parent ? t("adapter", { name: model.name }) : t("contextOf", { count: number(model.context_length) }),
    checked: model.name === settings.model,
    run: () => {
      change({ model: model.name });
      draw(button);
      emit("model");
    },
  })));
}
