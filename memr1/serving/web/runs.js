// Training runs: which there are, how their numbers went, and what was played in a step.
import { html, useState } from "./html.js";
import { ask } from "./api.js";
import { Chart } from "./chart.js";
import { number, plural } from "./format.js";
import { Empty, Loaded, Pager, Problem, Time, useEvery, useLoad } from "./parts.js";
import { Detail, Verdict, written } from "./rollout.js";
import { go, href } from "./route.js";

const SIZE = 25;
const FIRST = ["reward/mean", "learner/loss"];

const at = (name, rest = "") => `/v1/runs/${encodeURIComponent(name)}${rest}`;
const iso = (seconds) => new Date(seconds * 1000).toISOString();

export function Runs() {
  const runs = useLoad(() => ask("GET", "/v1/runs"), []);
  useEvery(15, runs.reload, []);
  if (runs.error?.code === "no_runs")
    return html`<main class="wide-page"><h1>Training runs</h1>
      <${Empty} title="No training runs are shown here">
        Start the service with <code>memr1 serve --runs FOLDER</code> and use an admin key of the tenant that owns them.
      <//>
    </main>`;
  return html`<main class="wide-page">
    <h1>Training runs</h1>
    <${Loaded} of=${runs} lines=${5}>
      ${({ runs: all }) =>
        all.length
          ? html`<table class="cards" data-list>
              <thead><tr><th>Run</th><th>Model</th><th>Stage</th><th class="n">Steps</th><th class="n">Reward</th><th>Last step</th></tr></thead>
              <tbody>
                ${all.map(
                  (run) => html`<tr key=${run.name}>
                    <td><a data-item href=${href("run", { run: run.name })}>${run.name}</a></td>
                    <td data-label="Model">${run.model ?? "–"}</td>
                    <td data-label="Stage">${run.stage ?? "–"}</td>
                    <td data-label="Steps" class="n">${number(run.steps)}</td>
                    <td data-label="Reward" class="n">${number(run.reward, 3)}</td>
                    <td data-label="Last step"><${Time} at=${iso(run.updated)} /></td>
                  </tr>`,
                )}
              </tbody>
            </table>`
          : html`<${Empty} title="No run has begun yet">Runs appear after their first step.<//>`}
    <//>
  </main>`;
}

export function Run({ params }) {
  const name = params.run;
  const run = useLoad(() => ask("GET", at(name)), [name]);
  useEvery(10, run.reload, [name]);
  return html`<main class="wide-page">
    <a class="back always" href=${href("runs")}>← Training runs</a>
    <h1>${name}</h1>
    <${Loaded} of=${run} lines=${8}>
      ${(info) => html`<${Facts} run=${info} />
        ${info.metrics.length > 0 && html`<${Curve} ...${{ info, params }} />`}
        ${info.rollouts.length
          ? html`<${Rollouts} ...${{ info, params }} />`
          : html`<${Empty} title="No rollouts were kept">They appear after the first reinforcement step.<//>`}`}
    <//>
  </main>`;
}

function Facts({ run }) {
  const seconds = run.info.seconds;
  return html`<dl class="numbers">
    <div><dt>model</dt><dd class="name">${run.model ?? "–"}</dd></div>
    <div><dt>steps</dt><dd>${number(run.steps)}</dd></div>
    <div><dt>last reward</dt><dd>${number(run.reward, 3)}</dd></div>
    ${seconds && html`<div><dt>time</dt><dd>${number(Math.round(seconds / 60))} min</dd></div>`}
    <div><dt>last step</dt><dd class="name"><${Time} at=${iso(run.updated)} /></dd></div>
    <div><dt>stages</dt><dd class="name">${run.stages.map((s) => `${s.stage} (${s.last - s.first + 1})`).join(", ")}</dd></div>
  </dl>`;
}

function Curve({ info, params }) {
  const metric = params.metric ?? FIRST.find((m) => info.metrics.includes(m)) ?? info.metrics[0];
  const curves = useLoad(() => ask("GET", at(info.name, "/metrics"), { query: { name: metric } }), [info.name, metric, info.steps]);
  const choose = (step) => {
    const nearest = info.rollouts.reduce((a, b) => (Math.abs(b - step) < Math.abs(a - step) ? b : a), info.rollouts[0]);
    if (nearest !== undefined) go("run", { ...params, step: nearest, index: "" });
  };
  return html`<section class="card" aria-label="Metrics">
    <label class="inline">
      Metric
      <select value=${metric} onChange=${(e) => go("run", { ...params, metric: e.target.value })}>
        ${info.metrics.map((m) => html`<option>${m}</option>`)}
      </select>
    </label>
    <${Loaded} of=${curves} lines=${4}>
      ${({ steps, values }) =>
        values[metric] &&
        html`<${Chart} ...${{ name: metric, steps, values: values[metric], stages: info.stages, choose, marked: Number(params.step ?? info.rollouts.at(-1)) }} />`}
    <//>
  </section>`;
}

function Rollouts({ info, params }) {
  const steps = info.rollouts;
  const step = Number(params.step ?? steps.at(-1));
  const { filter = "", index } = params;
  const offset = Number(params.offset ?? 0);
  const here = { ...params, step };
  const [text, set] = useState(filter);
  const page = useLoad(
    () => ask("GET", at(info.name, `/rollouts/${step}`), { query: { offset, limit: SIZE, filter } }),
    [info.name, step, offset, filter],
  );
  const position = steps.indexOf(step);
  const to = (by) => go("run", { ...here, step: steps[position + by], index: "", offset: "" });
  return html`<section aria-label="Rollouts">
    <div class="tools">
      <h2>Rollouts</h2>
      <span class="stepper">
        <button class="small" aria-label="Step before" disabled=${position <= 0} onClick=${() => to(-1)}>←</button>
        <label class="inline">
          step
          <select value=${String(step)} onChange=${(e) => go("run", { ...here, step: e.target.value, index: "", offset: "" })}>
            ${steps.map((s) => html`<option value=${String(s)}>${s}</option>`)}
          </select>
        </label>
        <button class="small" aria-label="Step after" disabled=${position < 0 || position + 1 >= steps.length} onClick=${() => to(1)}>→</button>
      </span>
      <form class="wide" role="search" onSubmit=${(e) => (e.preventDefault(), go("run", { ...here, filter: text.trim(), index: "", offset: "" }))}>
        <input type="search" aria-label="Filter rollouts" data-key="/" value=${text} onInput=${(e) => set(e.target.value)}
          placeholder="Filter: reward<0.5, role:manager, error:, or words" />
      </form>
    </div>
    ${page.error
      ? html`<${Problem} error=${page.error} />`
      : html`<${Loaded} of=${page} lines=${8}>
          ${({ rollouts, total }) => {
            const chosen = rollouts.find((r) => String(r.index) === index);
            return html`<div class="split ${chosen ? "open" : ""}">
              <div class="list" data-list>
                <p class="faint">${plural(total, "rollout")}${filter && " fit"}, played in groups from one state and compared with one another</p>
                ${groups(rollouts).map(
                  (group) => html`<section class="group" key=${group[0].index}>
                    <h3>${group[0].outcome.facts?.join(" ") ?? group[0].outcome.question ?? group[0].task_id}</h3>
                    <ul class="entries">
                      ${group.map(
                        (r) => html`<li key=${r.index}>
                          <a class="entry" data-item href=${href("run", { ...here, index: r.index })} aria-current=${r === chosen}>
                            <span class="text">${written(r)}</span>
                            <${Verdict} rollout=${r} />
                          </a>
                        </li>`,
                      )}
                    </ul>
                  </section>`,
                )}
                ${!total && html`<${Empty} title=${filter ? "No rollout fits the filter" : "The step has no rollouts"} />`}
                <${Pager} ...${{ offset, size: SIZE, total, go: (next) => go("run", { ...here, offset: next || "", index: "" }) }} />
              </div>
              ${chosen && html`<${Detail} rollout=${chosen} close=${href("run", { ...here, index: "" })} />`}
            </div>`;
          }}
        <//>`}
  </section>`;
}

// Neighbours that were played from one state.
function groups(rollouts) {
  const found = [];
  for (const r of rollouts) {
    if (found.at(-1)?.[0].group_id !== r.group_id) found.push([]);
    found.at(-1).push(r);
  }
  return found;
}
