// What a person does in a conversation, and what the server is asked for it.
import { api } from "/web/js/api.js";
import { toast } from "/web/js/dom.js";
import { follow, followTree } from "/web/js/live.js";
import { place, setPlace, settings } from "/web/js/remembered.js";
import { emit, isRunning, runningOnPath, state } from "/web/js/state.js";
import { t } from "/web/js/texts.js";
import { Tree } from "/web/js/tree.js";

export function complain(error) {
  if (error.status === 401) return;
  toast(error.status === 0 ? t("offline") : t("wrong", { reason: error.message || error.status }), { bad: true });
}

// --- which conversation ---

export function startNew() {
  state.conversation = null;
  state.tree = new Tree();
  state.leaf = null;
  followTree();
  emit("conversation");
}

export async function openConversation(id) {
  const { conversation, messages } = await api.conversation(id);
  state.conversation = conversation;
  state.tree = new Tree(messages);
  const kept = place(id).leaf;
  const running = messages.filter(isRunning).at(-1)?.id;
  state.leaf = state.tree.leaf(running ?? (state.tree.get(kept) ? kept : messages.at(-1)?.id ?? null));
  followTree();
  emit("conversation");
}

export function show(leaf) {
  state.leaf = leaf;
  if (state.conversation) setPlace(state.conversation.id, { leaf });
  emit("thread");
}

// To the sibling `step` places on, and down its newest branch.
export function switchBranch(id, step) {
  const siblings = state.tree.siblings(id);
  const to = siblings[siblings.indexOf(id) + step];
  if (to) show(state.tree.leaf(to));
}

// --- questions and answers ---

export async function send(text, ways = null) {
  if (!state.conversation) {
    const { conversation } = await api.createConversation({ system: settings.system });
    state.conversation = conversation;
    history.pushState(null, "", `#/c/${conversation.id}`);
  }
  return say(state.leaf, text, ways);
}

// A message after `parent`: another branch where there is one already.
export async function say(parent, text, ways = null) {
  const { message, conversation } = await api.say(state.conversation.id, parent, text);
  state.conversation = conversation;
  state.tree.put(message);
  show(message.id);
  emit("conversations");
  await ask(message.id, ways ?? (offersPair() ? "two" : "one"));
  return message;
}

function offersPair() {
  return settings.offer && Math.random() < settings.offerShare;
}

const HOW_MANY = { one: 1, two: 2, rank: 3 };

export function sampling() {
  const given = Object.entries(settings.sampling).filter(([, value]) => value !== "" && value !== null);
  return Object.fromEntries(given);
}

// `ways`: "one", "two", "rank", or {beside}: two models, in an order that does not tell them apart.
export async function ask(question, ways = "one") {
  const count = HOW_MANY[ways] ?? 2;
  const own = { model: settings.model, sampling: sampling(), n: count };
  if (ways.beside) own.models = Math.random() < 0.5 ? [settings.model, ways.beside] : [ways.beside, settings.model];
  else if (count > 1 && own.sampling.temperature === 0) own.sampling.temperature = 0.7; // at 0 all would be the same
  const { messages } = await api.answer(question, own);
  for (const message of messages) state.tree.put(message);
  const ids = messages.map((message) => message.id);
  if (count === 2) setPair(question, ids);
  follow(ids);
  show(ids[0]);
  if (ways === "rank") emit("rank", question);
  return ids;
}

export async function stopAll() {
  await Promise.all(runningOnPath().map((id) => stop(id)));
}

export async function stop(id) {
  await api.stop(id).catch(complain);
}

export async function goOn(id) {
  const { message } = await api.goOn(id, { sampling: sampling() });
  Object.assign(state.tree.get(id), message);
  follow([id]);
  emit("message", id);
  emit("thread");
}

// --- pairs that wait for a choice ---

export const pairOf = (question) =>
  state.conversation ? place(state.conversation.id).pairs[question] ?? null : null;

export function setPair(question, ids) {
  const pairs = { ...place(state.conversation.id).pairs };
  if (ids) pairs[question] = ids;
  else delete pairs[question];
  setPlace(state.conversation.id, { pairs });
}

export async function choosePair(question, chosen, rejected, tie = false) {
  await api.compare({ chosen, rejected, tie, consent: settings.consent });
  setPair(question, null);
  thank();
  show(state.tree.leaf(chosen));
}

export function thank() {
  toast(t(settings.consent ? "thanks" : "thanksKept"));
}
