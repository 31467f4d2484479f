// Settings of this browser: look, language, feedback, sampling, the system message of new conversations.
import { openDialog } from "/web/js/dialog.js";
import { h } from "/web/js/dom.js";
import { change, DEFAULTS, settings } from "/web/js/remembered.js";
import { emit, state } from "/web/js/state.js";
import { t } from "/web/js/texts.js";

export function openSettings(section = null) {
  if (section === "shortcuts") return openDialog(t("shortcuts"), shortcuts());
  const body = section === "sampling"
    ? [system(), ...numbers()]
    : [appearance(), languages(), feedbackSwitches()];
  const dialog = openDialog(t(section === "sampling" ? "sampling" : "settings"), body);
  return dialog;
}

export function applyTheme() {
  const dark = settings.theme === "dark" || (settings.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

function choice(name, label, options, current, chosen) {
  const buttons = options.map(([value, text]) => h("label",
    h("input", { type: "radio", name, value, checked: value === current, onchange: () => chosen(value) }), h("span", text)));
  return h("div.field", { role: "radiogroup", "aria-label": label }, h("span", label), h("div.segments", buttons));
}

function appearance() {
  const options = [["auto", t("auto")], ["light", t("light")], ["dark", t("dark")]];
  return choice("theme", t("appearance"), options, settings.theme, (theme) => {
    change({ theme });
    applyTheme();
  });
}

function languages() {
  const now = document.documentElement.lang.startsWith("zh") ? "zh-CN" : "en";
  return choice("language", t("language"), [["en", "English"], ["zh-CN", "中文"]], now, (language) => {
    change({ language });
    document.documentElement.lang = language;
    document.querySelector("dialog")?.close();
    emit("language");
  });
}

function toggle(label, hint, name) {
  return h("label.switch", h("span", label, hint && h("span.hint", hint)),
    h("input", { type: "checkbox", role: "switch", checked: settings[name],
      onchange: (event) => change({ [name]: event.target.checked }) }));
}

function feedbackSwitches() {
  return [toggle(t("consent"), t("consentHint"), "consent"), toggle(t("offer"), null, "offer")];
}

function system() {
  const begun = state.conversation !== null;
  const area = h("textarea", { id: "system", rows: 3, value: settings.system, maxlength: 20000,
    oninput: () => change({ system: area.value }) });
  const now = state.conversation?.system;
  return h("div.field",
    begun && h("p.hint", now ? [t("systemFixed"), " ", h("q", now)] : t("systemNone")),
    h("label", { for: "system" }, t("systemMessage"), begun && h("span.hint", ` (${t("systemNext")})`)),
    area, h("span.hint", t("systemHint")));
}

const RANGES = [
  ["temperature", "temperature", "temperatureHint", { min: 0, max: 2, step: 0.05 }],
  ["top_p", "topP", "topPHint", { min: 0.05, max: 1, step: 0.05 }],
  ["repetition_penalty", "repetition", "repetitionHint", { min: 0.8, max: 1.6, step: 0.05 }],
];

function setSampling(name, value) {
  change({ sampling: { ...settings.sampling, [name]: value } });
}

function numbers() {
  const fields = RANGES.map(([name, label, hint, range]) => slider(name, t(label), t(hint), range));
  const longest = h("input", { type: "number", id: "max_tokens", min: 1, max: 32768, value: settings.sampling.max_tokens,
    onchange: () => setSampling("max_tokens", Math.max(1, Math.round(Number(longest.value)) || DEFAULTS.sampling.max_tokens)) });
  const seed = h("input", { type: "number", id: "seed", min: 0, value: settings.sampling.seed ?? "",
    onchange: () => setSampling("seed", seed.value === "" ? "" : Math.max(0, Math.round(Number(seed.value)))) });
  return [
    ...fields,
    h("div.field", h("label", { for: "max_tokens" }, t("maxTokens")), longest),
    h("div.field", h("label", { for: "seed" }, t("seed")), seed, h("span.hint", t("seedHint"))),
    h("button.button", { type: "button", onclick: () => {
      change({ sampling: { ...DEFAULTS.sampling } });
      document.querySelector("dialog")?.close();
      openSettings("sampling");
    } }, t("reset")),
  ];
}

function slider(name, label, hint, range) {
  const shown = h("output", String(settings.sampling[name]));
  const input = h("input", { type: "range", id: name, ...range, value: settings.sampling[name],
    "aria-describedby": `${name}-hint`, oninput: () => {
      shown.textContent = input.value;
      setSampling(name, Number(input.value));
    } });
  return h("div.field", h("label", { for: name }, label, ": ", shown), input,
    h("span.hint", { id: `${name}-hint` }, hint));
}

function shortcuts() {
  const mac = navigator.platform.startsWith("Mac");
  const control = mac ? "⌘" : "Ctrl";
  const rows = [
    ["shortcutNew", [control, "Shift", "O"]], ["shortcutSearch", [control, "K"]], ["shortcutFocus", ["/"]],
    ["shortcutStop", ["Esc"]], ["shortcutSide", [control, "Shift", "S"]], ["shortcutHelp", ["?"]],
  ];
  return h("dl.keys", rows.map(([label, keys]) => [
    h("dt", t(label)), h("dd", keys.map((key, index) => [index ? " " : "", h("kbd", key)]))]));
}
