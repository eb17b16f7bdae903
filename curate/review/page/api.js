// The server's API. The token came in the URL's fragment; it is kept for this tab, so that a reload works.

const KEY = "agentdyno-review-token";

function token() {
  const match = /(?:^#|&)token=([\w-]+)/.exec(location.hash);
  if (match) {
    sessionStorage.setItem(KEY, match[1]);
    history.replaceState(null, "", location.pathname); // out of the address bar and the history
  }
  return sessionStorage.getItem(KEY) ?? "";
}

const bearer = token();

export class Refused extends Error {}

async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...options.headers, Authorization: `Bearer ${bearer}` } });
  } catch {
    throw new Refused("the review has ended: start it again in the terminal, and open the new address");
  }
  const body = await answer.json();
  if (!answer.ok) throw new Refused(body.error);
  return body;
}

const query = (values) => new URLSearchParams(values).toString();

export const queue = () => call("/api/queue");
export const session = (id) => call(`/api/session?${query({ id })}`);
export const heads = (id, from, to) => call(`/api/heads?${query({ id, from, to })}`);
export const stretch = (id, text, start, end) => call(`/api/text?${query({ id, text, start, end })}`);
export const search = (id, q) => call(`/api/search?${query({ id, q })}`);
export const decide = (decision) =>
  call("/api/decide", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(decision),
  });
