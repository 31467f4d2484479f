// The page: who is asking, which models there are, and which view the address names.
import { signInView } from "/web/js/account.js";
import { complain, openConversation, startNew } from "/web/js/actions.js";
import { api, configure } from "/web/js/api.js";
import { Composer } from "/web/js/composer.js";
import { fill, h, iconButton, toast } from "/web/js/dom.js";
import { listen } from "/web/js/keys.js";
import { loopView } from "/web/js/loop.js";
import { modelPicker, settleModel } from "/web/js/models.js";
import { openRanking } from "/web/js/ranking.js";
import { change, settings } from "/web/js/remembered.js";
import { requestsView } from "/web/js/requests.js";
import { applyTheme } from "/web/js/settings.js";
import { Sidebar } from "/web/js/sidebar.js";
import { emit, on, state } from "/web/js/state.js";
import { t } from "/web/js/texts.js";
import { Thread } from "/web/js/thread.js";

// Views beside the conversations, by their address; labeling and assistants will be further ones.
const PAGES = { loop: ["loopTitle", loopView], requests: ["requests", requestsView] };
const narrow = matchMedia("(max-width: 820px)");
let parts = null;

function build() {
  const app = h("div", { id: "app" });
  const fold = (folded = !app.classList.contains("folded")) => {
    app.classList.toggle("folded", folded);
    if (!narrow.matches) change({ sidebar: !folded });
    if (folded && app.querySelector(".sidebar").contains(document.activeElement)) unfold.focus();
  };
  const thread = new Thread();
  const sidebar = new Sidebar(() => fold(true));
  const composer = new Composer(thread);
  const middle = h("main", { id: "main", tabindex: "-1" });
  const unfold = iconButton("panel", t("openSidebar"), () => fold(false));
  unfold.classList.add("unfold");
  const again = iconButton("compose", t("newChat"), () => { location.hash = "#/"; });
  again.classList.add("new-small");
  const topbar = h("header.topbar", unfold, modelPicker(), h("span.space"), again);
  const veil = h("button.veil", { type: "button", "aria-label": t("closeSidebar"), tabindex: "-1", onclick: () => fold(true) });
  app.append(sidebar.element, veil, middle);
  fill(document.body,
    h("a.skip", { href: "#main", onclick: (event) => {
      event.preventDefault();
      (composer.area.isConnected ? composer.area : middle).focus();
    } }, t("skip")),
    app, h("section", { id: "toasts", "aria-label": t("notices") }), h("div.unseen", { id: "announcer", "aria-live": "polite" }));
  app.classList.toggle("folded", narrow.matches || !settings.sidebar);
  parts = { app, fold, thread, sidebar, composer, middle, topbar };
}

function showThread() {
  fill(parts.middle, parts.topbar, parts.thread.element, parts.composer.element);
}

async function route() {
  const [, view, id] = location.hash.split("/");
  if (narrow.matches) parts.fold(true);
  if (PAGES[view]) {
    const [key, make] = PAGES[view];
    const back = h("a.button.bare", { href: state.conversation ? `#/c/${state.conversation.id}` : "#/" }, t("backToChat"));
    fill(parts.middle, h("header.topbar", parts.topbar.firstChild.cloneNode(true), back), make());
    parts.middle.querySelector(".unfold").addEventListener("click", () => parts.fold(false));
    document.title = `${t(key)} · ${t("appName")}`;
    return;
  }
  showThread();
  if (view === "c" && id) {
    if (state.conversation?.id !== id) {
      try {
        await openConversation(id);
      } catch (error) {
        if (error.status === 404) toast(t("notFound"), { bad: true });
        else complain(error);
        location.hash = "#/";
      }
    }
  } else {
    startNew();
  }
  if (!narrow.matches) parts.composer.area.focus();
  title();
}

function title() {
  const own = state.conversation?.title;
  document.title = own ? `${own} · ${t("appName")}` : t("appName");
}

async function start() {
  applyTheme();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
  let signIn = false;
  configure({ onUnauthorised: () => {
    if (!signIn) fill(document.body, signInView());
    signIn = true;
  } });
  try {
    state.me = await api.me();
    configure({ csrf: state.me.csrf });
    if (!state.me.signed_in) {
      fill(document.body, signInView());
      return;
    }
    state.models = (await api.models()).models;
  } catch (error) {
    if (error.status !== 401) {
      fill(document.body, h("main.sign-in", h("p", { role: "alert" }, error.message || t("offline"))));
    }
    return;
  }
  settleModel();
  draw();
  window.addEventListener("hashchange", route);
  on("language", () => location.reload());
  on("rank", (question) => openRanking(question));
  on("thread", title);
  on("model", () => emit("thread"));
}

function draw() {
  build();
  listen({ ...parts });
  parts.sidebar.load();
  route();
}

start();
