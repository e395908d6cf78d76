// A curve over the steps of a run, in SVG: values faint, their running mean strong, stages as bands.
import { html, useLayoutEffect, useRef, useState } from "./html.js";
import { number } from "./format.js";

const HEIGHT = 220;
const EDGE = { left: 52, right: 12, top: 22, bottom: 24 };

// steps, values: of equal length, null where there is none. marked: a step; choose: called with a step that was clicked.
export function Chart({ name, steps, values, stages, marked, choose }) {
  const ref = useRef();
  const [width, setWidth] = useState(640);
  const [over, setOver] = useState();
  useLayoutEffect(() => {
    const seen = new ResizeObserver(([entry]) => setWidth(entry.contentRect.width));
    seen.observe(ref.current);
    return () => seen.disconnect();
  }, []);

  const points = steps.map((step, i) => [step, values[i]]).filter(([, value]) => value != null);
  if (!points.length) return html`<div class="chart" ref=${ref}><p class="faint">No step has ${name}.</p></div>`;
  const [low, high, ticks] = scale(points.map(([, value]) => value));
  const [first, last] = [points[0][0], Math.max(points.at(-1)[0], points[0][0] + 1)];
  const x = (step) => EDGE.left + ((step - first) / (last - first)) * (width - EDGE.left - EDGE.right);
  const y = (value) => EDGE.top + ((high - value) / (high - low)) * (HEIGHT - EDGE.top - EDGE.bottom);
  const line = (all) => all.map(([step, value], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const nearest = (event) => {
    const at = event.clientX - ref.current.getBoundingClientRect().left;
    return points.reduce((a, b) => (Math.abs(x(b[0]) - at) < Math.abs(x(a[0]) - at) ? b : a));
  };
  const means = stages.map((s) => runningMean(points.filter(([step]) => s.first <= step && step <= s.last)));
  const bands = stages
    .map((s) => ({ ...s, from: Math.max(first, s.first - 0.5), to: Math.min(last, s.last + 0.5) }))
    .filter((s) => s.from < s.to);
  const shown = over ?? points.find(([step]) => step === marked);
  return html`<div class="chart" ref=${ref}>
    <svg width=${width} height=${HEIGHT} role="img"
      aria-label="${name}: ${points.length} steps from ${number(points[0][1])} to ${number(points.at(-1)[1])}"
      onPointerMove=${(e) => setOver(nearest(e))} onPointerLeave=${() => setOver()} onClick=${(e) => choose(nearest(e)[0])}>
      ${bands.map((s, i) => {
        const from = x(s.from);
        const wide = x(s.to) - from;
        return html`<g>
          <rect class="band ${i % 2 ? "odd" : ""}" x=${from} y=${EDGE.top} width=${wide} height=${HEIGHT - EDGE.top - EDGE.bottom} />
          ${wide > 6.5 * s.stage.length && html`<text class="stage" x=${from + 4} y="14">${s.stage}</text>`}
        </g>`;
      })}
      ${ticks.map(
        (value) => html`<g class="tick">
          <line x1=${EDGE.left} x2=${width - EDGE.right} y1=${y(value)} y2=${y(value)} />
          <text x=${EDGE.left - 8} y=${y(value) + 4} text-anchor="end">${number(value)}</text>
        </g>`,
      )}
      <text class="axis" x=${EDGE.left} y=${HEIGHT - 6}>step ${first}</text>
      <text class="axis" x=${width - EDGE.right} y=${HEIGHT - 6} text-anchor="end">${points.at(-1)[0]}</text>
      <path class="raw" d=${line(points)} />
      ${means.map((mean) => mean.length > 1 && html`<path class="mean" d=${line(mean)} />`)}
      ${shown &&
      html`<g class="here">
        <line x1=${x(shown[0])} x2=${x(shown[0])} y1=${EDGE.top} y2=${HEIGHT - EDGE.bottom} />
        <circle cx=${x(shown[0])} cy=${y(shown[1])} r="4" />
      </g>`}
    </svg>
    <p class="reading" aria-live="off">${shown ? html`step ${shown[0]}: <strong>${number(shown[1])}</strong>` : " "}</p>
  </div>`;
}

function runningMean(points, window = 9) {
  const reach = (window - 1) / 2;
  return points.map(([step], i) => {
    const near = points.slice(Math.max(0, i - reach), i + reach + 1);
    return [step, near.reduce((sum, [, value]) => sum + value, 0) / near.length];
  });
}

// Bounds with a round number of round steps between them.
function scale(values) {
  let low = values.reduce((a, b) => Math.min(a, b));
  let high = values.reduce((a, b) => Math.max(a, b));
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const from = Math.floor(low / step);
  const to = Math.ceil(high / step);
  return [from * step, to * step, Array.from({ length: to - from + 1 }, (_, i) => Number(((from + i) * step).toPrecision(12)))];
}
