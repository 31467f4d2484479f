// What the keyboard does anywhere on the page.
import { stopAll } from "/web/js/actions.js";
import { openSettings } from "/web/js/settings.js";
import { runningOnPath } from "/web/js/state.js";

const writes = (element) => element?.closest?.("input, textarea, select, [contenteditable]");

export function listen({ thread, sidebar, composer, fold }) {
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open], .menu")) return;
    const control = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    if (control && event.shiftKey && key === "o") location.hash = "#/";
    else if (control && !event.shiftKey && key === "k") {
      fold(false);
      sidebar.search.focus();
    } else if (control && event.shiftKey && key === "s") fold();
    else if (key === "escape" && runningOnPath().length) stopAll();
    else if (control || event.altKey || writes(event.target)) return;
    else if (key === "/") composer.area.focus();
    else if (key === "?") openSettings("shortcuts");
    else if (!thread.pair?.key(event.key)) return;
    event.preventDefault();
  });
}
