// Writes that the guards held: what was said, what it would do, and an operator's word on it.
import { html } from "./html.js";
import { ask, scopeOf } from "./api.js";
import { plural, sameBank } from "./format.js";
import { Confirmed, Empty, Loaded, Operation, Time, attempt, useLoad } from "./parts.js";

export function HeldWrites({ bank, info, changed }) {
  const held = useLoad(() => ask("GET", "/v1/quarantine", { query: { ...scopeOf(bank), limit: 1000 } }), [info.seq]);
  const end = async (work, said) => {
    await attempt(work, said);
    held.reload();
    changed();
  };
  const at = (id, rest = "") => `/v1/quarantine/${encodeURIComponent(id)}${rest}`;
  return html`<section aria-label="Held writes">
    <${Loaded} of=${held}>
      ${({ held: all }) => {
        const here = all.filter((h) => sameBank(h.bank, bank));
        if (!here.length)
          return html`<${Empty} title="Nothing is held">
            What speaks to a program, or comes from an untrusted source and would change a trusted memory, waits here.
          <//>`;
        return html`<p class="faint">${plural(here.length, "write")} for an operator to look at</p>
          <ol class="timeline">
            ${here.map(
              (h) => html`<li class="decision" key=${h.id}>
                <p class="meta">
                  ${h.suspicions.map((why) => html`<span class="badge bad">${words(why)}</span>`)}
                  ${h.provenance.trusted || html`<span class="badge">untrusted source</span>`}
                  <${Time} at=${h.time} />
                </p>
                <div>
                  ${h.facts.map((fact) => html`<blockquote>${fact}</blockquote>`)}
                  <ul class="operations">${h.operations.map((op, i) => html`<${Operation} key=${i} op=${{ ...op, ok: true }} />`)}</ul>
                </div>
                <div class="buttons start">
                  <${Confirmed} label="Release" question="Release this write?" name="Release ${h.facts[0] ?? h.id}"
                    action=${() => end(() => ask("POST", at(h.id, "/release")), "Released: it is in the bank")}>
                    It is made as a trusted decision, and you answer for it.
                  <//>
                  <${Confirmed} label="Drop" kind="danger" question="Drop this write?" name="Drop ${h.facts[0] ?? h.id}"
                    action=${() => end(() => ask("DELETE", at(h.id)), "Dropped")}>
                    It is given up for good.
                  <//>
                </div>
              </li>`,
            )}
          </ol>`;
      }}
    <//>
  </section>`;
}

const words = (code) => code.replaceAll("_", " ");

// Why decisions wait, under what was done at once.
export function Held({ decisions }) {
  const held = decisions.filter((d) => d.held || (d.seq === null && d.suspicions.length));
  if (!held.length) return null;
  const why = [...new Set(held.flatMap((d) => d.suspicions))].map(words).join(", ");
  return html`<p class="note">${held.some((d) => d.held) ? "Held" : "It would be held"} for an operator to release: ${why}</p>`;
}
