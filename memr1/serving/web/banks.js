// The banks that a key sees, beside the page of one of them.
import { html, useState } from "./html.js";
import { of } from "./api.js";
import { plural, sameBank, scopeParts } from "./format.js";
import { Dialog, Loaded, Mix, useLoad } from "./parts.js";
import { bankIn, go, href } from "./route.js";

const SHOWN = 200;
const CARDS = 12;

export function Banks({ banks, params, me }) {
  const [wanted, want] = useState("");
  const [making, make] = useState(false);
  const current = bankIn(params);
  return html`<aside class="side" aria-label="Banks">
    <div class="side-head">
      <h2>Banks</h2>
      ${me.right !== "read" && html`<button class="small" onClick=${() => make(true)}>New</button>`}
    </div>
    <${Loaded} of=${banks} lines=${6}>
      ${({ banks: all }) => {
        const words = wanted.toLowerCase().split(/\s+/);
        const fit = all.filter((bank) => words.every((w) => label(bank).toLowerCase().includes(w)));
        return html`${all.length > 7 &&
          html`<input type="search" aria-label="Filter banks" placeholder="Filter ${plural(all.length, "bank")}"
            value=${wanted} onInput=${(e) => want(e.target.value)} />`}
          <ul class="banks">
            ${fit.slice(0, SHOWN).map(
              (bank) => html`<li key=${label(bank)}>
                <a href=${href("entries", bank)} aria-current=${sameBank(bank, current) && "page"}>
                  <${BankName} bank=${bank} />
                </a>
              </li>`,
            )}
          </ul>
          ${fit.length > SHOWN && html`<p class="faint">${plural(fit.length - SHOWN, "more bank")}; filter to see them.</p>`}
          ${!all.length && html`<p class="faint">There is no bank yet. The first memory makes one.</p>`}
          ${all.length > 0 && !fit.length && html`<p class="faint">No bank fits.</p>`}`;
      }}
    <//>
    ${making && html`<${NewBank} me=${me} close=${() => make(false)} />`}
  </aside>`;
}

export function BankName({ bank }) {
  const parts = scopeParts(bank);
  return html`<span class="bank-name">${bank.name}</span>
    <span class="scope">
      ${parts.length ? parts.map(([kind, id]) => html`<span class="badge" title=${kind}>${kind} ${id}</span>`) : "everybody"}
    </span>`;
}

// What one sees before a bank is chosen.
export function Overview({ banks, me }) {
  return html`<div class="overview">
    <h1>What is remembered, and why</h1>
    <p>
      Choose a bank. You see what it holds, how every memory came to be, what was decided when, and what the answerer
      makes of it. ${me.right === "read" ? "This key may look, and change nothing." : "What was done can be undone."}
    </p>
    ${!me.model && html`<p class="note">No model is served: memories are kept and searched as they stand.</p>`}
    <${Loaded} of=${banks} lines=${6}>
      ${({ banks: all }) => html`<ul class="bank-cards" data-list>
        ${all.slice(0, CARDS).map((bank) => html`<li key=${label(bank)}><${Card} bank=${bank} /></li>`)}
      </ul>`}
    <//>
  </div>`;
}

function Card({ bank }) {
  const info = useLoad(() => of(bank).get(""), []);
  return html`<a class="bank-card" data-item href=${href("entries", bank)}>
    <${BankName} bank=${bank} />
    ${info.data &&
    html`<${Mix} events=${info.data.events} />
      <span class="faint">${plural(info.data.live, "memory", "memories")}, ${plural(info.data.seq, "decision")}</span>`}
  </a>`;
}

function label(bank) {
  return [bank.name, ...scopeParts(bank).flat()].join(" ");
}

// A bank is made by its first memory; this only leads to where that can be written.
function NewBank({ me, close }) {
  const open = (event) => {
    event.preventDefault();
    const given = Object.fromEntries(new FormData(event.target));
    close();
    go("entries", given);
  };
  return html`<${Dialog} title="New bank" close=${close}>
    <form onSubmit=${open}>
      <p class="faint">It is made when the first memory is added.</p>
      <label>Name <input name="name" required maxlength="100" value="memories" autofocus /></label>
      ${["user", "agent", "run"].map(
        (kind) => html`<label>
          ${kind[0].toUpperCase() + kind.slice(1)} <span class="faint">(optional)</span>
          <input name="${kind}_id" maxlength="100" value=${me[`${kind}_id`] ?? ""} readonly=${me[`${kind}_id`] != null} />
        </label>`,
      )}
      <div class="buttons">
        <button type="button" class="quiet" onClick=${close}>Cancel</button>
        <button class="primary">Open</button>
      </div>
    </form>
  <//>`;
}
