// The list of sessions. Only the rows in sight are elements, so that ten thousand scroll like ten.

import { $, el, number, short } from "/dom.js";

const ROW = 66; // px, as in style.css
const SPARE = 8;
export const STATES = { undecided: "to decide", stale: "changed since decided", approved: "approved", dropped: "dropped" };

export class Queue {
  constructor(cases, onPick) {
    this.cases = cases;
    this.byId = new Map(cases.map((one) => [one.session_id, one]));
    this.onPick = onPick;
    this.current = null;
    this.list = $("queue");
    this.list.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(this.list);
    $("filter-text").addEventListener("input", () => this.filter());
    $("filter-state").addEventListener("change", () => this.filter());
    this.filter();
  }

  filter() {
    const words = $("filter-text").value.trim().toLowerCase();
    const state = $("filter-state").value;
    this.shown = this.cases.filter(
      (one) =>
        (!state || (state === "open" ? isOpen(one) : one.state === state) || one.session_id === this.current) &&
        (!words ||
          [one.session_id, one.harness, one.contributor ?? "", ...one.models, ...one.reasons].some((text) =>
            text.toLowerCase().includes(words),
          )),
    );
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - SPARE);
    const last = Math.min(this.shown.length, Math.ceil((this.list.scrollTop + this.list.clientHeight) / ROW) + SPARE);
    const rows = $("rows");
    rows.style.height = `${this.shown.length * ROW}px`;
    rows.replaceChildren(...this.shown.slice(first, last).map((one, offset) => this.row(one, first + offset)));
    this.list.setAttribute("aria-activedescendant", this.current === null ? "" : `row-${this.current}`);
  }

  row(one, position) {
    const picked = one.session_id === this.current;
    const facts = [one.requests === null ? null : `${number(one.requests)} calls`];
    if (one.context_tokens !== null) facts.push(`${short(one.context_tokens)}`);
    const row = el(
      "div",
      {
        id: `row-${one.session_id}`,
        class: `row ${one.state}${picked ? " picked" : ""}`,
        role: "option",
        "aria-selected": picked ? "true" : "false",
        "aria-posinset": position + 1,
        "aria-setsize": this.shown.length,
        onclick: () => this.pick(one.session_id),
      },
      el("span", { class: `score ${one.level}`, title: `risk ${one.score}, ${one.level}` }, String(one.score)),
      el("span", { class: "id" }, one.session_id),
      el("span", { class: `state ${one.state}` }, STATES[one.state]),
      el("span", { class: "what" }, [one.harness, ...facts].filter(Boolean).join(" · ")),
      el("span", { class: "why" }, one.reasons[0] ?? ""),
    );
    row.style.top = `${position * ROW}px`;
    return row;
  }

  pick(id) {
    this.current = id;
    const position = this.shown.findIndex((one) => one.session_id === id);
    if (position >= 0) {
      const top = position * ROW;
      if (top < this.list.scrollTop) this.list.scrollTop = top;
      else if (top + ROW > this.list.scrollTop + this.list.clientHeight)
        this.list.scrollTop = top + ROW - this.list.clientHeight;
    }
    this.draw();
    this.onPick(this.byId.get(id));
  }

  step(by) {
    if (!this.shown.length) return;
    const position = this.shown.findIndex((one) => one.session_id === this.current);
    const next = position < 0 ? 0 : Math.min(this.shown.length - 1, Math.max(0, position + by));
    if (this.shown[next].session_id !== this.current) this.pick(this.shown[next].session_id);
  }

  // The next session to decide after this one, else the first, else null.
  nextOpen() {
    const position = this.shown.findIndex((one) => one.session_id === this.current);
    const order = [...this.shown.slice(position + 1), ...this.shown.slice(0, Math.max(0, position))];
    return order.find(isOpen)?.session_id ?? this.cases.find(isOpen)?.session_id ?? null;
  }

  update(id, standing) {
    Object.assign(this.byId.get(id), standing);
    this.filter();
  }
}

export const isOpen = (one) => one.state === "undecided" || one.state === "stale";
