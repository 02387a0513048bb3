// The service's API as the page needs it: one request per view, the API key, and refusals in words.

const K = 24; // whole rows in 2, 3, 4 and 6 columns
const PICTURE_ATTEMPTS = 4; // when the service is busy: a page of pictures is many requests at once

let key = storedKey();

/** An answer that is none: `status` 0 when the service was not reached, below 0 for what went wrong in the page. */
export class Problem extends Error {
  constructor(status, error = {}, wait = "") {
    super(error?.message || "");
    Object.assign(this, { status, code: error?.code || "", param: error?.param || "", wait });
  }
}

/** Hits for a search or for similar items; the index itself when there is nothing to search for. */
export async function ask({ q, partition, similar }, picture, signal) {
  const scope = { k: K, with_fields: ["sids"], ...(partition && { partition }) };
  if (similar) return call("v1/similar", signal, { item_ids: [similar], ...scope });
  if (!q && !picture) return call("v1/index", signal);
  const image = picture && (await dataUrl(picture));
  return call("v1/search", signal, { ...(q && { query: q }), ...(image && { image }), ...scope });
}

export function itemOf(id, signal) {
  return call(`v1/items/${encodeURIComponent(id)}`, signal);
}

/** A blob: URL of an item's picture, null when it has none. An <img> could neither send a key nor wait its turn. */
export async function pictureUrl(id, signal) {
  for (let attempt = 1; ; attempt += 1) {
    const answer = await fetch(`v1/items/${encodeURIComponent(id)}/image`, { signal, headers: authorization() });
    if (answer.ok) return URL.createObjectURL(await answer.blob());
    if (![429, 503].includes(answer.status) || attempt === PICTURE_ATTEMPTS) return null;
    await new Promise((resolve) => setTimeout(resolve, 1000 * (Number(answer.headers.get("Retry-After")) || 1)));
  }
}

async function call(path, signal, body) {
  const json = { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  const options = { signal, ...(body && json), headers: { ...(body && json.headers), ...authorization() } };
  const answer = await fetch(path, options).catch((error) => {
    throw signal.aborted ? error : new Problem(0);
  });
  const value = await answer.json().catch(() => null); // a proxy's error page, or a connection that broke
  if (answer.ok && value) return value;
  throw new Problem(answer.status, value?.error, answer.headers.get("Retry-After") ?? "");
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Problem(-1));
    reader.readAsDataURL(file);
  });
}

// ---- The key

const authorization = () => (key ? { Authorization: `Bearer ${key}` } : {});

export const hasKey = () => Boolean(key);

/** Kept for this tab; "" forgets it. */
export function useKey(value) {
  key = value;
  try {
    if (key) sessionStorage.setItem("sidray-key", key);
    else sessionStorage.removeItem("sidray-key");
  } catch {} // a browser that lets pages keep nothing: it lasts until the next reload
}

function storedKey() {
  try {
    return sessionStorage.getItem("sidray-key") ?? "";
  } catch {
    return "";
  }
}

// ---- Refusals

const WORDS = {
  [-2]: { title: "The page failed", retry: true },
  [-1]: { title: "The picture is gone", text: "It was kept in this tab only. Drop it again." },
  0: { title: "The service cannot be reached", text: "Is it running, and are you connected?", retry: true },
  404: { title: "Not found" },
  413: { title: "Too large" },
  415: { title: "Not a picture that the service reads" },
  429: { title: "Too many requests", retry: true },
  503: { title: "The service is busy", retry: true },
  504: { title: "The service took too long", retry: true },
};
const REFUSED = { title: "The service refused this request" };
const FAILED = { title: "The service failed", text: "Its answer cannot be read.", retry: true };

/** {title, text, code, retry}: the page's words for the kind, the service's own for the case where it gave some. */
export function explained(problem) {
  const { status, code, message, wait } = problem;
  const words = WORDS[status] ?? (status >= 400 && status < 500 ? REFUSED : FAILED);
  const waiting = Number(wait) ? `It asks to wait ${wait} s before the next try.` : "";
  const text = [message || words.text, waiting].filter(Boolean).join("\n");
  return { ...words, text, code: status > 0 ? `${status} ${code}`.trim() : "" };
}
