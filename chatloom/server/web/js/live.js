// Answers as they are written: one event stream for all that run. The server replays each from its beginning, so a
// reload, or a connection that breaks, loses nothing.
import { api, eventsAddress } from "/web/js/api.js";
import { announce, toast } from "/web/js/dom.js";
import { emit, isRunning, state } from "/web/js/state.js";
import { t } from "/web/js/texts.js";

const AGAIN = 2000; // milliseconds until a stream that the server refused is asked for again
const followed = new Set();
let source = null;
let told = false; // that the connection is broken
let waiting = 0;

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
  clearTimeout(waiting);
  const [first, ...others] = followed;
  if (!first) return;
  source = new EventSource(eventsAddress(first) + (others.length ? `?also=${others.join(",")}` : ""));
  source.onmessage = (event) => receive(JSON.parse(event.data));
  source.onerror = (event) => {
    if (event.target === source) broken();
  };
}

// A connection that breaks is taken up again by the browser; a stream that is refused (the session has ended, the
// conversation is gone, the server has no room) is not, and the conversation itself says what has become of it.
function broken() {
  if (!told) toast(t("reconnecting"));
  told = true;
  if (source?.readyState === EventSource.CLOSED) reread();
}

async function reread() {
  const { conversation, tree } = state;
  const again = (run) => {
    clearTimeout(waiting);
    waiting = setTimeout(run, AGAIN);
  };
  try {
    const { messages } = await api.conversation(conversation.id);
    if (state.tree !== tree) return;
    for (const message of messages) if (followed.has(message.id)) take(message);
    again(open);
  } catch (error) {
    if (state.tree !== tree || error.status === 401) return; // the page asks to sign in
    if (error.status !== 404) return again(reread);
    for (const id of followed) take({ id, status: "stopped" });
    toast(t("notFound"), { bad: true });
  }
}

function take(message) {
  Object.assign(state.tree.get(message.id), message);
  if (!isRunning(message)) followed.delete(message.id);
  emit("message", message.id);
  if (!isRunning(message)) emit("finished", message.id);
}

function receive(event) {
  told = false;
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
