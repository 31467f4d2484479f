// A menu of commands at a button: arrows move, Enter chooses, Escape closes.
import { h, icon } from "/web/js/dom.js";

let opened = null;

export function closeMenu() {
  opened?.();
}

// items: {label, note, icon, run, danger, checked} or null for a line
export function openMenu(button, label, items, { above = false } = {}) {
  closeMenu();
  const menu = h("div.menu", { role: "menu", "aria-label": label });
  for (const item of items) menu.append(item ? entry(item) : h("hr", { role: "separator" }));
  (button.closest("dialog, main, aside") ?? document.body).append(menu);
  settle(menu, button.getBoundingClientRect(), above);
  button.setAttribute("aria-expanded", "true");
  const outside = (event) => { if (!menu.contains(event.target) && !button.contains(event.target)) close(); };
  const close = (back = false) => {
    menu.remove();
    opened = null;
    button.setAttribute("aria-expanded", "false");
    document.removeEventListener("pointerdown", outside, true);
    window.removeEventListener("resize", close);
    if (back) button.focus();
  };
  menu.addEventListener("keydown", (event) => onKey(event, menu, close));
  menu.addEventListener("click", (event) => { if (event.target.closest("button")) close(true); }, true);
  document.addEventListener("pointerdown", outside, true);
  window.addEventListener("resize", close);
  opened = close;
  (menu.querySelector("[aria-checked=true]") ?? menu.querySelector("button")).focus();
}

function entry(item) {
  const chosen = item.checked !== undefined;
  const properties = { type: "button", role: chosen ? "menuitemradio" : "menuitem", onclick: item.run, tabindex: "-1" };
  if (chosen) properties["aria-checked"] = String(item.checked);
  return h(item.danger ? "button.danger" : "button", properties,
    item.icon && icon(item.icon),
    h("span", item.label, item.note && h("small", item.note)),
    item.checked && icon("check"));
}

function settle(menu, at, above) {
  const { width, height } = menu.getBoundingClientRect();
  const low = window.innerHeight - at.bottom < height + 12;
  const top = above || (low && at.top > height + 12) ? at.top - height - 6 : at.bottom + 6;
  menu.style.top = `${Math.max(8, Math.min(top, window.innerHeight - height - 8))}px`;
  menu.style.left = `${Math.max(8, Math.min(at.left, window.innerWidth - width - 8))}px`;
}

function onKey(event, menu, close) {
  const buttons = [...menu.querySelectorAll("button")];
  const at = buttons.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
  if (to !== undefined) buttons.at(to % buttons.length).focus();
  else if (event.key === "Escape") close(true);
  else if (event.key === "Tab") close();
  else return;
  event.stopPropagation();
  if (event.key !== "Tab") event.preventDefault();
}
