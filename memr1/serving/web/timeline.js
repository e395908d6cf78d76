// Every decision of a bank, newest first: what was done, what was rejected, and the way back.
import { html, useState } from "./html.js";
import { of } from "./api.js";
import { dayOf, moment } from "./format.js";
import { decider, sourcesOf, undo } from "./entries.js";
import { Confirmed, Empty, Event, KINDS, Loaded, Operation, Pager, Time, attempt, useLoad } from "./parts.js";
import { go, href } from "./route.js";

const SIZE = 100;

export function Timeline({ bank, params, may, info, changed }) {
  const offset = Number(params.offset ?? 0);
  const newest = info.seq - offset;
  const [kind, only] = useState("");
  const log = useLoad(
    () =>
      newest <= 0
        ? Promise.resolve({ records: [] })
        : of(bank).get("/log", { after: Math.max(0, newest - SIZE), limit: Math.min(SIZE, newest) }),
    [newest],
  );
  const entry = (id) => href("entries", { ...bank, id, deleted: "true" });
  return html`<section aria-label="Timeline" data-list>
    <div class="tools" role="group" aria-label="Show">
      <button class="chip" aria-pressed=${!kind} onClick=${() => only("")}>Everything</button>
      ${KINDS.map(
        (k) => html`<button class="chip ${k.toLowerCase()}" aria-pressed=${kind === k} onClick=${() => only(k)}>${k}</button>`,
      )}
    </div>
    <${Loaded} of=${log} lines=${8}>
      ${({ records }) => {
        if (!records.length) return html`<${Empty} title="Nothing was decided yet">Every decision about this bank is kept here.<//>`;
        const fit = withBefore(records).filter((r) => !kind || r.operations.some((op) => op.event === kind)).toReversed();
        if (!fit.length) return html`<${Empty} title="No ${kind} among these ${records.length} decisions" />`;
        return days(fit).map(
          ([day, all]) => html`<section class="day" key=${day}>
            <h2>${day}</h2>
            <ol class="timeline">
              ${all.map((record) => html`<${Decision} key=${record.seq} ...${{ record, bank, may, info, changed, entry }} />`)}
            </ol>
          </section>`,
        );
      }}
    <//>
    <${Pager} ...${{ offset, size: SIZE, total: info.seq, go: (to) => go("timeline", { ...bank, offset: to || undefined }) }} />
  </section>`;
}

// Records with what each entry said before each operation, as far as earlier records tell.
function withBefore(records) {
  const said = new Map();
  return records.map((record) => {
    const operations = record.operations.map((op) => {
      const before = said.get(op.id);
      if (op.ok && op.text) said.set(op.id, op.text);
      return { ...op, before };
    });
    for (const [id] of record.reverts) said.delete(id);
    for (const id of record.erases) said.delete(id);
    return { ...record, operations };
  });
}

function days(records) {
  const found = [];
  for (const record of records) {
    const date = record.time && moment(record.time);
    const day = date ? dayOf(date) : "Without a time";
    if (found.at(-1)?.[0] !== day) found.push([day, []]);
    found.at(-1)[1].push(record);
  }
  return found;
}

function Decision({ record, bank, may, info, changed, entry }) {
  const { seq, operations, reverts, erases, provenance } = record;
  const request = provenance.turn_ids.find((source) => source.startsWith("request:"));
  const back = () =>
    attempt(() => of(bank).post("/rollback", {}, { seq }), ({ changed: ids }) => {
      changed();
      return ids.length ? `Back to decision ${seq}; changed: ${ids.join(", ")}` : "Nothing had changed since";
    });
  return html`<li class="decision">
    <p class="meta">
      <span class="id">#${seq}</span>
      <span>${record.actor ? `by ${record.actor}` : decider(provenance)}</span>
      ${provenance.speaker && html`<span>${provenance.speaker} said it</span>`}
      ${provenance.trusted || html`<span class="badge bad">untrusted</span>`}
      ${sourcesOf(provenance).map((source) => html`<span class="badge" title="Source">${source}</span>`)}
      <${Time} at=${record.time} />
    </p>
    <ul class="operations">
      ${operations.map((op, i) => html`<${Operation} key=${i} op=${op} link=${entry} />`)}
      ${reverts.map(
        ([id, version]) => html`<li class="operation">
          <${Event} kind="REVERT" /><a class="id" href=${entry(id)}>${id}</a>
          <span class="text">${version ? `back to version ${version}` : "as it was before"}</span>
        </li>`,
      )}
      ${erases.map((id) => html`<li class="operation"><${Event} kind="ERASE" /><span class="id">${id}</span><span class="text">for good</span></li>`)}
    </ul>
    <div class="buttons start">
      ${record.time && html`<a class="button small" data-item href=${href("entries", { ...bank, as_of: record.time })}>The bank then</a>`}
      ${may &&
      request &&
      operations.some((op) => op.changed) &&
      html`<${Confirmed} label="Undo" name="Undo decision ${seq}" question="Undo decision ${seq}?" action=${() => undo(bank, request, changed)}>
        What this request did to the bank is taken back. What others have changed since stays.
      <//>`}
      ${may &&
      seq < info.seq &&
      html`<${Confirmed} label="Back to here" name="Roll back to decision ${seq}" question="Go back to decision ${seq}?" action=${back}>
        Every memory gets back what it said after this decision. That is a decision of its own, and can be taken back.
      <//>`}
    </div>
  </li>`;
}
