// Search with scores: by meaning, by words, or both, now or at a time.
import { html, useEffect, useRef, useState } from "./html.js";
import { of } from "./api.js";
import { AsOf, Empty, Loaded, Score, Time, useLoad } from "./parts.js";
import { go, href } from "./route.js";

const WAYS = [
  ["vector", "Meaning"],
  ["words", "Words"],
  ["hybrid", "Both"],
];

export function Search({ bank, params, info }) {
  const { query = "", by = "vector", k = "10", as_of: asOf } = params;
  const [text, set] = useState(query);
  const input = useRef();
  useEffect(() => input.current.focus(), []);
  useEffect(() => set(query), [query]);
  const found = useLoad(
    () =>
      query && !info.missing
        ? of(bank).post("/search", {}, { query, by, k: Number(k), as_of: asOf || null })
        : Promise.resolve({ results: [] }),
    [query, by, k, asOf, info.seq, info.missing],
  );
  const search = (changes) => go("search", { ...bank, query: text.trim(), by, k, as_of: asOf, ...changes });
  return html`<section aria-label="Search">
    <form class="search" role="search" onSubmit=${(e) => (e.preventDefault(), search())}>
      <label class="wide">
        <span class="hidden">What to look for</span>
        <input type="search" ref=${input} required placeholder="Where does Mara live?" data-key="/" value=${text}
          onInput=${(e) => set(e.target.value)} />
      </label>
      <button class="primary">Search</button>
      <fieldset class="segments">
        <legend class="hidden">How</legend>
        ${WAYS.map(
          ([way, title]) => html`<label>
            <input type="radio" name="by" checked=${by === way} onChange=${() => search({ by: way })} />${title}
          </label>`,
        )}
      </fieldset>
      <label class="inline">
        At most
        <select value=${k} onChange=${(e) => search({ k: e.target.value })}>
          ${["5", "10", "25", "100"].map((n) => html`<option>${n}</option>`)}
        </select>
      </label>
      <${AsOf} at=${asOf} go=${(to) => search({ as_of: to })} />
    </form>
    ${!query
      ? html`<${Empty} title="What is to be found?">Scores are similarities: a search shows what an agent would be shown.<//>`
      : html`<${Loaded} of=${found} lines=${5}>
          ${({ results }) =>
            results.length
              ? html`<ol class="found" data-list>
                  ${results.map(
                    (m, rank) => html`<li key=${m.id}>
                      <a class="entry" data-item href=${href("entries", { ...bank, id: m.id })}>
                        <span class="rank">${rank + 1}</span>
                        <span class="text">${m.text}</span>
                        <${Score} value=${m.score} best=${results[0].score} />
                        <span class="meta"><span class="id">${m.id}</span><${Time} at=${m.updated_at} /></span>
                      </a>
                    </li>`,
                  )}
                </ol>`
              : html`<${Empty} title="Nothing fits">Search by meaning always finds something where there is something.<//>`}
        <//>`}
  </section>`;
}
