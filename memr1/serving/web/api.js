// The service's API. The key that somebody types stays in this tab's session storage and goes into a header only.

const KEY = "memr1.key";

export class ApiError extends Error {
  constructor(status, code, message, details) {
    super(message);
    Object.assign(this, { status, code, details });
  }
}

export const session = {
  get key() {
    return sessionStorage.getItem(KEY);
  },
  set key(value) {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  },
};

let refused = () => {};

// What to do when the key is not accepted any more.
export function whenRefused(handler) {
  refused = handler;
}

async function send(method, path, { query, body, headers } = {}) {
  const url = new URL(path, location.origin);
  for (const [name, value] of Object.entries(query ?? {}))
    for (const one of [value].flat()) if (one != null && one !== "") url.searchParams.append(name, one);
  const all = { ...headers };
  if (session.key) all.Authorization = `Bearer ${session.key}`;
  if (body !== undefined) all["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(url, { method, headers: all, body: body && JSON.stringify(body) });
  } catch {
    throw new ApiError(0, "unreachable", "The service cannot be reached. It may be restarting; try again.");
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  if (response.status === 401) refused();
  throw new ApiError(
    response.status,
    error?.code ?? "unknown",
    error?.message ?? `the service answered ${response.status}`,
    error?.details,
  );
}

// The JSON that a route answers with.
export async function ask(method, path, options) {
  const response = await send(method, path, options);
  return response.status === 204 ? null : response.json();
}

// The path of a bank, and the query that says whose it is.
export function at(bank, rest = "") {
  return `/v1/banks/${encodeURIComponent(bank.name)}${rest}`;
}

export function scopeOf(bank) {
  return { user_id: bank.user_id, agent_id: bank.agent_id, run_id: bank.run_id };
}

// Routes of a bank: `of(bank).get("/log", {after: 3})`.
export function of(bank) {
  const call = (method) => (rest, query, body, headers) =>
    ask(method, at(bank, rest), { query: { ...scopeOf(bank), ...query }, body, headers });
  return { get: call("GET"), post: call("POST"), patch: call("PATCH"), delete: call("DELETE") };
}

// Objects of a stream of server-sent events, as they come.
export async function* events(path, body) {
  const response = await send("POST", path, { body });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const whole = held.split("\n\n");
    held = whole.pop();
    for (const event of whole) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const object = JSON.parse(data);
      if (object.error) throw new ApiError(200, object.error.code, object.error.message);
      yield object;
    }
  }
}
