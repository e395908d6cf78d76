// Where one is, in the address: `#/entries?name=notes&user_id=mara`. So every view has an address, and "back" works.
import { useEffect, useState } from "./html.js";

export function href(page, params = {}) {
  const kept = Object.entries(params).filter(([, value]) => value != null && value !== "");
  const query = new URLSearchParams(kept).toString();
  return `#/${page}${query && `?${query}`}`;
}

function read() {
  const [page, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { page, params: Object.fromEntries(new URLSearchParams(query)) };
}

export function go(page, params, { replace = false } = {}) {
  if (replace) {
    history.replaceState(null, "", href(page, params));
    window.dispatchEvent(new HashChangeEvent("hashchange"));
  } else location.hash = href(page, params);
}

export function useRoute() {
  const [route, set] = useState(read);
  useEffect(() => {
    const changed = () => set(read());
    window.addEventListener("hashchange", changed);
    return () => window.removeEventListener("hashchange", changed);
  }, []);
  return route;
}

// What names a bank in an address.
export function bankIn(params) {
  return { name: params.name, user_id: params.user_id, agent_id: params.agent_id, run_id: params.run_id };
}
