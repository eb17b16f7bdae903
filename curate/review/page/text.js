// One text, of which only stretches are here; between them stand buttons that bring more.
// Offsets count characters as the server does: code points, not the UTF-16 units of JavaScript.

import * as api from "/api.js";
import { el, number, seen } from "/dom.js";

const MORE = 40_000;
const AROUND = 1_500;

export class Text {
  constructor(session, position, about, kinds) {
    this.session = session;
    this.position = position;
    this.length = about.length;
    this.kinds = kinds;
    this.stretches = []; // in order, without overlap
    this.node = el("div", { class: `text ${about.label}` });
  }

  add(stretch) {
    let at = stretch.start;
    const pieces = stretch.pieces.map((piece) => {
      const node = piece.kind === null ? document.createTextNode(piece.text) : this.mark(piece);
      const found = { start: at, end: at + codePoints(piece.text), node };
      at = found.end;
      return found;
    });
    this.stretches.push({ start: stretch.start, end: stretch.end, pieces });
    this.stretches.sort((a, b) => a.start - b.start);
    this.draw();
  }

  mark(piece) {
    const kind = this.kinds[piece.kind];
    const same = piece.same > 1 ? `; the same ${number(piece.same)}× in this session` : "";
    const hidden = seen(piece.text);
    return el(
      "mark",
      {
        class: kind.group,
        title: `${kind.kind}: ${kind.why} (${number(kind.n)} in this session${same})`,
        tabindex: "-1",
        "data-hidden": hidden === piece.text ? null : hidden, // shown before the text, which stays as it is
      },
      document.createTextNode(piece.text),
    );
  }

  draw() {
    const nodes = [];
    for (const [start, end, stretch] of this.parts()) {
      if (stretch) nodes.push(...stretch.pieces.map((piece) => piece.node));
      else nodes.push(this.more(start, end));
    }
    this.node.replaceChildren(...nodes);
  }

  // What is here and what is missing, in order, as [start, end, stretch or null].
  parts() {
    const parts = [];
    let at = 0;
    for (const stretch of this.stretches) {
      if (stretch.start > at) parts.push([at, stretch.start, null]);
      parts.push([stretch.start, stretch.end, stretch]);
      at = stretch.end;
    }
    if (at < this.length) parts.push([at, this.length, null]);
    return parts;
  }

  more(start, end) {
    const size = end - start;
    const said =
      size > MORE ? `show 40 kB more (of ${number(Math.ceil(size / 1000))} kB not shown)` : `show the other ${number(size)} characters`;
    return el(
      "button",
      {
        type: "button",
        class: "more",
        onclick: async () => this.add(await api.stretch(this.session, this.position, start, Math.min(end, start + MORE))),
      },
      said,
    );
  }

  // Make the characters [start, end) and some around them be here.
  async ensure(start, end) {
    const [first, last] = [Math.max(0, start - AROUND), Math.min(this.length, end + AROUND)];
    for (const [from, to, stretch] of this.parts()) {
      if (!stretch && from < last && to > first)
        this.add(await api.stretch(this.session, this.position, Math.max(from, first), Math.min(to, last)));
    }
  }

  // The element of the finding that starts here.
  markAt(start) {
    for (const stretch of this.stretches)
      if (stretch.start <= start && start < stretch.end)
        return stretch.pieces.find((piece) => piece.start === start)?.node ?? null;
    return null;
  }

  // A DOM range over characters that are here.
  range(start, end) {
    const range = document.createRange();
    range.setStart(...this.point(start));
    range.setEnd(...this.point(end));
    return range;
  }

  point(offset) {
    const pieces = this.stretches.flatMap((stretch) => stretch.pieces);
    const piece = pieces.find((one) => one.start <= offset && offset <= one.end) ?? pieces.at(-1);
    const node = piece.node.nodeType === Node.TEXT_NODE ? piece.node : piece.node.firstChild;
    return [node, units(node.data, offset - piece.start)];
  }
}

function codePoints(text) {
  let n = text.length;
  for (let i = 0; i < text.length - 1; i += 1) {
    const unit = text.charCodeAt(i);
    if (unit >= 0xd800 && unit < 0xdc00) {
      n -= 1;
      i += 1;
    }
  }
  return n;
}

function units(text, points) {
  let at = 0;
  for (let seen = 0; seen < points && at < text.length; seen += 1) at += text.codePointAt(at) > 0xffff ? 2 : 1;
  return at;
}
