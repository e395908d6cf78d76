// Talk to a bank: the answer as it is written, the memories that it rests on, and what the message did to the bank.
import { html, useEffect, useRef, useState } from "./html.js";
import { events, of, scopeOf } from "./api.js";
import { undo } from "./entries.js";
import { Held } from "./held.js";
import { Operation, Score } from "./parts.js";
import { href } from "./route.js";

const talks = new Map(); // bank -> turns, kept while the page is open; what is under way goes on in other views

export function Chat({ bank, may, changed }) {
  const whose = Object.values(bank).join("\n");
  if (!talks.has(whose)) talks.set(whose, []);
  const turns = talks.get(whose);
  const busy = turns.at(-1) && turns.at(-1).state !== "done";
  const [tick, redraw] = useState(0);
  const [text, set] = useState("");
  const [keep, remember] = useState(may);
  const end = useRef();
  useEffect(() => end.current.scrollIntoView({ block: "nearest" }), [tick]);

  const send = async (event) => {
    event.preventDefault();
    const said = text.trim();
    if (!said || busy) return;
    const turn = { said, answer: "", state: "answering", keep };
    const update = (changes) => {
      Object.assign(turn, changes);
      redraw((n) => n + 1);
    };
    turns.push(turn);
    set("");
    try {
      await answer(bank, turn, update);
      if (keep) {
        update({ state: "remembering" });
        // a source of its own, so that this one message can be taken back
        const [a, b] = crypto.getRandomValues(new Uint32Array(2));
        const source = `chat-${a.toString(36)}${b.toString(36)}`;
        const { decisions } = await of(bank).post("/memories", {}, { text: said, source });
        update({ source, decisions });
        changed();
      }
      update({ state: "done" });
    } catch (error) {
      update({ state: "done", problem: error.message, replies: error.details?.map?.((d) => d.reply).filter(Boolean) });
    }
  };

  const takeBack = async (turn) => {
    turn.undone = await undo(bank, turn.source, changed);
    redraw((n) => n + 1);
  };

  return html`<section class="chat" aria-label="Chat">
    <div class="turns" role="log" aria-label="What was said" aria-live="polite">
      ${!turns.length &&
      html`<div class="empty">
        <strong>Ask it something, or tell it something</strong>
        <p>You see which memories an answer rests on, and what the manager makes of what you say.</p>
      </div>`}
      ${turns.map((turn, i) => html`<${Turn} key=${i} ...${{ turn, bank, may, undo: () => takeBack(turn) }} />`)}
      <div class="end" ref=${end}></div>
    </div>
    <form class="composer" onSubmit=${send}>
      <label class="wide">
        <span class="hidden">Message</span>
        <textarea rows="1" required autofocus placeholder="Where does Mara live?" value=${text} onInput=${(e) => set(e.target.value)}
          onKeyDown=${(e) => e.key === "Enter" && !e.shiftKey && !e.isComposing && send(e)}></textarea>
      </label>
      <button class="primary" disabled=${busy || !text.trim()}>Send</button>
      ${may &&
      html`<label class="choice">
        <input type="checkbox" checked=${keep} onChange=${(e) => remember(e.target.checked)} />
        Let the manager remember what I say
      </label>`}
    </form>
  </section>`;
}

async function answer(bank, turn, update) {
  const body = {
    model: "memr1",
    messages: [{ role: "user", content: turn.said }],
    stream: true,
    memory: { ...scopeOf(bank), bank: bank.name },
  };
  for await (const chunk of events("/v1/chat/completions", body)) {
    const choice = chunk.choices[0];
    if (choice?.delta.content) update({ answer: turn.answer + choice.delta.content });
    if (chunk.memory) update({ memory: chunk.memory });
  }
}

function Turn({ turn, bank, may, undo }) {
  const { memory, decisions, state } = turn;
  const operations = decisions?.flatMap((d) => d.operations);
  const selected = new Set(memory?.selected.map((m) => m.id));
  const best = memory?.retrieved[0]?.score;
  const entry = (id) => href("entries", { ...bank, id, deleted: "true" });
  return html`<article class="turn">
    <p class="said">${turn.said}</p>
    <div class="reply">
      <p class="answer ${state === "answering" ? "writing" : ""}">${turn.answer || (state === "answering" ? "" : "–")}</p>
      ${memory?.error && html`<p class="faint">The reply could not be read as an answer, and is shown as it is.</p>`}
      ${memory &&
      html`<div class="basis">
        <h3>${selected.size ? `Rests on ${selected.size} of ${memory.retrieved.length} memories` : memory.retrieved.length ? "None of these was chosen" : "Nothing was found in memory"}</h3>
        <ul>
          ${memory.retrieved.map(
            (m) => html`<li class=${selected.has(m.id) ? "selected" : ""} key=${m.id}>
              <a href=${entry(m.id)}><span class="id">${m.id}</span></a>
              <span class="text">${m.text}${selected.has(m.id) && html`<span class="hidden"> (selected)</span>`}</span>
              <${Score} value=${m.score} best=${best} />
            </li>`,
          )}
        </ul>
      </div>`}
      ${state === "remembering" && html`<p class="faint writing">The manager decides</p>`}
      ${operations &&
      html`<div class="did">
        <h3>${operations.length ? "In memory" : "Nothing was remembered"}</h3>
        <${Held} decisions=${decisions} />
        <ul class="operations ${turn.undone ? "undone" : ""}">
          ${operations.map((op, i) => html`<${Operation} key=${i} op=${op} link=${entry} />`)}
        </ul>
        ${turn.undone
          ? html`<p class="faint">Undone.</p>`
          : may && operations.some((op) => op.changed) && html`<button class="small" onClick=${undo}>Undo</button>`}
      </div>`}
      ${turn.problem &&
      html`<div class="did" role="alert">
        <h3>Not in memory</h3>
        <p class="bad">${turn.problem}</p>
        ${turn.replies?.map((reply) => html`<pre>${reply}</pre>`)}
      </div>`}
    </div>
  </article>`;
}
