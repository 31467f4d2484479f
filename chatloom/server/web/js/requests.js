// What programs asked of the API, for administrators: never what was said.
import { complain } from "/web/js/actions.js";
import { api } from "/web/js/api.js";
import { fill, h } from "/web/js/dom.js";
import { language, number, t } from "/web/js/texts.js";

const HEAD = ["reqTime", "reqPath", "model", "reqCaller", "reqStatus", "reqIn", "reqOut", "reqFirst", "reqWhole"];

export function requestsView() {
  const body = h("div");
  const load = (failed) => api.requests(failed).then(({ data }) => fill(body, table(data))).catch(complain);
  const only = h("input", { type: "checkbox", role: "switch", onchange: () => load(only.checked) });
  load(false);
  return h("div.view.loop", { tabindex: "-1" }, h("div.column",
    h("h1", t("requests")), h("p.lead", t("reqLead")), h("label.switch.only", h("span", t("reqFailed")), only), body));
}

function table(requests) {
  if (!requests.length) return h("p.hint", t("reqNone"));
  return h("div.table", { tabindex: "0", role: "region", "aria-label": t("requests") }, h("table",
    h("thead", h("tr", HEAD.map((key, index) => h(index > 3 ? "th.count" : "th", { scope: "col" }, t(key))))),
    h("tbody", requests.map(row))));
}

// Dates as they are written where the reader is, if that is in the page's language.
function place() {
  return navigator.language.slice(0, 2) === language().slice(0, 2) ? navigator.language : language();
}

function row(request) {
  const when = new Date(1000 * request.created).toLocaleString(place(), { dateStyle: "short", timeStyle: "medium" });
  const seconds = (value) => (value === null ? "–" : t("seconds", { count: number(value, 2) }));
  const cell = (text) => h("td.count", text);
  return h("tr", h("td.when", when), h("td", request.path), h("td", request.model ?? "–"), h("td", request.caller || "–"),
    h(request.status < 400 ? "td.count" : "td.count.failed", { title: request.error }, String(request.status)),
    cell(number(request.num_prompt_tokens)), cell(number(request.num_tokens)),
    cell(seconds(request.first_token_seconds)), cell(seconds(request.seconds)));
}
