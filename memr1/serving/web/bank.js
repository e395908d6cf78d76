// One bank: its numbers, and the ways to look at it.
import { html, useState } from "./html.js";
import { of } from "./api.js";
import { BankName } from "./banks.js";
import { Chat } from "./chat.js";
import { Entries } from "./entries.js";
import { number, plural } from "./format.js";
import { Held, HeldWrites } from "./held.js";
import { Dialog, KINDS, Loaded, Mix, Operation, Problem, attempt, toast, useEvery, useLoad } from "./parts.js";
import { bankIn, go, href } from "./route.js";
import { Search } from "./search.js";
import { Timeline } from "./timeline.js";

// name, title, view, and who sees it if not everybody
const TABS = [
  ["entries", "Memories", Entries],
  ["timeline", "Timeline", Timeline],
  ["search", "Search", Search],
  ["chat", "Chat", Chat, (me) => me.model],
  ["held", "Held", HeldWrites, (me) => me.right === "admin"],
];
const EMPTY = { seq: 0, live: 0, deleted: 0, erased: 0, events: {}, rejected: {} };

export function Bank({ page, params, me }) {
  const bank = bankIn(params);
  const whose = Object.values(bank).join("\n");
  const info = useLoad(
    () =>
      of(bank)
        .get("")
        .catch((error) => (error.status === 404 ? { ...EMPTY, missing: true } : Promise.reject(error))),
    [whose],
  );
  const [adding, add] = useState(false);
  useEvery(5, info.reload, [whose]); // what others write shows up by itself
  const tab = TABS.find(([name]) => name === page);
  if (!tab) return html`<${Problem} error=${{ message: "There is no such page." }} />`;
  if (!info.data) return html`<${Loaded} of=${info} />`;
  const now = info.data;
  const may = me.right !== "read";
  return html`<div class="bank">
    <header class="bank-head">
      <a class="back" href=${href("")}>← Banks</a>
      <h1><${BankName} bank=${bank} /></h1>
      ${may && html`<button class="primary" onClick=${() => add(true)}>Add memory</button>`}
      <${Numbers} of=${now} />
    </header>
    <nav class="tabs" aria-label="Views of this bank">
      ${TABS.filter(([, , , seen]) => !seen || seen(me)).map(
        ([name, title]) => html`<a href=${href(name, bank)} aria-current=${name === page && "page"}
          data-key=${name === "search" && page !== "search" ? "/" : undefined}>${title}</a>`,
      )}
    </nav>
    <${tab[2]} ...${{ bank, params, me, may, info: now, changed: info.reload }} />
    ${adding &&
    html`<${Add} bank=${bank} me=${me} close=${() => add(false)} done=${() => {
      info.reload();
      if (page !== "timeline") go("entries", bank);
    }} />`}
  </div>`;
}

function Numbers({ of: info }) {
  const events = KINDS.filter((kind) => info.events[kind]);
  const rejected = Object.entries(info.rejected);
  const count = rejected.reduce((sum, [, n]) => sum + n, 0);
  return html`<dl class="numbers">
    <div><dt>memories</dt><dd data-test="live">${number(info.live)}</dd></div>
    ${info.deleted > 0 && html`<div><dt>deleted</dt><dd>${number(info.deleted)}</dd></div>`}
    ${info.erased > 0 && html`<div><dt>erased</dt><dd>${number(info.erased)}</dd></div>`}
    <div><dt>decisions</dt><dd>${number(info.seq)}</dd></div>
    ${events.length > 0 &&
    html`<div class="mix">
      <dt>operations</dt>
      <dd>
        <${Mix} events=${info.events} />
        <span class="legend">
          ${events.map((kind) => html`<span class=${kind.toLowerCase()}>${number(info.events[kind])} ${kind}</span>`)}
        </span>
      </dd>
    </div>`}
    ${count > 0 &&
    html`<div title=${rejected.map(([why, n]) => `${why}: ${n}`).join("\n")}>
      <dt>rejected</dt><dd class="bad">${number(count)}</dd>
    </div>`}
  </dl>`;
}

function Add({ bank, me, close, done }) {
  const [infer, decide] = useState(Boolean(me.model));
  const [text, set] = useState("");
  const [trial, show] = useState();
  const [busy, work] = useState(false);
  const send = async (dryRun) => {
    work(true);
    await attempt(async () => {
      const { decisions } = await of(bank).post("/memories", {}, { text, infer, dry_run: dryRun });
      const operations = decisions.flatMap((d) => d.operations);
      if (dryRun) return show(decisions);
      const changed = operations.filter((o) => o.changed).length;
      if (decisions.some((d) => d.held)) toast("Held: an operator has to release it first", "bad");
      else toast(changed ? `${plural(changed, "memory", "memories")} changed` : "Nothing changed: it was known already");
      done();
      close();
    });
    work(false);
  };
  return html`<${Dialog} title="Add to ${bank.name}" close=${close}>
    <form onSubmit=${(event) => (event.preventDefault(), send(false))}>
      <label>
        What is to be remembered
        <textarea required rows="3" autofocus value=${text} placeholder="Mara lives in Oslo."
          onInput=${(e) => (set(e.target.value), show())}></textarea>
      </label>
      ${me.model &&
      html`<fieldset>
        <legend>Who decides</legend>
        <label class="choice">
          <input type="radio" name="infer" checked=${infer} onChange=${() => (decide(true), show())} />
          The manager: it may add, change, delete, or leave things as they are
        </label>
        <label class="choice">
          <input type="radio" name="infer" checked=${!infer} onChange=${() => (decide(false), show())} />
          You: it is added as it stands
        </label>
      </fieldset>`}
      ${trial &&
      html`<div class="trial" role="status">
        <h3>This would be done</h3>
        <ul class="operations">${trial.flatMap((d) => d.operations).map((op) => html`<${Operation} op=${op} />`)}</ul>
        ${!trial.length && html`<p class="faint">Nothing.</p>`}
        <${Held} decisions=${trial} />
      </div>`}
      <div class="buttons">
        <button type="button" class="quiet" onClick=${close}>Cancel</button>
        <button type="button" disabled=${busy || !text.trim()} onClick=${() => send(true)}>Try out</button>
        <button class="primary" disabled=${busy || !text.trim()}>Add</button>
      </div>
    </form>
  <//>`;
}
