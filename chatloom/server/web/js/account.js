// Signing in, where the server knows users.
import { api } from "/web/js/api.js";
import { h } from "/web/js/dom.js";
import { t } from "/web/js/texts.js";

export function signInView() {
  const name = h("input", { type: "text", id: "name", autocomplete: "username" });
  const password = h("input", { type: "password", id: "password", autocomplete: "current-password" });
  const key = h("input", { type: "password", id: "key", autocomplete: "off" });
  const problem = h("p.problem", { role: "alert" });
  const form = h("form", { onsubmit: async (event) => {
    event.preventDefault();
    problem.textContent = "";
    try {
      await api.login(key.value ? { key: key.value.trim() } : { name: name.value, password: password.value });
      location.reload();
    } catch (error) {
      problem.textContent = error.status === 401 ? t("signInFailed") : error.message || t("offline");
    }
  } },
    h("img", { src: "/web/icon.svg", alt: "" }), h("h1", t("signIn")),
    h("div.field", h("label", { for: "name" }, t("name")), name),
    h("div.field", h("label", { for: "password" }, t("password")), password),
    h("details", h("summary", t("withKey")), h("div.field", h("label", { for: "key" }, t("key")), key)),
    problem, h("button.button.main", { type: "submit" }, t("signIn")));
  return h("main.sign-in", form);
}
