// What a bank holds, now or at a time, and beside it one memory: where it came from, and every version of it.
import { html, useState } from "./html.js";
import { of } from "./api.js";
import { exactly, moment } from "./format.js";
import { AsOf, Confirmed, Difference, Empty, Loaded, Pager, Time, attempt, useFocus, useLoad } from "./parts.js";
import { go, href } from "./route.js";

const SIZE = 50;

export function Entries({ bank, params, may, info, changed }) {
  const { id, as_of: asOf, deleted } = params;
  const offset = Number(params.offset ?? 0);
  const here = { ...bank, as_of: asOf, deleted, offset: offset || undefined };
  const page = useLoad(
    () => (info.missing ? Promise.resolve({ memories: [], total: 0 }) : of(bank).get("/memories", { offset, limit: SIZE, deleted, as_of: asOf })),
    [info.seq, info.missing, offset, deleted, asOf],
  );
  return html`<div class="split ${id ? "open" : ""}">
    <section class="list" aria-label="Memories" data-list>
      <div class="tools">
        <label class="choice">
          <input type="checkbox" checked=${Boolean(deleted)} disabled=${Boolean(asOf)}
            onChange=${(e) => go("entries", { ...bank, deleted: e.target.checked ? "true" : "" })} />
          Deleted ones, too
        </label>
        <${AsOf} at=${asOf} go=${(to) => go("entries", { ...bank, as_of: to })} />
        ${asOf && html`<a class="button small" href=${href("entries", bank)}>Back to now</a>`}
      </div>
      ${asOf && html`<p class="note">This is what the bank held on ${exactly(moment(asOf))}, in the words of then.</p>`}
      <${Loaded} of=${page} lines=${8}>
        ${({ memories, total }) => html`
          ${!total && html`<${Nothing} asOf=${asOf} info=${info} may=${may} />`}
          <ul class="entries">
            ${memories.map(
              (m) => html`<li key=${m.id}>
                <a class="entry ${m.status}" data-item href=${href("entries", { ...here, id: m.id })} aria-current=${m.id === id}>
                  <span class="text">${m.status === "erased" ? "erased for good" : m.text}</span>
                  <span class="meta">
                    <span class="id">${m.id}</span>
                    ${m.version > 1 && html`<span class="badge">version ${m.version}</span>`}
                    ${m.provenance.trusted || html`<span class="badge bad">untrusted</span>`}
                    ${m.status !== "live" && html`<span class="badge bad">${m.status}</span>`}
                    ${m.provenance.speaker && html`<span>${m.provenance.speaker}</span>`}
                    <${Time} at=${m.updated_at} />
                  </span>
                </a>
              </li>`,
            )}
          </ul>
          <${Pager} ...${{ offset, size: SIZE, total, go: (to) => go("entries", { ...here, offset: to || undefined }) }} />
        `}
      <//>
    </section>
    ${id && html`<${Detail} key=${id} ...${{ id, bank, here, may, info, changed }} />`}
  </div>`;
}

function Nothing({ asOf, info, may }) {
  if (asOf) return html`<${Empty} title="The bank was empty then" />`;
  if (info.deleted) return html`<${Empty} title="Nothing is remembered now">What was deleted can be brought back from the timeline.<//>`;
  return html`<${Empty} title="Nothing is remembered yet">
    ${may ? "Add the first memory, or talk to it in the chat." : "Memories show up here as they are written."}
  <//>`;
}

function Detail({ id, bank, here, may, info, changed }) {
  const history = useLoad(() => of(bank).get(`/memories/${encodeURIComponent(id)}/history`), [id, info.seq]);
  const heading = useFocus(id);
  return html`<section class="detail" aria-label="Memory ${id}">
    <header>
      <h2 tabindex="-1" ref=${heading}>Memory <span class="id">${id}</span></h2>
      <a class="button quiet round" data-key="escape" aria-label="Close this memory" href=${href("entries", here)}>✕</a>
    </header>
    <${Loaded} of=${history} lines=${5}>
      ${({ versions }) => html`<${Newest} ...${{ memory: versions.at(-1), bank, may, changed }} />
        <h3>History</h3>
        <ol class="history" reversed>
          ${versions.toReversed().map((v, i, all) => html`<${Version} key=${v.version} memory=${v} before=${all[i + 1]} />`)}
        </ol>`}
    <//>
  </section>`;
}

function Newest({ memory, bank, may, changed }) {
  const [editing, edit] = useState(); // the version that is rewritten, whatever becomes of the memory meanwhile
  const [text, set] = useState("");
  const path = `/memories/${encodeURIComponent(memory.id)}`;
  const match = ({ version }) => ({ "If-Match": `"${version}"` });
  const save = async (event) => {
    event.preventDefault();
    if (await attempt(() => of(bank).patch(path, {}, { text }, match(editing)), "Changed")) {
      edit();
      changed();
    }
  };
  const remove = async () => {
    if (await attempt(() => of(bank).delete(path, {}, undefined, match(memory)), "Deleted; its history stays")) changed();
  };
  if (editing)
    return html`<form class="edit" onSubmit=${save}>
      <label>New wording <textarea rows="4" required autofocus value=${text} onInput=${(e) => set(e.target.value)}></textarea></label>
      <div class="buttons">
        <button type="button" class="quiet" onClick=${() => edit()}>Cancel</button>
        <button class="primary" disabled=${!text.trim() || text === editing.text}>Save as version ${editing.version + 1}</button>
      </div>
    </form>`;
  return html`<p class="wording ${memory.status}">${memory.text || "(nothing is left of it)"}</p>
    ${may &&
    memory.status === "live" &&
    html`<div class="buttons start">
      <button class="small" onClick=${() => (edit(memory), set(memory.text))}>Edit</button>
      <${Confirmed} label="Delete" kind="danger" question="Delete ${memory.id}?" action=${remove}>
        No search finds it any more. Its history stays, and the timeline can bring it back.
      <//>
    </div>`}
    <dl class="facts">
      <div><dt>Status</dt><dd>${memory.status}, version ${memory.version}</dd></div>
      <div><dt>First seen</dt><dd><${Time} at=${memory.created_at} /></dd></div>
      <div><dt>Last changed</dt><dd><${Time} at=${memory.updated_at} /></dd></div>
      ${memory.event_time && html`<div><dt>Happened</dt><dd><${Time} at=${memory.event_time} /></dd></div>`}
      ${Object.entries(memory.metadata).map(
        ([name, value]) => html`<div><dt>${name}</dt><dd>${typeof value === "string" ? value : JSON.stringify(value)}</dd></div>`,
      )}
    </dl>
    <h3>Where it came from</h3>
    <${Provenance} of=${memory.provenance} />
    <${Sources} ...${{ sources: memory.provenance.turn_ids, bank, may, changed }} />`;
}

function Version({ memory, before }) {
  const gone = memory.status !== "live";
  return html`<li class="version">
    <p class="meta">
      <strong>${gone ? memory.status : `version ${memory.version}`}</strong>
      <span>${decider(memory.provenance)}</span>
      ${sourcesOf(memory.provenance).map((source) => html`<span class="badge" title="Source">${source}</span>`)}
      <${Time} at=${memory.updated_at} />
    </p>
    ${gone
      ? null
      : html`<p>${before && before.status === "live" ? html`<${Difference} before=${before.text} after=${memory.text} />` : memory.text}</p>`}
  </li>`;
}

// What is named as source besides the request and its key.
export const sourcesOf = (p) => p.turn_ids.filter((source) => !/^(request|key):/.test(source));

export function decider(p) {
  return p.role === "manager" ? `by the manager${p.weight_version == null ? "" : ` (weights ${p.weight_version})`}` : p.role ? `by ${p.role}` : "";
}

function Provenance({ of: p }) {
  const rows = [
    ["Decided by", p.role],
    ["Said by", p.speaker],
    ["Model", p.model],
    ["Adapter", p.adapter],
    ["Weights", p.weight_version],
    ["Trusted", p.trusted ? "yes" : "no: a source that is not to be relied on"],
  ].filter(([, value]) => value != null);
  return html`<dl class="facts">${rows.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

// Each source, and a way to take back everything that came from it.
function Sources({ sources, bank, may, changed }) {
  return html`<ul class="sources">
    ${sources.map(
      (source) => html`<li key=${source}>
        <code title=${source}>${source}</code>
        ${may &&
        html`<${Confirmed} label="Undo" name="Undo everything that came from ${source}" question="Undo this source?"
          action=${() => undo(bank, source, changed)}>
          Everything in this bank that came from <code>${source}</code> is taken back. What others have changed since
          stays, and the undoing can itself be rolled back.
        <//>`}
      </li>`,
    )}
  </ul>`;
}

export function undo(bank, source, changed) {
  return attempt(() => of(bank).post("/undo", {}, { source }), ({ changed: ids }) => {
    changed();
    return ids.length ? `Undone: ${ids.join(", ")}` : "Nothing of it was left to undo";
  });
}
