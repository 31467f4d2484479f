// Dialogs: the browser's own, which keep the focus inside and close with Escape.
import { h, iconButton } from "/web/js/dom.js";
import { t } from "/web/js/texts.js";

let count = 0;

// Returns the dialog; `body` and `foot` are nodes. It is removed when it closes.
export function openDialog(title, body, foot = null, { wide = false, onclose = null } = {}) {
  const name = `dialog-${++count}`;
  const dialog = h(wide ? "dialog.wide" : "dialog", { "aria-labelledby": name },
    h("div.dialog-head", h("h2", { id: name }, title), iconButton("close", t("close"), () => dialog.close())),
    h("div.dialog-body", body),
    foot && h("div.dialog-foot", foot));
  dialog.addEventListener("close", () => { dialog.remove(); onclose?.(); });
  dialog.addEventListener("pointerdown", (event) => { if (event.target === dialog) dialog.close(); });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

export function confirmDialog(title, text, label) {
  return new Promise((resolve) => {
    let sure = false;
    const cancel = h("button.button", { type: "button", onclick: () => dialog.close() }, t("cancel"));
    const go = h("button.button.danger", { type: "button", onclick: () => { sure = true; dialog.close(); } }, label);
    const dialog = openDialog(title, h("p", text), [cancel, go], { onclose: () => resolve(sure) });
    cancel.focus();
  });
}

export function askText(title, label, value) {
  return new Promise((resolve) => {
    let given = null;
    const input = h("input", { type: "text", value, maxlength: 200, id: "ask-text" });
    const form = h("form.field", { id: "ask-form", onsubmit: (event) => {
      event.preventDefault();
      given = input.value.trim() || null;
      dialog.close();
    } }, h("label", { for: "ask-text" }, label), input);
    const save = h("button.button.main", { type: "submit", form: "ask-form" }, t("save"));
    const cancel = h("button.button", { type: "button", onclick: () => dialog.close() }, t("cancel"));
    const dialog = openDialog(title, form, [cancel, save], { onclose: () => resolve(given) });
    input.select();
  });
}
