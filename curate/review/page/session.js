// The session being read: chains, entries, their texts as they come in sight; findings and search.

import * as api from "/api.js";
import { $, duration, el, number, short } from "/dom.js";
import { Text } from "/text.js";

const BLOCK = 20; // entries whose texts are asked for together

export class Session {
  constructor(outline) {
    this.outline = outline;
    this.id = outline.session_id;
    this.texts = outline.texts.map((about, position) => new Text(this.id, position, about, outline.kinds));
    this.entryOf = new Map(outline.entries.flatMap((entry, i) => entry.texts.map((text) => [text, i])));
    this.requestOf = new Map(outline.requests.filter((one) => one.entry !== null).map((one) => [one.entry, one]));
    this.blocks = new Map(); // number of a block → promise of its texts
    this.stepped = new Set(outline.kinds.flatMap((kind, i) => (kind.group === "identity" ? [] : [i])));
    this.at = -1; // position among the findings that are stepped through
    this.hits = [];
    this.hit = -1;
    this.sight = new IntersectionObserver(
      (seen) => seen.forEach((one) => one.isIntersecting && this.load(Number(one.target.dataset.entry))),
      { root: $("reading"), rootMargin: "1200px 0px" },
    );
  }

  close() {
    this.sight.disconnect();
    CSS.highlights?.clear();
  }

  draw() {
    this.nodes = this.outline.entries.map((entry, position) => this.entry(entry, position));
    const chains = this.outline.chains.map((chain) =>
      el(
        "section",
        { class: `chain depth-${Math.min(chain.depth, 3)}`, "aria-label": chain.title },
        el("h4", {}, chain.title),
        this.nodes.slice(chain.start, chain.stop),
      ),
    );
    $("reading").replaceChildren(...(chains.length ? chains : [el("p", { id: "empty" }, "This session holds nothing.")]));
    $("reading").scrollTop = 0;
    this.nodes.forEach((node) => this.sight.observe(node));
  }

  entry(entry, position) {
    const bodies = [];
    let call = 0;
    for (const text of entry.texts) {
      const { label } = this.outline.texts[text];
      if (label === "arguments") bodies.push(el("p", { class: "call" }, "calls ", el("b", {}, entry.tools[call++] ?? "?")));
      if (label === "error") bodies.push(el("p", { class: "label" }, "the call ended in an error"));
      if (label === "reasoning") bodies.push(el("p", { class: "label" }, "reasoning"));
      if (label === "parameters") bodies.push(el("p", { class: "label" }, "parameters"));
      bodies.push(this.texts[text].node);
    }
    const run = entry.call === null ? null : this.outline.calls[entry.call];
    const role = entry.role === "tool" ? `result${run ? ` of ${run.name}` : ""}` : entry.role;
    return el(
      "article",
      { class: `entry ${entry.kind} role-${ROLES.has(entry.role) ? entry.role : "other"}${entry.is_error ? " error" : ""}`, "data-entry": position },
      el(
        "header",
        {},
        el("b", {}, entry.kind === "tool" ? entry.name : entry.name ? `${role} (${entry.name})` : role),
        el("span", { class: "numbers" }, this.numbers(entry, position, run)),
      ),
      bodies,
      entry.truncated_bytes ? el("p", { class: "label" }, `${number(entry.truncated_bytes)} bytes cut out by the recipe`) : null,
      entry.omitted_bytes ? el("p", { class: "label" }, `${number(entry.omitted_bytes)} bytes that text cannot hold left out`) : null,
    );
  }

  numbers(entry, position, run) {
    const said = [];
    const request = this.requestOf.get(position);
    if (request) {
      said.push(`#${request.index}`, request.model);
      if (request.prompt_tokens !== null) said.push(`${short(request.prompt_tokens)} in${request.estimated ? " (own count)" : ""}`);
      if (request.cached_tokens) said.push(`${short(request.cached_tokens)} cached`);
      if (request.completion_tokens !== null) said.push(`${short(request.completion_tokens)} out`);
      if (request.send_us !== null && request.end_us !== null) said.push(duration(request.end_us - request.send_us));
    } else if (run) {
      if (run.wall_us !== null) said.push(duration(run.wall_us));
      if (run.exit_code) said.push(`exit ${run.exit_code}`);
      if (run.is_error || entry.is_error) said.push("failed");
    }
    if (entry.tokens !== null && !request) said.push(`${number(entry.tokens)} tokens`);
    return said.join(" · ");
  }

  load(position) {
    const block = Math.floor(position / BLOCK);
    if (!this.blocks.has(block)) {
      const promise = api.heads(this.id, block * BLOCK, (block + 1) * BLOCK).then((heads) => {
        for (const stretch of heads) this.texts[stretch.text].add(stretch);
      });
      this.blocks.set(block, promise);
      promise.catch(() => this.blocks.delete(block));
    }
    return this.blocks.get(block);
  }

  // Bring characters of a text into sight; gives the text.
  async show(position, start, end) {
    const entry = this.entryOf.get(position);
    await this.load(entry);
    const text = this.texts[position];
    await text.ensure(start, end);
    return text;
  }

  get findings() {
    return this.outline.findings.filter((one) => this.stepped.has(one[3]));
  }

  async stepFinding(by) {
    const findings = this.findings;
    if (!findings.length) return "no findings";
    this.at = (this.at + by + findings.length) % findings.length;
    const [position, start, end, kind] = findings[this.at];
    const text = await this.show(position, start, end);
    const mark = text.markAt(start);
    document.querySelectorAll("mark.now").forEach((one) => one.classList.remove("now"));
    if (mark) {
      mark.classList.add("now");
      mark.scrollIntoView({ block: "center" });
      mark.focus({ preventScroll: true });
    }
    return `${number(this.at + 1)} of ${number(findings.length)}: ${this.outline.kinds[kind].kind}`;
  }

  async search(words) {
    const found = words ? await api.search(this.id, words) : { hits: [], n: 0 };
    this.hits = found.hits;
    this.found = found.n;
    this.hit = -1;
    CSS.highlights?.clear();
    return this.stepHit(1);
  }

  async stepHit(by) {
    if (!this.hits.length) return "not found";
    this.hit = (this.hit + by + this.hits.length) % this.hits.length;
    const [position, start, end] = this.hits[this.hit];
    const text = await this.show(position, start, end);
    const range = text.range(start, end);
    CSS.highlights?.set("hit", new Highlight(range));
    range.startContainer.parentElement.scrollIntoView({ block: "center" });
    const box = range.getBoundingClientRect();
    const reading = $("reading").getBoundingClientRect();
    $("reading").scrollTop += box.top - reading.top - reading.height / 3;
    return `${number(this.hit + 1)} of ${number(this.found)}`;
  }

  async goTo(position) {
    await this.load(position);
    this.nodes[position].scrollIntoView({ block: "start" });
    this.nodes[position].classList.add("flash");
    setTimeout(() => this.nodes[position].classList.remove("flash"), 1200);
  }
}

const ROLES = new Set(["system", "developer", "user", "assistant", "tool"]);
