// Conversations as files: out as JSON, in from our own export or ChatGPT's (conversations.json, or the .zip with it).
import { complain } from "/web/js/actions.js";
import { api } from "/web/js/api.js";
import { h, toast } from "/web/js/dom.js";
import { emit } from "/web/js/state.js";
import { t } from "/web/js/texts.js";

const BATCH = 1_000_000; // characters sent at a time: a server refuses bodies without end

function save(data, name) {
  const address = URL.createObjectURL(new Blob([JSON.stringify(data, null, 1)], { type: "application/json" }));
  const link = h("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

export async function exportAll() {
  save(await api.export(), "chatloom-conversations.json");
}

export async function exportOne(conversation) {
  const name = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);
  save(await api.export(conversation.id), `${name || "conversation"}.json`);
}

export function chooseImport() {
  const input = h("input.unseen", { type: "file", accept: ".json,.zip,application/json,application/zip",
    "aria-label": t("importFile") });
  input.addEventListener("change", () => {
    const [file] = input.files;
    input.remove();
    if (file) importFile(file).catch(complain);
  });
  document.body.append(input);
  input.click();
}

export async function importFile(file) {
  const conversations = await conversationsOf(file);
  if (!conversations) return toast(t("importUnknown"), { bad: true });
  if (!conversations.length) return toast(t("importEmpty"), { bad: true });
  let count = 0;
  let batch = [];
  let size = 0;
  for (const [index, conversation] of conversations.entries()) {
    batch.push(conversation);
    size += JSON.stringify(conversation).length;
    if (size < BATCH && index + 1 < conversations.length) continue;
    count += (await api.import(batch)).imported;
    if (index + 1 < conversations.length) toast(t("importing", { done: index + 1, all: conversations.length }));
    [batch, size] = [[], 0];
  }
  toast(t("imported", { count }));
  emit("conversations");
  return count;
}

async function conversationsOf(file) {
  const start = new Uint8Array(await file.slice(0, 4).arrayBuffer());
  const zipped = start[0] === 0x50 && start[1] === 0x4b;
  const text = zipped ? await unzipped(file, "conversations.json") : await file.text();
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    return null;
  }
  if (Array.isArray(data)) return data;
  return Array.isArray(data?.conversations) ? data.conversations : null;
}

// The text of one file of a ZIP archive; the browser itself inflates.
async function unzipped(file, name) {
  const bytes = new DataView(await file.arrayBuffer());
  let end = bytes.byteLength - 22;
  while (end >= 0 && bytes.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) return "";
  let at = bytes.getUint32(end + 16, true);
  for (let left = bytes.getUint16(end + 10, true); left > 0; left--) {
    const [names, extra, note] = [28, 30, 32].map((offset) => bytes.getUint16(at + offset, true));
    const own = new TextDecoder().decode(new Uint8Array(bytes.buffer, at + 46, names));
    if (own === name || own.endsWith(`/${name}`)) {
      const head = bytes.getUint32(at + 42, true);
      const from = head + 30 + bytes.getUint16(head + 26, true) + bytes.getUint16(head + 28, true);
      const data = new Blob([new Uint8Array(bytes.buffer, from, bytes.getUint32(at + 20, true))]);
      if (bytes.getUint16(at + 10, true) === 0) return data.text();
      return new Response(data.stream().pipeThrough(new DecompressionStream("deflate-raw"))).text();
    }
    at += 46 + names + extra + note;
  }
  return "";
}
