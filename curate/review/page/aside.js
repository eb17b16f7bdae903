// Facts and the legend of findings.

import { $, el, number } from "/dom.js";

const GROUPS = {
  leftover: "suspicious, still there",
  secret: "secrets taken out",
  identity: "names replaced",
};

export function drawFacts(facts) {
  $("facts").replaceChildren(
    ...facts.flatMap((fact) => [el("dt", {}, fact.name), el("dd", { class: fact.warn ? "warn" : null }, fact.value)]),
  );
}

export function drawLegend(session) {
  const { kinds, more_findings: more } = session.outline;
  const groups = Object.entries(GROUPS).map(([group, title]) => {
    const own = kinds.map((kind, position) => [kind, position]).filter(([kind]) => kind.group === group);
    if (!own.length) return null;
    const total = own.reduce((sum, [kind]) => sum + kind.n, 0);
    return el(
      "div",
      {},
      el("p", {}, el("mark", { class: group }, title), ` ${number(total)}`),
      el("ul", {}, own.map(([kind, position]) => line(session, kind, position))),
    );
  });
  const shown = groups.filter(Boolean);
  if (!shown.length) shown.push(el("p", {}, "Nothing was taken out, and nothing looks suspicious. That proves nothing."));
  if (more) shown.push(el("p", {}, `${number(more)} more findings are highlighted but not stepped through.`));
  $("legend").replaceChildren(...shown);
}

function line(session, kind, position) {
  const box = el("input", {
    type: "checkbox",
    onchange: () => {
      if (box.checked) session.stepped.add(position);
      else session.stepped.delete(position);
      session.at = -1;
    },
  });
  box.checked = session.stepped.has(position);
  return el("li", { title: `${kind.why}; tick to step through` }, el("label", {}, box, ` ${kind.kind} `, el("i", {}, number(kind.n))));
}
