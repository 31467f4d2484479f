// What the page shows now, and who wants to hear of changes.
import { Tree } from "/web/js/tree.js";

export const state = {
  me: null,
  models: [],
  conversation: null, // null while a new one has not begun
  tree: new Tree(),
  leaf: null, // the last message of the branch that is shown
};

const listeners = new Map();

export function on(event, listener) {
  if (!listeners.has(event)) listeners.set(event, new Set());
  listeners.get(event).add(listener);
  return () => listeners.get(event).delete(listener);
}

export function emit(event, ...values) {
  for (const listener of [...(listeners.get(event) ?? [])]) listener(...values);
}

export const isRunning = (message) => message?.status === "running";
export const hasFailed = (message) => message?.status === "failed"; // and so cannot be judged

export function runningOnPath() {
  if (!state.leaf) return [];
  const parent = state.tree.get(state.leaf)?.parent;
  const near = [state.leaf, ...(state.tree.children.get(parent) ?? []), ...(state.tree.children.get(state.leaf) ?? [])];
  return [...new Set(near)].filter((id) => isRunning(state.tree.get(id)));
}
