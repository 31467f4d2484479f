// Answers as they are written: one event stream for all that run. The server replays each from its beginning, so a
// reload, or a connection that breaks, loses nothing.
import { eventsAddress } from "/web/js/api.js";
import { announce } from "/web/js/dom.js";
import { emit, isRunning, state } from "/web/js/state.js";
import { t } from "/web/js/texts.js";

const followed = new Set();
let source = null;

export function follow(ids) {
  for (const id of ids) followed.add(id);
  open();
}

// Of the conversation that is shown, and no other: what else runs goes on in the server.
export function followTree() {
  followed.clear();
  follow([...state.tree.messages.values()].filter(isRunning).map((message) => message.id));
}

function open() {
  source?.close();
  source = null;
  const [first, ...others] = followed;
  if (!first) return;
  source = new EventSource(eventsAddress(first) + (others.length ? `?also=${others.join(",")}` : ""));
  source.onmessage = (event) => receive(JSON.parse(event.data));
}

function receive(event) {
  const message = state.tree.get(event.id);
  if (!message) return;
  if (event.message) {
    Object.assign(message, event.message);
    followed.delete(event.id);
    if (message.status === "done") announce(t("answered"));
  } else {
    message.blocks.splice(event.from, message.blocks.length, ...event.blocks);
    message.status = event.status;
    message.figures = event.figures;
  }
  if (!followed.size) {
    source?.close();
    source = null;
  }
  emit("message", message.id);
  if (event.message) emit("finished", message.id);
}
