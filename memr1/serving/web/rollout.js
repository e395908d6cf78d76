// One rollout: what the model was asked and wrote, what it did to the bank, and what that was worth.
import { html } from "./html.js";
import { number } from "./format.js";
import { Difference, Event, Operation, useFocus } from "./parts.js";

// What the model that was trained wrote in the end.
export function written(rollout) {
  const call = rollout.steps.findLast((s) => s.trainable) ?? rollout.steps.at(-1);
  return call?.completion_text || "(nothing was written)";
}

export function Verdict({ rollout: r }) {
  return html`<span class="meta">
    ${r.outcome.operations?.map((op) => html`<${Event} kind=${op.event} />`)}
    ${r.error
      ? html`<span class="bad">${r.error}</span>`
      : html`<span class="reward ${r.reward == null ? "" : r.reward > 0.5 ? "good" : "bad"}">reward ${number(r.reward, 3)}</span>
          <span class="advantage ${r.advantage > 0 ? "good" : r.advantage < 0 ? "bad" : ""}" title="Advantage within its group">
            ${r.advantage == null ? "not trained on" : `advantage ${r.advantage > 0 ? "+" : ""}${number(r.advantage, 3)}`}
          </span>`}
  </span>`;
}

export function Detail({ rollout: r, close }) {
  const { outcome } = r;
  const heading = useFocus(r.index);
  return html`<section class="detail" aria-label="Rollout ${r.index + 1}">
    <header>
      <h2 tabindex="-1" ref=${heading}>Rollout ${r.index + 1}</h2>
      <a class="button quiet round" data-key="escape" aria-label="Close this rollout" href=${close}>✕</a>
    </header>
    <${Verdict} rollout=${r} />
    <dl class="facts">
      <div><dt>Task</dt><dd><code>${r.task_id}</code></dd></div>
      <div><dt>Group</dt><dd><code>${r.group_id}</code></dd></div>
      ${Object.entries(r.reward_parts).map(([name, value]) => html`<div><dt>${name}</dt><dd>${number(value)}</dd></div>`)}
    </dl>
    ${outcome.facts && html`<h3>New facts</h3><ul>${outcome.facts.map((fact) => html`<li>${fact}</li>`)}</ul>`}
    ${outcome.operations &&
    html`<h3>What was done</h3>
      <ul class="operations">${outcome.operations.map((op, i) => html`<${Operation} key=${i} op=${op} />`)}</ul>`}
    ${outcome.bank_before && html`<h3>The bank, before and after</h3><${BankChange} before=${outcome.bank_before} after=${outcome.bank_after ?? []} />`}
    ${outcome.question != null && html`<h3>Questions</h3><${Questions} outcome=${outcome} />`}
    ${outcome.retrieved && html`<h3>Memories that were found</h3><${Retrieved} outcome=${outcome} />`}
    <h3>Calls of the model</h3>
    ${r.steps.map((call, i) => html`<${Call} key=${i} call=${call} open=${i === 0} />`)}
  </section>`;
}

function BankChange({ before, after }) {
  const old = new Map(before.map((e) => [e.id, e.text]));
  const now = new Map(after.map((e) => [e.id, e.text]));
  const ids = [...new Set([...old.keys(), ...now.keys()])];
  return html`<ul class="change">
    ${ids.map((id) => {
      const kind = !old.has(id) ? "add" : !now.has(id) ? "delete" : old.get(id) === now.get(id) ? "same" : "update";
      return html`<li class=${kind} key=${id}>
        <span class="id">${id}</span>
        <span class="text">
          ${kind === "update" ? html`<${Difference} before=${old.get(id)} after=${now.get(id)} />` : kind === "delete" ? html`<del>${old.get(id)}</del>` : kind === "add" ? html`<ins>${now.get(id)}</ins>` : now.get(id)}
        </span>
      </li>`;
    })}
  </ul>`;
}

// Several questions about one decision are kept as one text each, joined by " / ".
function Questions({ outcome }) {
  const [questions, golds, answers] = ["question", "gold", "answer"].map((name) => String(outcome[name] ?? "").split(" / "));
  const apart = questions.length === golds.length && questions.length === answers.length;
  const rows = apart ? questions.map((q, i) => [q, golds[i], answers[i]]) : [[outcome.question, outcome.gold, outcome.answer]];
  return html`<table class="cards questions">
    <thead><tr><th>Question</th><th>Right answer</th><th>Answer</th></tr></thead>
    <tbody>
      ${rows.map(
        ([question, gold, answer]) => html`<tr>
          <td>${question}</td>
          <td data-label="Right answer">${String(gold ?? "–")}</td>
          <td data-label="Answer" class=${answer === gold ? "good" : "bad"}>${answer || "none"}</td>
        </tr>`,
      )}
    </tbody>
  </table>`;
}

function Retrieved({ outcome }) {
  const selected = new Set(outcome.selected);
  return html`<ul class="change">
    ${outcome.retrieved.map(
      (m) => html`<li class=${selected.has(m.id) ? "selected" : "same"} key=${m.id}>
        <span class="id">${m.id}</span>
        <span class="text">${m.text}${selected.has(m.id) && html`<span class="badge">selected</span>`}</span>
      </li>`,
    )}
  </ul>`;
}

function Call({ call, open }) {
  return html`<details class="call" open=${open}>
    <summary>
      <strong>${call.role}</strong>
      <span class="faint">${call.trainable ? "trained" : "frozen"} · weights ${call.weight_version} · ${call.prompt_tokens} + ${call.completion_tokens} tokens</span>
      ${call.finish_reason === "length" && html`<span class="badge bad">cut off</span>`}
      ${call.parsed.error && html`<span class="badge bad">${call.parsed.error}</span>`}
    </summary>
    <pre class="prompt" tabindex="0" aria-label="Prompt">${call.prompt_text}</pre>
    <pre class="completion" tabindex="0" aria-label="Completion">${call.completion_text}</pre>
  </details>`;
}
