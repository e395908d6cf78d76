// Parts that several views are made of.
import { html, useEffect, useRef, useState } from "./html.js";
import { ago, difference, exactly, localInput, moment, number } from "./format.js";

// ---------------------------------------------------------------------------------------------- loading

// {data, error, loading, reload} of an asynchronous function, asked again when `deps` change. What was there stays until
// the new comes, so that nothing flickers; an answer that was overtaken is dropped.
export function useLoad(load, deps) {
  const [state, set] = useState({ loading: true });
  const [turn, again] = useState(0);
  useEffect(() => {
    let wanted = true;
    set((now) => ({ ...now, loading: true }));
    load().then(
      (data) => wanted && set({ data, loading: false }),
      (error) => wanted && set(({ data }) => ({ data, error, loading: false })),
    );
    return () => {
      wanted = false;
    };
  }, [...deps, turn]);
  return { ...state, reload: () => again((n) => n + 1) };
}

// Call something every so often while the page is looked at.
export function useEvery(seconds, work, deps) {
  useEffect(() => {
    const timer = setInterval(() => document.visibilityState === "visible" && work(), seconds * 1000);
    return () => clearInterval(timer);
  }, deps);
}

export function Loaded({ of, children, lines = 3 }) {
  if (of.error) return html`<${Problem} error=${of.error} retry=${of.reload} />`;
  if (of.data === undefined) return html`<${Skeleton} lines=${lines} />`;
  return html`<div class="loaded" aria-busy=${of.loading}>${children(of.data)}</div>`;
}

export function Skeleton({ lines }) {
  return html`<div class="skeleton" role="status" aria-label="Loading">
    ${Array.from({ length: lines }, (_, i) => html`<span key=${i}></span>`)}
  </div>`;
}

export function Problem({ error, retry }) {
  return html`<div class="empty" role="alert">
    <strong>This did not work</strong>
    <p>${error.message}</p>
    ${retry && html`<button onClick=${retry}>Try again</button>`}
  </div>`;
}

export function Empty({ title, children }) {
  return html`<div class="empty"><strong>${title}</strong>${children && html`<p>${children}</p>`}</div>`;
}

// ---------------------------------------------------------------------------------------------- messages

let show = () => {};

// Say something in passing. kind: good, bad.
export const toast = (text, kind = "good") => show(text, kind);

export function Toasts() {
  const [all, set] = useState([]);
  useEffect(() => {
    let count = 0;
    show = (text, kind) => {
      const id = ++count;
      set((now) => [...now.slice(-2), { id, text, kind }]);
      setTimeout(() => set((now) => now.filter((t) => t.id !== id)), kind === "bad" ? 12000 : 5000);
    };
  }, []);
  const close = (id) => set((now) => now.filter((t) => t.id !== id));
  return html`<div class="toasts" role="log" aria-live="polite" aria-label="Messages">
    ${all.map(
      (t) => html`<div class="toast ${t.kind}" key=${t.id}>
        <span>${t.text}</span>
        <button class="quiet" aria-label="Close this message" onClick=${() => close(t.id)}>✕</button>
      </div>`,
    )}
  </div>`;
}

// Do something and say how it went; true when it worked.
export async function attempt(work, said) {
  try {
    const result = await work();
    const text = typeof said === "function" ? said(result) : said;
    if (text) toast(text);
    return true;
  } catch (error) {
    toast(error.message, "bad");
    return false;
  }
}

// ---------------------------------------------------------------------------------------------- dialogs

export function Dialog({ title, close, children }) {
  const ref = useRef();
  useEffect(() => ref.current.showModal(), []);
  return html`<dialog ref=${ref} onClose=${close} onCancel=${close} aria-labelledby="dialog-title">
    <h2 id="dialog-title">${title}</h2>
    ${children}
  </dialog>`;
}

// A button that asks before it does something.
export function Confirmed({ label, question, children, action, kind = "", name }) {
  const [open, set] = useState(false);
  const [busy, work] = useState(false);
  const yes = async (event) => {
    event.preventDefault();
    work(true);
    await action();
    work(false);
    set(false);
  };
  return html`<button class="small ${kind}" aria-label=${name} onClick=${() => set(true)}>${label}</button>
    ${open &&
    html`<${Dialog} title=${question} close=${() => set(false)}>
      <form onSubmit=${yes}>
        <p>${children}</p>
        <div class="buttons">
          <button type="button" class="quiet" onClick=${() => set(false)}>Cancel</button>
          <button class="primary ${kind}" disabled=${busy} autofocus>${label}</button>
        </div>
      </form>
    <//>`}`;
}

// ---------------------------------------------------------------------------------------------- small things

export function Time({ at }) {
  const date = at && moment(at);
  if (!date) return at ? html`<span>${at}</span>` : html`<span class="faint">–</span>`;
  return html`<time datetime=${date.toISOString()} title=${exactly(date)}>${ago(date)}</time>`;
}

// A moment to look back from. at: as the API takes it.
export function AsOf({ at, go }) {
  return html`<label class="inline">
    As of
    <input type="datetime-local" step="1" value=${at ? localInput(moment(at)) : ""}
      onChange=${(e) => go(e.target.value && new Date(e.target.value).toISOString())} />
  </label>`;
}

export function Event({ kind }) {
  return html`<span class="event ${kind.toLowerCase()}">${kind}</span>`;
}

export const KINDS = ["ADD", "UPDATE", "DELETE", "NOOP"];

// How often which operation was applied, as a bar.
export function Mix({ events }) {
  const there = KINDS.filter((kind) => events[kind]);
  return html`<span class="stack" role="img" aria-label=${there.map((kind) => `${events[kind]} ${kind}`).join(", ")}>
    ${there.map((kind) => html`<span class=${kind.toLowerCase()} style=${{ flexGrow: events[kind] }}></span>`)}
  </span>`;
}

export function Difference({ before, after }) {
  return html`<span class="diff"
    >${difference(before, after).map(([kind, text]) =>
      kind === "in" ? html`<ins>${text}</ins>` : kind === "out" ? html`<del>${text}</del>` : text,
    )}</span
  >`;
}

// What came of one operation. link: from an id to an address.
export function Operation({ op, link }) {
  return html`<li class="operation ${op.ok ? "" : "rejected"}">
    <${Event} kind=${op.event} />
    ${op.id && (link ? html`<a class="id" href=${link(op.id)}>${op.id}</a>` : html`<span class="id">${op.id}</span>`)}
    <span class="text">${worded(op)}</span>
    ${!op.ok && html`<span class="reason" title=${op.detail ?? ""}>rejected: ${op.detail ?? op.reason}</span>`}
    ${op.ok && op.changed === false && op.event === "UPDATE" && html`<span class="reason">said that already</span>`}
  </li>`;
}

// before: what the entry said until then, where that is known.
function worded({ event, ok, before, text }) {
  if (!ok || before === undefined) return text;
  if (event === "DELETE") return html`<del>${before}</del>`;
  return event === "UPDATE" ? html`<${Difference} before=${before} after=${text} />` : text;
}

export function Score({ value, best }) {
  const share = best > 0 ? Math.max(0, Math.min(1, value / best)) : 0;
  return html`<span class="score" title=${value}>
    <span class="bar" aria-hidden="true"><span style=${{ width: `${share * 100}%` }}></span></span>
    ${value.toFixed(3)}
  </span>`;
}

// Buttons through pages of `size`.
export function Pager({ offset, size, total, go }) {
  if (total <= size) return null;
  return html`<nav class="pager" aria-label="Pages">
    <button class="small" disabled=${offset === 0} onClick=${() => go(Math.max(0, offset - size))}>← Previous</button>
    <span>${number(offset + 1)} – ${number(Math.min(total, offset + size))} of ${number(total)}</span>
    <button class="small" disabled=${offset + size >= total} onClick=${() => go(offset + size)}>Next →</button>
  </nav>`;
}

// Put the focus on a heading when what it heads was asked for; on narrow screens it has taken the list's place.
export function useFocus(of) {
  const ref = useRef();
  useEffect(() => {
    if (matchMedia("(max-width: 60rem)").matches) ref.current?.focus();
  }, [of]);
  return ref;
}
