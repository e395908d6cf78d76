// How things are put into words: times, numbers, scopes, what changed between two texts.

const UNITS = [
  ["year", 31536000],
  ["month", 2592000],
  ["week", 604800],
  ["day", 86400],
  ["hour", 3600],
  ["minute", 60],
];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const full = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const day = new Intl.DateTimeFormat("en-GB", { weekday: "long", day: "numeric", month: "long", year: "numeric" });

// A moment as the service writes it; without a zone it is UTC, as there.
export function moment(text) {
  const zoned = !text.includes("T") || /(Z|[+-]\d\d:?\d\d)$/.test(text);
  const date = new Date(zoned ? text : `${text}Z`);
  return Number.isNaN(date.getTime()) ? null : date;
}

export function ago(date, now = Date.now()) {
  const seconds = (date.getTime() - now) / 1000;
  for (const [unit, length] of UNITS)
    if (Math.abs(seconds) >= length) return relative.format(Math.trunc(seconds / length), unit);
  return "just now";
}

export const exactly = (date) => full.format(date);
export const dayOf = (date) => day.format(date);

// What <input type="datetime-local"> takes: the same moment on this machine's clock.
export function localInput(date) {
  const shifted = new Date(date.getTime() - date.getTimezoneOffset() * 60000);
  return shifted.toISOString().slice(0, 19);
}

export function number(value, digits = 4) {
  if (value == null) return "–";
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(digits)));
}

export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

// [kind, name] of each part of a scope that is set.
export function scopeParts(bank) {
  return ["user", "agent", "run"].filter((kind) => bank[`${kind}_id`]).map((kind) => [kind, bank[`${kind}_id`]]);
}

export const sameBank = (a, b) => ["name", "user_id", "agent_id", "run_id"].every((k) => (a[k] ?? "") === (b[k] ?? ""));

// The words of two texts as [kind, text], kind being same, out or in: a longest common subsequence of words.
// Texts too long for that are shown whole.
export function difference(before, after) {
  const a = before.split(/(\s+)/);
  const b = after.split(/(\s+)/);
  if (a.length * b.length > 4e6) return [["out", before], ["in", after]];
  const common = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      common[i][j] = a[i] === b[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
  const parts = [];
  const put = (kind, text) => {
    if (parts.at(-1)?.[0] === kind) parts.at(-1)[1] += text;
    else parts.push([kind, text]);
  };
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      put("same", a[i++]);
      j++;
    } else if (j === b.length || (i < a.length && common[i + 1][j] >= common[i][j + 1])) put("out", a[i++]);
    else put("in", b[j++]);
  }
  return parts;
}
