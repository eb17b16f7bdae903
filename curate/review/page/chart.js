// Context growth and timeline, drawn as SVG.

import { duration, short, svg } from "/dom.js";

const HEIGHT = 104;
const LEFT = 44;
const BOTTOM = 16;
const TOP = 6;

// Prompt tokens by model call: the main chain as a line over what came from the cache, other chains as thin lines.
export function drawContext(node, note, session, goTo) {
  const width = node.clientWidth || 380;
  const calls = session.outline.requests.filter((one) => one.turn && one.prompt_tokens !== null);
  note.textContent = calls.some((one) => one.estimated) ? "own count" : "";
  if (!calls.length) return empty(node, "no token counts");
  const most = Math.max(...calls.map((one) => one.prompt_tokens), 1);
  const last = Math.max(...calls.map((one) => one.index), 1);
  const x = (one) => LEFT + (one.index / last) * (width - LEFT - 8);
  const y = (tokens) => HEIGHT - BOTTOM - (tokens / most) * (HEIGHT - BOTTOM - TOP);
  const root = frame(width, `context up to ${short(most)} tokens over ${calls.length} model calls`);
  for (const share of [0.5, 1]) root.append(grid(width, y(most * share), short(Math.round(most * share))));
  root.append(grid(width, y(0), "0"));
  const chains = Map.groupBy(calls, (one) => one.path);
  const main = chains.get("main") ?? [];
  const cached = main.filter((one) => one.cached_tokens !== null);
  if (cached.length > 1) {
    const points = [`${x(cached[0])},${y(0)}`, ...cached.map((one) => `${x(one)},${y(one.cached_tokens)}`), `${x(cached.at(-1))},${y(0)}`];
    root.append(svg("polygon", { class: "cached", points: points.join(" ") }, svg("title", {}, "read from the cache")));
  }
  for (const [path, own] of chains)
    root.append(
      svg("polyline", {
        class: path === "main" ? "line main" : "line other",
        points: own.map((one) => `${x(one).toFixed(1)},${y(one.prompt_tokens).toFixed(1)}`).join(" "),
      }),
    );
  for (const one of calls.length <= 400 ? calls : calls.filter((each) => each.event === "compaction" || each.error))
    root.append(
      svg(
        "circle",
        {
          class: `dot${one.error ? " bad" : one.event === "compaction" ? " compaction" : one.path === "main" ? "" : " other"}`,
          cx: x(one).toFixed(1),
          cy: y(one.prompt_tokens).toFixed(1),
          r: one.error || one.event === "compaction" ? 3.5 : 2.2,
          onclick: () => one.entry !== null && goTo(one.entry),
        },
        svg("title", {}, `#${one.index} ${one.path}: ${short(one.prompt_tokens)} tokens${one.event === "append" ? "" : `, ${one.event}`}`),
      ),
    );
  root.append(svg("text", { x: width - 8, y: HEIGHT - 3, "text-anchor": "end" }, `model call #${last}`));
  node.replaceChildren(root);
}

// Who was at work when: bars in lanes.
export function drawTimeline(node, note, session, goTo) {
  const width = node.clientWidth || 380;
  const { requests, calls } = session.outline;
  const bars = { main: [], others: [], tools: [], people: [] };
  for (const one of requests) {
    if (one.send_us === null || one.end_us === null) continue;
    const said = `#${one.index} ${one.model}, ${duration(one.end_us - one.send_us)}${one.error ? `, ${one.error.slice(0, 80)}` : ""}`;
    bars[one.path === "main" ? "main" : "others"].push([one.send_us, one.end_us, said, one.entry, one.error !== null]);
    if (one.human_us) bars.people.push([one.send_us - one.human_us, one.send_us, `a person, ${duration(one.human_us)}`, one.entry, false]);
  }
  for (const run of calls)
    if (run.start_us !== null) bars.tools.push([run.start_us, run.end_us, `${run.name}, ${duration(run.wall_us ?? run.end_us - run.start_us)}`, run.entry, run.is_error === true]);
  note.textContent = "";
  const lanes = Object.entries({ main: "model", others: "others", tools: "tools", people: "people" }).filter(([lane]) => bars[lane].length);
  if (!lanes.length) return empty(node, "the source tells no times");
  const end = Math.max(...lanes.flatMap(([lane]) => bars[lane].map((bar) => bar[1])), 1);
  const x = (us) => LEFT + (Math.max(0, us) / end) * (width - LEFT - 8);
  const root = frame(width, `timeline over ${duration(end)}`);
  const step = (HEIGHT - BOTTOM - TOP) / lanes.length;
  lanes.forEach(([lane, title], row) => {
    const top = TOP + row * step + 3;
    root.append(svg("text", { x: LEFT - 6, y: top + step / 2, "text-anchor": "end" }, title));
    root.append(svg("line", { class: "grid", x1: LEFT, x2: width - 8, y1: TOP + (row + 1) * step, y2: TOP + (row + 1) * step }));
    for (const [from, to, said, entry, bad] of merged(bars[lane], (width - LEFT) / end))
      root.append(
        svg(
          "rect",
          {
            class: `bar ${lane}${bad ? " bad" : ""}`,
            x: x(from).toFixed(2),
            y: top.toFixed(1),
            width: Math.max(1.2, x(to) - x(from)).toFixed(2),
            height: Math.max(3, step - 7).toFixed(1),
            rx: 1.5,
            onclick: () => entry !== null && goTo(entry),
          },
          svg("title", {}, said),
        ),
      );
  });
  for (const share of [0, 0.5, 1])
    root.append(
      svg(
        "text",
        { x: x(end * share), y: HEIGHT - 3, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle" },
        share ? duration(end * share) : "0",
      ),
    );
  node.replaceChildren(root);
}

// Bars that fall on one pixel become one, so that a session of many thousand calls still draws.
function merged(bars, scale) {
  const found = [];
  for (const bar of [...bars].sort((a, b) => a[0] - b[0])) {
    const last = found.at(-1);
    if (last && bars.length > 600 && (bar[0] - last[1]) * scale < 0.7 && !bar[4] && !last[4]) last[1] = Math.max(last[1], bar[1]);
    else found.push([...bar]);
  }
  return found;
}

function frame(width, label) {
  return svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label });
}

function grid(width, y, text) {
  return svg(
    "g",
    {},
    svg("line", { class: "grid", x1: LEFT, x2: width - 8, y1: y, y2: y }),
    svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, text),
  );
}

function empty(node, sentence) {
  node.replaceChildren(Object.assign(document.createElement("p"), { className: "nothing", textContent: sentence }));
}
