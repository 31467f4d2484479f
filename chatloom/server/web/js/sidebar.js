// The conversations: search, rename, delete, export, import.
import { complain } from "/web/js/actions.js";
import { api } from "/web/js/api.js";
import { askText, confirmDialog } from "/web/js/dialog.js";
import { fill, h, icon, iconButton } from "/web/js/dom.js";
import { openMenu } from "/web/js/menu.js";
import { forgetPlace } from "/web/js/remembered.js";
import { openSettings } from "/web/js/settings.js";
import { emit, on, state } from "/web/js/state.js";
import { t } from "/web/js/texts.js";
import { chooseImport, exportAll, exportOne } from "/web/js/transfer.js";

const PAGE = 50;
const DAY = 86400;

export class Sidebar {
  constructor(fold) {
    this.conversations = [];
    this.complete = false;
    this.search = h("input", { type: "search", id: "search", placeholder: t("searchLabel"),
      "aria-label": t("searchLabel"), oninput: () => this.searchSoon() });
    this.list = h("nav.conversations", { "aria-label": t("conversations") });
    const more = iconButton("more", t("more"), (event) => this.more(event.currentTarget), { "aria-haspopup": "menu" });
    this.element = h("aside.sidebar", { id: "sidebar", "aria-label": t("conversations") },
      h("div.sidebar-head",
        h("span.brand", h("img", { src: "/web/icon.svg", alt: "" }), t("appName")),
        iconButton("panel", t("closeSidebar"), fold)),
      h("div.sidebar-tools",
        h("button.new-chat", { type: "button", onclick: () => { location.hash = "#/"; } }, icon("compose"), t("newChat")),
        h("div.search", icon("search"), this.search)),
      this.list,
      h("div.sidebar-foot",
        h("a.foot-link", { href: "#/loop" }, icon("loop"), t("loop")),
        iconButton("gear", t("settings"), () => openSettings()), more));
    on("conversations", () => this.load());
    on("conversation", () => this.draw());
    on("finished", () => this.load());
  }

  searchSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(), 180);
  }

  async load(offset = 0) {
    const search = this.search.value.trim();
    try {
      const { conversations } = await api.conversations(search, offset);
      if (search !== this.search.value.trim()) return;
      this.conversations = offset ? [...this.conversations, ...conversations] : conversations;
      this.complete = conversations.length < PAGE;
      this.draw();
    } catch (error) {
      complain(error);
    }
  }

  draw() {
    const held = document.activeElement?.closest?.(".conversations li")?.dataset.id;
    const groups = new Map();
    for (const conversation of this.conversations) {
      const when = age(conversation.updated);
      groups.set(when, [...(groups.get(when) ?? []), conversation]);
    }
    const empty = t(this.search.value.trim() ? "noMatches" : "noConversations");
    fill(this.list,
      [...groups].map(([when, members]) => [h("h2", t(when)), h("ul", members.map((each) => this.entry(each)))]),
      !this.conversations.length && h("p.empty", empty),
      !this.complete && this.conversations.length > 0 && h("button.button.bare", {
        type: "button", onclick: () => this.load(this.conversations.length) }, t("loadMore")));
    if (held) this.list.querySelector(`li[data-id="${held}"] a`)?.focus();
  }

  entry(conversation) {
    const title = conversation.title || t("newChat");
    const current = conversation.id === state.conversation?.id;
    return h(current ? "li.current" : "li", { "data-id": conversation.id },
      h("a", { href: `#/c/${conversation.id}`, "aria-current": current ? "page" : null, title }, title),
      iconButton("more", t("options", { title }), (event) => this.options(event.currentTarget, conversation), {
        "aria-haspopup": "menu" }));
  }

  options(button, conversation) {
    openMenu(button, t("options", { title: conversation.title }), [
      { label: t("rename"), icon: "pen", run: () => this.rename(conversation) },
      { label: t("exportOne"), icon: "download", run: () => exportOne(conversation).catch(complain) },
      null,
      { label: t("remove"), icon: "trash", danger: true, run: () => this.remove(conversation) },
    ]);
  }

  more(button) {
    const out = !state.me.local && { label: t("signOut"), icon: "person", run: () => this.signOut() };
    openMenu(button, t("more"), [
      { label: t("exportAll"), icon: "download", run: () => exportAll().catch(complain) },
      { label: t("importFile"), note: t("importHint"), icon: "upload", run: () => chooseImport() },
      state.me.may.includes("read_requests")
        && { label: t("requests"), icon: "list", run: () => { location.hash = "#/requests"; } },
      { label: t("shortcuts"), icon: "keyboard", run: () => openSettings("shortcuts") },
      ...(out ? [null, out] : []),
    ].filter((item) => item !== false));
  }

  async signOut() {
    await api.logout().catch(complain);
    location.reload();
  }

  async rename(conversation) {
    const title = await askText(t("renameTitle"), t("title"), conversation.title);
    if (!title) return;
    try {
      await api.changeConversation(conversation.id, { title });
      if (state.conversation?.id === conversation.id) {
        state.conversation.title = title;
        emit("thread");
      }
      await this.load();
    } catch (error) {
      complain(error);
    }
  }

  async remove(conversation) {
    const title = conversation.title || t("newChat");
    if (!await confirmDialog(t("removeTitle"), t("removeText", { title }), t("remove"))) return;
    try {
      await api.deleteConversation(conversation.id);
      forgetPlace(conversation.id);
      if (state.conversation?.id === conversation.id) location.hash = "#/";
      await this.load();
    } catch (error) {
      complain(error);
    }
  }
}

function age(seconds) {
  const midnight = new Date().setHours(0, 0, 0, 0) / 1000;
  if (seconds >= midnight) return "today";
  if (seconds >= midnight - DAY) return "yesterday";
  return seconds >= midnight - 7 * DAY ? "week" : "older";
}
