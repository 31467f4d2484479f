// Elements, made by hand: h("button.quiet", {onclick}, "text"). No text ever becomes markup here.

const SVG = "http://www.w3.org/2000/svg";

export function h(name, ...rest) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  if (rest.length && isProperties(rest[0])) set(element, rest.shift());
  append(element, rest);
  return element;
}

function isProperties(value) {
  return value !== null && typeof value === "object" && !(value instanceof Node) && !Array.isArray(value);
}

export function set(element, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === null || value === undefined || value === false) element.removeAttribute(name);
    else if (name === "style") for (const [key, own] of Object.entries(value)) element.style.setProperty(key, own);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  return element;
}

function append(element, children) {
  for (const child of children.flat(3)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}

export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

// Markup that the server has made safe (server/markdown.py).
export function safeMarkup(markup) {
  const template = document.createElement("template");
  template.innerHTML = markup;
  return template.content;
}

const PATHS = {
  plus: "M12 5v14M5 12h14",
  pen: "M4 20h4L19 9l-4-4L4 16v4M13.5 6.500l4 4",
  compose: "M12 5H6a2 2 0 0 0-2 2v11a2 2 0 0 0 2 2h11a2 2 0 0 0 2-2v-6M10 14l1-4 7-7 3 3-7 7-4 1",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14M16.2 16.2 21 21",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
  menu: "M4 6h16M4 12h10M4 18h16",
  panel: "M5 4h14a1 1 0 0 1 1 1v14a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1V5a1 1 0 0 1 1-1M9.5 4v16",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v11H9zM5 15V4h10",
  check: "M5 12.5 10 17.5 19 7",
  again: "M20 11a8 8 0 1 0-2.3 6.300M20 5v6h-6",
  up: "M7 11v9H4v-9h3M7 11l4-7c1.5 0 2.5 1 2.5 2.500V10h5a2 2 0 0 1 2 2.400l-1.2 6A2 2 0 0 1 17.3 20H7",
  down: "M17 13V4h3v9h-3M17 13l-4 7c-1.5 0-2.5-1-2.5-2.500V14h-5a2 2 0 0 1-2-2.400l1.2-6A2 2 0 0 1 6.7 4H17",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  chevron: "M6 9l6 6 6-6",
  arrowUp: "M12 19V5M6 11l6-6 6 6",
  arrowDown: "M12 5v14M6 13l6 6 6-6",
  columns: "M4 5h7v14H4zM13 5h7v14h-7z",
  rank: "M10 6h10M10 12h10M10 18h10M4 5l1.5-1v4M4 11h2.500L4 14h2.500M4 17h2.500v2.500H4",
  sliders: "M4 8h8M18 8h2M15 5.5v5M4 16h2M12 16h8M9 13.5v5",
  gear: "M12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6M12 3v3M12 18v3M3 12h3M18 12h3M5.6 5.600l2.1 2.100M16.3 16.300l2.1 2.100M5.6 18.400l2.1-2.100M16.3 7.700l2.1-2.1",
  close: "M6 6l12 12M18 6 6 18",
  loop: "M12 12c-2-3-3.5-4.5-5.5-4.5a4.5 4.5 0 0 0 0 9c2 0 3.5-1.5 5.5-4.5s3.5-4.5 5.5-4.5a4.5 4.5 0 0 1 0 9c-2 0-3.5-1.5-5.5-4.5",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  upload: "M12 16V5M7 9l5-5 5 5M5 20h14",
  forward: "M5 6l7 6-7 6M13 6l7 6-7 6",
  grip: "M9 6h.01M15 6h.01M9 12h.01M15 12h.01M9 18h.01M15 18h.01",
  warning: "M12 4 2.5 20h19L12 4M12 10v4M12 17h.01",
  list: "M8 6h12M8 12h12M8 18h12M4 6h.01M4 12h.01M4 18h.01",
  keyboard: "M4 7h16v10H4zM8 14h8M7.5 10.500h.01M10.5 10.500h.01M13.5 10.500h.01M16.5 10.500h.01",
  person: "M12 4a4 4 0 1 0 0 8 4 4 0 0 0 0-8M4 21c0-4 3.5-6 8-6s8 2 8 6",
};

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", `icon icon-${name}`);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

export function iconButton(name, label, onclick, more = {}) {
  return h("button.icon-button", { type: "button", "aria-label": label, title: label, onclick, ...more }, icon(name));
}

// Spoken by screen readers, seen by nobody.
export function announce(text) {
  const region = document.getElementById("announcer");
  if (region) region.textContent = region.textContent === text ? `${text}\u00a0` : text;
}

export function toast(text, { bad = false } = {}) {
  const place = document.getElementById("toasts");
  const note = h(bad ? "div.toast.bad" : "div.toast", { role: bad ? "alert" : null }, text);
  place.append(note);
  if (!bad) announce(text);
  setTimeout(() => note.classList.add("leaving"), bad ? 7000 : 3200);
  setTimeout(() => note.remove(), bad ? 7400 : 3600);
}

export async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea.unseen", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.classList.add("copied");
  setTimeout(() => button.classList.remove("copied"), 1500);
}
