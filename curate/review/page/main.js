// The review page: what the parts do to each other, and the keys.

import * as api from "/api.js";
import { drawFacts, drawLegend } from "/aside.js";
import { drawContext, drawTimeline } from "/chart.js";
import { $, el, number } from "/dom.js";
import { isOpen, Queue, STATES } from "/queue.js";
import { Session } from "/session.js";

let about = null;
let queue = null;
let session = null; // the one being read
let wanted = null; // id of the session that was picked last, maybe not loaded yet
const made = []; // ids of sessions decided in this tab, the last at the end

let silence = 0;
const say = (sentence, fault = false) => {
  $("said").textContent = sentence;
  $("said").classList.toggle("fault", fault);
  clearTimeout(silence);
  if (!fault) silence = setTimeout(() => say(""), 5000);
};

// Every action of the page ends here, so that a refusal is read and not lost.
const act = (work) => async (given) => {
  given?.preventDefault?.();
  if ($("said").classList.contains("fault")) say("");
  try {
    await work(given);
  } catch (fault) {
    if (!(fault instanceof api.Refused)) console.error(fault);
    say(fault.message, true);
  }
};

async function start() {
  about = await api.queue();
  document.title = `Review · ${about.dataset}`;
  $("dataset").textContent = about.dataset;
  $("who").textContent = about.contributor ? `contributor ${about.contributor}` : `reviewer ${about.reviewer}`;
  const { sample } = about;
  $("scope").textContent = sample
    ? `sample: ${number(sample.high_risk)} of high risk, ${number(sample.drawn)} drawn of ${number(sample.rest)} others`
    : about.contributor
      ? "your own sessions"
      : "";
  $("drop-reasons").replaceChildren(
    ...about.reasons.map((reason, i) =>
      el("li", {}, el("button", { type: "button", onclick: act(() => drop(reason)) }, el("kbd", {}, String(i + 1)), ` ${reason}`)),
    ),
  );
  drawTally(about.tally);
  queue = new Queue(about.cases, act((picked) => open(picked)));
  const first = about.cases.find(isOpen) ?? about.cases[0];
  if (first) queue.pick(first.session_id);
}

function drawTally(tally) {
  const [approved, dropped] = $("progress").children;
  approved.style.width = `${(100 * tally.approved) / Math.max(1, tally.sessions)}%`;
  dropped.style.width = `${(100 * tally.dropped) / Math.max(1, tally.sessions)}%`;
  const said = `${number(tally.approved)} approved, ${number(tally.dropped)} dropped, ${number(tally.undecided)} to decide`;
  $("tally").textContent = said;
  $("progress").setAttribute("aria-label", said);
}

async function open(picked) {
  wanted = picked.session_id;
  drawHead(picked);
  if (session?.id === wanted) return;
  const outline = await api.session(picked.session_id);
  if (wanted !== picked.session_id) return; // another was picked meanwhile
  session?.close();
  session = new Session(outline);
  $("finding-at").textContent = session.findings.length ? `${number(session.findings.length)} to step through` : "none";
  $("search-at").textContent = "";
  drawFacts(outline.facts);
  drawLegend(session);
  drawCharts();
  session.draw();
  document.body.dataset.session = session.id; // which session the page shows whole
}

function drawHead(picked) {
  $("head").hidden = false;
  $("session-id").textContent = picked.session_id;
  $("badge").className = `state ${picked.state}`;
  $("badge").textContent = STATES[picked.state];
  $("reasons").replaceChildren(
    el("li", { class: `score ${picked.level}` }, `risk ${picked.score}, ${picked.level}`),
    ...picked.reasons.map((reason) => el("li", {}, reason)),
  );
  const { decision } = picked;
  $("decided").textContent = decision
    ? `${picked.state === "stale" ? "before the rows changed: " : ""}${decision.verdict === "drop" ? "dropped" : "approved"} by ${
        decision.contributor ? "the contributor" : decision.reviewer
      } on ${decision.at}${decision.reason ? `: ${decision.reason}` : ""}`
    : "";
}

function drawCharts() {
  if (!session) return;
  const goTo = act((entry) => session.goTo(entry));
  drawContext($("context"), $("context-note"), session, goTo);
  drawTimeline($("timeline"), $("timeline-note"), session, goTo);
}

async function decide(id, verdict, reason = null) {
  const one = queue.byId.get(id);
  const told = await api.decide({ session_id: id, digest: one.digest, verdict, reason });
  queue.update(id, { state: told.state, decision: told.decision });
  drawTally(told.tally);
  if (id === wanted) drawHead(one);
  return one;
}

async function settle(verdict, reason = null) {
  const id = shown();
  await decide(id, verdict, reason);
  made.push(id);
  const next = queue.nextOpen();
  const said = verdict === "approve" ? "approved" : "dropped";
  if (next !== null && next !== id) {
    queue.pick(next);
    say(`${id} ${said}`);
  } else if (next === null) say(`${id} ${said}. Nothing is left to decide: end by Ctrl-C, then run curate approve.`);
  else say(`${id} ${said}`);
}

// Only what stands there whole is decided on: a key that comes too early does nothing.
function shown() {
  if (!session || session.id !== wanted) throw new api.Refused("the session is not loaded yet");
  return session.id;
}

async function drop(reason) {
  $("drop-dialog").close();
  $("drop-text").value = "";
  await settle("drop", reason);
}

async function undo() {
  const id = made.pop() ?? shown();
  if (isOpen(queue.byId.get(id)) && queue.byId.get(id).state !== "stale") return say("nothing to undo");
  const one = await decide(id, "undo");
  if (id !== wanted) queue.pick(id);
  say(isOpen(one) ? `${id} is to decide again` : `${id}: ${one.decision.contributor ? "the contributor's" : "the reviewer's"} decision stands`);
}

function openDrop() {
  shown();
  $("drop-dialog").showModal();
}

const stepFinding = (by) => act(async () => {
  $("finding-at").textContent = await session.stepFinding(by);
});

const KEYS = {
  j: () => queue.step(1),
  k: () => queue.step(-1),
  ArrowDown: () => queue.step(1),
  ArrowUp: () => queue.step(-1),
  a: act(() => settle("approve")),
  d: act(openDrop),
  u: act(undo),
  n: stepFinding(1),
  N: stepFinding(-1),
  "/": () => $("search-text").focus(),
  "?": () => $("help-dialog").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || !queue) return;
  if ($("help-dialog").open) return;
  if ($("drop-dialog").open) {
    const reason = event.target === $("drop-text") ? undefined : about.reasons[Number(event.key) - 1];
    if (reason) act(() => drop(reason))(event);
    return;
  }
  if (event.target.matches?.("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key.startsWith("Arrow") && event.target !== $("queue")) return;
  const work = Object.hasOwn(KEYS, event.key) ? KEYS[event.key] : null;
  if (work && !event.repeat | "jknN".includes(event.key)) {
    event.preventDefault();
    work(event);
  }
});

$("approve").addEventListener("click", KEYS.a);
$("drop").addEventListener("click", KEYS.d);
$("undo").addEventListener("click", KEYS.u);
$("next-finding").addEventListener("click", KEYS.n);
$("help-button").addEventListener("click", KEYS["?"]);
$("drop-cancel").addEventListener("click", () => $("drop-dialog").close());
$("drop-dialog").addEventListener("submit", act(async () => {
  const words = $("drop-text").value.trim();
  if (words) await drop(words);
  else $("drop-text").focus();
}));

let asked = "";
$("search").addEventListener("submit", act(async () => {
  const words = $("search-text").value;
  $("search-at").textContent = await (words === asked && session.hits.length ? session.stepHit(1) : session.search(words));
  asked = words;
}));

new ResizeObserver(() => drawCharts()).observe($("charts"));
act(start)();
