// What every part of the page is written with: preact, its hooks, and htm. Text that is put into a template becomes a
// text node, never markup, so what somebody remembered cannot become part of the page.
import { h, render } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

export { useEffect, useLayoutEffect, useRef, useState } from "./vendor/hooks.js";
export { render };
export const html = htm.bind(h);
