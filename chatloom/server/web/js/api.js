// Every request to the server. An error is an ApiError with the server's own words.

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let csrf = "";
let onUnauthorised = () => {};

export function configure(options) {
  csrf = options.csrf ?? csrf;
  onUnauthorised = options.onUnauthorised ?? onUnauthorised;
}

export async function call(method, path, body) {
  const headers = { Accept: "application/json", "X-CSRF-Token": csrf };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(`/api${path}`, {
      method, headers, credentials: "same-origin", body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new ApiError(0, "");
  }
  if (response.status === 204) return null;
  const data = await response.json().catch(() => null);
  if (response.ok) return data;
  if (response.status === 401 && path !== "/login") onUnauthorised();
  const detail = data?.error?.message ?? data?.detail ?? response.statusText;
  throw new ApiError(response.status, typeof detail === "string" ? detail : JSON.stringify(detail));
}

const get = (path) => call("GET", path);
const post = (path, body = {}) => call("POST", path, body);
const query = (fields) => new URLSearchParams(Object.entries(fields).filter(([, value]) => value)).toString();

export const api = {
  me: () => get("/me"),
  login: (fields) => post("/login", fields),
  logout: () => post("/logout"),
  models: () => get("/models"),
  conversations: (search, offset) => get(`/conversations?${query({ search, offset })}`),
  createConversation: (fields) => post("/conversations", fields),
  changeConversation: (id, fields) => call("PATCH", `/conversations/${id}`, fields),
  deleteConversation: (id) => call("DELETE", `/conversations/${id}`),
  conversation: (id) => get(`/conversations/${id}`),
  say: (conversation, parent, content) => post(`/conversations/${conversation}/messages`, { parent, content }),
  answer: (message, fields) => post(`/messages/${message}/answers`, fields),
  stop: (message) => post(`/messages/${message}/stop`),
  goOn: (message, fields) => post(`/messages/${message}/continue`, fields),
  rate: (message, fields) => post(`/messages/${message}/rating`, fields),
  edit: (message, fields) => post(`/messages/${message}/edit`, fields),
  compare: (fields) => post("/comparisons", fields),
  rank: (fields) => post("/rankings", fields),
  export: (conversation) => get(`/export?${query({ conversation })}`),
  import: (conversations) => post("/import", { conversations }),
  loop: () => get("/loop"),
  requests: (failed) => get(`/requests?${query({ limit: 200, failed })}`),
};

export const eventsAddress = (message) => `/api/messages/${message}/events`;
