// The console: who asks, which page is meant, and what surrounds the pages.
import { html, render, useEffect, useState } from "./html.js";
import { ask, session, whenRefused } from "./api.js";
import { Bank } from "./bank.js";
import { Banks, Overview } from "./banks.js";
import { Dialog, Toasts, toast, useEvery, useLoad } from "./parts.js";
import { bankIn, href, useRoute } from "./route.js";
import { Run, Runs } from "./runs.js";

function App() {
  const { page, params } = useRoute();
  const [me, setMe] = useState();
  const [problem, setProblem] = useState();
  const [help, setHelp] = useState(false);

  const enter = async () => {
    try {
      const found = await ask("GET", "/v1/me");
      whenRefused(leave); // also in the middle of things: a key can be revoked
      setMe(found);
      setProblem();
    } catch (error) {
      setProblem(error.status !== 401 || session.key ? error : undefined);
      if (error.status === 401) session.key = null;
      setMe(null);
    }
  };
  useEffect(() => {
    enter();
  }, []);
  useEffect(() => {
    const pressed = (event) => key(event, () => setHelp(true));
    window.addEventListener("keydown", pressed);
    return () => window.removeEventListener("keydown", pressed);
  }, []);

  if (me === undefined) return null;
  return html`<a class="skip" href="#content" onClick=${skip}>Skip to the content</a>
    <header class="top">
      <a class="brand" href=${href("")}><img src="/console/icon.svg" alt="" width="24" height="24" />memr1</a>
      ${me &&
      html`<nav aria-label="Pages">
          <a href=${href("")} aria-current=${!page.startsWith("run") && "page"}>Banks</a>
          <a href=${href("runs")} aria-current=${page.startsWith("run") && "page"}>Training runs</a>
        </nav>
        <div class="who">
          <span class="served" title="What is served">${me.model ?? "no model"}</span>
          <span class="badge" title="This key's name, tenant and right">${me.name} · ${me.tenant} · ${me.right}</span>
          <button class="quiet round" aria-label="Keyboard shortcuts" onClick=${() => setHelp(true)}>?</button>
          ${session.key && html`<button class="small" onClick=${leave}>Sign out</button>`}
        </div>`}
    </header>
    <div id="content" tabindex="-1">
      ${me ? html`<${Page} page=${page} params=${params} me=${me} />` : html`<${SignIn} ...${{ enter, problem }} />`}
    </div>
    ${help && html`<${Help} close=${() => setHelp(false)} />`}
    <${Toasts} />`;
}

// Ends what is under way, too, and whatever modules remember: somebody else may sign in here.
function leave() {
  session.key = null;
  location.reload();
}

function Page({ page, params, me }) {
  if (page === "runs") return html`<${Runs} />`;
  if (page === "run") return html`<${Run} params=${params} />`;
  return html`<${BankPages} ...${{ page, params, me }} />`;
}

function BankPages({ page, params, me }) {
  const banks = useLoad(() => ask("GET", "/v1/banks"), []);
  useEvery(15, banks.reload, []);
  return html`<div class="with-side ${page ? "inside" : ""}">
    <${Banks} ...${{ banks, params, me }} />
    <main>${page ? html`<${Bank} key=${JSON.stringify(bankIn(params))} ...${{ page, params, me }} />` : html`<${Overview} ...${{ banks, me }} />`}</main>
  </div>`;
}

function SignIn({ enter, problem }) {
  const [key, set] = useState("");
  const [busy, work] = useState(false);
  const unauthorized = problem?.status === 401;
  const submit = async (event) => {
    event.preventDefault();
    work(true);
    session.key = key.trim();
    await enter();
    work(false);
    set("");
  };
  return html`<main class="sign-in">
    <form onSubmit=${submit}>
      <h1>Sign in</h1>
      ${problem && !unauthorized
        ? html`<p role="alert">${problem.message}</p>`
        : html`<p>This service asks for an API key. It is kept in this tab only, until the tab is closed.</p>`}
      <label>
        API key
        <input type="password" autocomplete="off" spellcheck="false" required autofocus placeholder="memr1_…"
          value=${key} onInput=${(e) => set(e.target.value)} />
      </label>
      ${unauthorized && html`<p class="bad" role="alert">This key is not accepted.</p>`}
      <button class="primary" disabled=${busy}>Sign in</button>
      <p class="faint">Keys are made with <code>memr1 keys create</code>.</p>
    </form>
  </main>`;
}

// ---------------------------------------------------------------------------------------------- keyboard

const KEYS = [
  ["/", "Search"],
  ["j k", "Next and previous of a list"],
  ["Esc", "Close what is open"],
  ["?", "This help"],
];

function Help({ close }) {
  return html`<${Dialog} title="Keyboard" close=${close}>
    <dl class="keys">${KEYS.map(([key, what]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${what}</dd></div>`)}</dl>
    <form method="dialog" class="buttons"><button class="primary">Close</button></form>
  <//>`;
}

function key(event, help) {
  const typing = event.target.closest?.("input, textarea, select, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const press = (selector) => {
    const found = document.querySelector(selector);
    if (!found) return;
    event.preventDefault();
    if (found.matches("input")) found.focus();
    else found.click();
  };
  if (event.key === "?") help();
  else if (event.key === "/") press("[data-key='/']");
  else if (event.key === "Escape") press("[data-key=escape]");
  else if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
}

function step(by) {
  const items = [...document.querySelectorAll("main [data-list] a[data-item]")];
  const at = items.findIndex((item) => item === document.activeElement || item.ariaCurrent === "true");
  const next = items[at < 0 ? 0 : Math.max(0, Math.min(items.length - 1, at + by))];
  next?.focus();
  next?.click();
}

function skip(event) {
  event.preventDefault();
  document.getElementById("content").focus();
}

window.addEventListener("unhandledrejection", (event) => toast(event.reason?.message ?? "Something failed.", "bad"));
render(html`<${App} />`, document.body);
