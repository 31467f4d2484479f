// What this browser remembers: how the page looks and how answers are sampled. Conversations live in the server.

const KEY = "chatloom.settings";

export const DEFAULTS = {
  theme: "auto",
  language: "",
  model: "",
  sidebar: true,
  consent: true,
  offer: true, // now and then two answers to choose between
  offerShare: 0.12,
  system: "",
  sampling: { temperature: 0.7, top_p: 0.95, max_tokens: 512, repetition_penalty: 1.1 },
};

function read(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch { /* a browser that keeps nothing: the page works all the same */ }
}

const kept = read(KEY, {});
export const settings = { ...DEFAULTS, ...kept, sampling: { ...DEFAULTS.sampling, ...kept.sampling } };

export function change(changes) {
  Object.assign(settings, changes);
  write(KEY, settings);
}

// Where the reader was in a conversation: its last message, and the pairs that wait for a choice.
export function place(conversation) {
  return { leaf: null, pairs: {}, ...read(`chatloom.place.${conversation}`, {}) };
}

export function setPlace(conversation, changes) {
  write(`chatloom.place.${conversation}`, { ...place(conversation), ...changes });
}

export function forgetPlace(conversation) {
  try { localStorage.removeItem(`chatloom.place.${conversation}`); } catch { /* see write */ }
}
