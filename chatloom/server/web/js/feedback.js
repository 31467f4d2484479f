// Thumbs with reasons, and answers as they should have been.
import { complain, show, thank } from "/web/js/actions.js";
import { api } from "/web/js/api.js";
import { announce, fill, h, iconButton, toast } from "/web/js/dom.js";
import { settings } from "/web/js/remembered.js";
import { state } from "/web/js/state.js";
import { t } from "/web/js/texts.js";

export const TAGS = { 1: ["correct", "helpful", "clear"], "-1": ["wrong", "unhelpful", "style", "long", "unsafe"] };

async function store(message, rating) {
  await api.rate(message.id, { ...rating, consent: settings.consent });
  message.rating = rating.value ? rating : null;
}

// A thumb that is touched again is taken back. Returns whether one is given now.
export async function rateTap(message, value) {
  const back = message.rating?.value === value;
  try {
    await store(message, { value: back ? 0 : value, tags: [], comment: "" });
  } catch (error) {
    complain(error);
    return false;
  }
  if (back) toast(t("takenBack"));
  else announce(t(settings.consent ? "thanks" : "thanksKept"));
  return !back;
}

export function openReasons(place, message, changed) {
  const { value } = message.rating;
  const chosen = new Set();
  const tags = TAGS[value].map((tag) => h("button", { type: "button", "aria-pressed": "false", onclick: (event) => {
    if (!chosen.delete(tag)) chosen.add(tag);
    event.currentTarget.setAttribute("aria-pressed", String(chosen.has(tag)));
  } }, t(`tag_${tag}`)));
  const title = t(value > 0 ? "whyGood" : "whyBad");
  const comment = h("input", { type: "text", placeholder: t("comment"), "aria-label": t("comment"), maxlength: 2000 });
  const close = () => fill(place);
  const form = h("form.reasons", { "aria-label": title, onsubmit: async (event) => {
    event.preventDefault();
    try {
      await store(message, { value, tags: [...chosen], comment: comment.value.trim() });
      close();
      thank();
      changed();
    } catch (error) {
      complain(error);
    }
  } },
    h("div.reasons-head", h("span", title), iconButton("close", t("close"), close)),
    h("div.tags", { role: "group", "aria-label": title }, tags),
    h("div.row", comment, h("button.button.main", { type: "submit" }, t("sendFeedback"))));
  form.addEventListener("keydown", (event) => { if (event.key === "Escape") { event.stopPropagation(); close(); } });
  fill(place, form);
  form.scrollIntoView({ block: "nearest", behavior: "smooth" });
}

export function editAnswer(view, message) {
  view.edit(message.content, t("editAnswer"), t("editAnswerNote"), t("save"), async (text) => {
    const { message: own } = await api.edit(message.id, { text, consent: settings.consent });
    state.tree.put(own);
    thank();
    show(own.id);
  });
}
