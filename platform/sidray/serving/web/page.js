// The search page: a view is read from the URL, asked of the service, and drawn. Catalogue text only ever becomes
// text nodes. Paths are relative, so that the service may live below a prefix.

import { Problem, ask, explained, hasKey, itemOf, pictureUrl, useKey } from "./service.js";

const WAITING_CARDS = 12;
const KEPT_ANSWERS = 30; // so that going back needs no request
const PICTURE_TYPES = ["image/jpeg", "image/png", "image/webp"];
const MAX_PICTURE_MIB = 23; // a request holds 32 MiB, and base64 adds a third

const by = (id) => document.getElementById(id);
const stamp = () => performance.timeOrigin + performance.now(); // differs between entries, also after a reload

let view = { q: "", partition: "", similar: "", picture: 0 };
let running = new AbortController();
const pictures = new Map(); // number in history.state -> File: a picture has no place in a URL
const answers = new Map(); // history entry -> answer
const titles = new Map(); // item_id -> title, for the heading of similar items

// ---- The view and its URL

function urlOf({ q, partition, similar }) {
  const given = Object.entries({ q, partition, similar }).filter(([, value]) => value);
  return given.length ? `?${new URLSearchParams(given)}` : location.pathname;
}

function viewOfUrl() {
  const of = new URLSearchParams(location.search);
  const [q, partition, similar] = ["q", "partition", "similar"].map((name) => of.get(name) ?? "");
  return { q, partition, similar, picture: history.state?.picture ?? 0 };
}

/** A new entry of the browser's history, or the same one again when nothing changed. */
function go(next) {
  const same = urlOf(next) === urlOf(view) && next.picture === view.picture;
  const depth = (history.state?.depth ?? 0) + (same ? 0 : 1);
  const state = { entry: stamp(), depth, picture: next.picture };
  if (same) history.replaceState(state, "");
  else history.pushState(state, "", urlOf(next));
  view = next;
  show(same ? "" : "forward");
}

/** Items similar to one; the entry being left remembers it, so that Back returns to the same card. */
function goSimilar(id) {
  history.replaceState({ ...history.state, opened: id }, "");
  go({ ...view, similar: id });
}

function goBack() {
  if (history.state?.depth) history.back();
  else if (view.similar) go({ ...view, similar: "" });
}

function restore() {
  view = viewOfUrl();
  if (!history.state?.entry) history.replaceState({ entry: stamp(), depth: 0, picture: 0 }, "");
  show("back");
}

// ---- From a view to what is shown

/** `direction`: "forward" to a new entry, "back" from the history, "" for the same one again. */
async function show(direction) {
  running.abort(); // whatever was on its way is overtaken
  const { signal } = (running = new AbortController());
  const { entry } = history.state;
  const inMain = by("main").contains(document.activeElement);
  fillForm();
  const known = direction === "back" && answers.get(entry);
  if (!known) drawWaiting();
  const slow = setTimeout(() => say("Searching"), 500);
  try {
    if (view.picture && !view.similar && !pictures.has(view.picture)) throw new Problem(-1);
    const answer = known || (await ask(view, pictures.get(view.picture), signal));
    if (signal.aborted) return;
    keep(entry, answer);
    draw(answer, signal);
  } catch (error) {
    if (signal.aborted) return;
    drawProblem(error instanceof Problem ? error : new Problem(-2, error));
  } finally {
    clearTimeout(slow);
  }
  document.body.classList.remove("loading");
  settle(direction, inMain);
}

function keep(entry, answer) {
  answers.delete(entry);
  answers.set(entry, answer);
  if (answers.size > KEPT_ANSWERS) answers.delete(answers.keys().next().value);
  for (const hit of answer.hits ?? []) titles.set(hit.item_id, hit.title);
}

/** Where the reader is left: at the top of something new, at the card that was opened when coming back. */
function settle(direction, inMain) {
  if (direction === "forward") scrollTo(0, 0);
  if (document.activeElement !== document.body) return;
  const links = [...by("hits").querySelectorAll("a")];
  const opened = direction === "back" && links.find((link) => link.dataset.item === history.state.opened);
  if (opened) opened.focus();
  else if (inMain) (links[0] ?? by("message").querySelector("button:not([hidden])") ?? by("query")).focus();
}

function fillForm() {
  by("query").value = view.q;
  by("partition").value = view.partition;
  by("partition").removeAttribute("aria-invalid");
  by("note").textContent = "";
  by("forget").hidden = !hasKey();
  const file = pictures.get(view.picture);
  by("picture").hidden = !file;
  if (file) showUrl(by("thumbnail"), URL.createObjectURL(file));
  else by("thumbnail").removeAttribute("src");
  document.title = view.q ? `${view.q} – sidray search` : "sidray search";
}

function drawWaiting() {
  document.body.classList.add("loading");
  by("hits").setAttribute("aria-busy", "true");
  if (by("hits").querySelector("a") || !(view.q || view.similar || view.picture)) return;
  by("message").replaceChildren();
  by("hits").replaceChildren(...Array.from({ length: WAITING_CARDS }, () => copyOf("waiting")));
}

function draw(answer, signal) {
  const { hits, index = answer, took_ms: took } = answer;
  drawSeed(signal);
  drawHits(hits ?? [], signal);
  const count = `${number(hits?.length)} ${hits?.length === 1 ? "item" : "items"}`;
  say(hits ? count : "", took);
  if (!hits) drawMessage({ title: `${number(index.items)} items to search`, ...WELCOME }).className = "welcome";
  else if (!hits.length) drawMessage({ title: "Nothing found", text: view.partition ? EMPTY_HERE : EMPTY });
  else by("message").replaceChildren();
  drawServed(index);
}

const WELCOME = {
  text: "Type words, or drop, paste or choose a picture, or both.\nA result leads to the items that are like it.",
  code: "Keys: / for the box, arrows, Enter for similar items, Escape to go back",
};
const EMPTY = "Other words may say it better.";
const EMPTY_HERE = "Other words may say it better, or another partition has it.";
const number = (value) => (value ?? 0).toLocaleString("en");

/** The line above the results; nothing is embedded for similar items. */
function say(status, took = {}) {
  const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
  const parts = ["total", "embed", "recall"].filter((part) => took[part]);
  by("status").textContent = status;
  by("times").textContent = parts.map((part) => `${part} ${ms(took[part])}`).join(" · ");
}

function drawServed({ run, model_key: model, generation, table_version: version }) {
  const facts = Object.entries({ run, model, generation, "table version": version });
  by("served").textContent = facts.map(([name, value]) => `${name} ${value}`).join(" · ");
}

// ---- Hits

function copyOf(template) {
  return by(template).content.firstElementChild.cloneNode(true);
}

function drawHits(hits, signal) {
  by("hits").removeAttribute("aria-busy");
  by("hits").replaceChildren(...hits.map((hit) => card(hit, signal)));
  const names = [...by("partitions").options].map((option) => option.value);
  const seen = new Set([...names, ...hits.map((hit) => hit.partition)].filter(Boolean));
  by("partitions").replaceChildren(...[...seen].sort().map((name) => new Option(name, name)));
}

function card(hit, signal) {
  const item = copyOf("hit");
  const link = item.querySelector("a");
  link.href = urlOf({ ...view, similar: hit.item_id });
  link.dataset.item = hit.item_id;
  item.querySelector(".title").textContent = hit.title || hit.item_id;
  item.querySelector(".score").textContent = hit.score.toFixed(3);
  item.querySelector(".partition").textContent = hit.partition;
  item.querySelector(".sids").textContent = (hit.fields?.sids ?? []).join("-");
  loadPicture(item.querySelector("img"), hit.item_id, signal);
  return item;
}

async function loadPicture(image, id, signal) {
  const tile = image.parentElement;
  delete tile.dataset.picture;
  image.onload = () => (tile.dataset.picture = "shown");
  image.onerror = () => (tile.dataset.picture = "none");
  const url = await pictureUrl(id, signal).catch(() => null);
  if (url) showUrl(image, url);
  else if (!signal.aborted) tile.dataset.picture = "none";
}

function showUrl(image, url) {
  const done = () => URL.revokeObjectURL(url);
  image.addEventListener("load", done, { once: true });
  image.addEventListener("error", done, { once: true });
  image.src = url;
}

async function drawSeed(signal) {
  const id = view.similar;
  by("seed").hidden = !id;
  if (!id) return;
  by("seed-title").textContent = titles.get(id) ?? id;
  loadPicture(by("seed-picture"), id, signal);
  if (titles.has(id)) return;
  const item = await itemOf(id, signal).catch(() => null); // a name is no must
  if (item?.title && view.similar === id) by("seed-title").textContent = item.title;
}

// ---- Messages

function drawMessage({ title, text = "", code = "", retry = false }) {
  const box = copyOf("plain-message");
  box.querySelector("h2").textContent = title;
  box.querySelector(".text").textContent = text;
  box.querySelector(".code").textContent = code;
  box.querySelector("button").hidden = !retry;
  box.querySelector("button").onclick = () => show("");
  by("message").replaceChildren(box);
  return box;
}

function drawProblem(problem) {
  drawSeed(running.signal);
  drawHits([], running.signal);
  if (problem.status === 401) return drawKeyForm(problem.message);
  const words = explained(problem);
  drawMessage(words).className = "error";
  say("");
  if (problem.param === "partition") by("partition").setAttribute("aria-invalid", "true");
}

function drawKeyForm(reason) {
  const form = copyOf("key-message");
  if (hasKey()) {
    form.querySelector("h2").textContent = "The API key was refused";
    form.querySelector(".text").textContent = reason;
  }
  form.onsubmit = (event) => {
    event.preventDefault();
    useKey(by("key").value);
    show("");
  };
  by("message").replaceChildren(form);
  say("");
  by("key").focus();
}

// ---- Pictures to search with

async function usePicture(file) {
  const reason = await refusalOf(file);
  if (reason) {
    by("note").textContent = reason;
    return;
  }
  const picture = stamp();
  pictures.set(picture, file);
  go({ ...typed(), picture });
}

async function refusalOf(file) {
  const name = file.name || "The file";
  if (!PICTURE_TYPES.includes(file.type)) return `${name} is not a JPEG, PNG or WebP picture.`;
  if (file.size > MAX_PICTURE_MIB * 2 ** 20) {
    return `${name} is larger than ${MAX_PICTURE_MIB} MiB, the most that one request holds.`;
  }
  const probe = new Image();
  showUrl(probe, URL.createObjectURL(file));
  return probe.decode().then(() => "", () => `${name} cannot be read as a picture.`);
}

addEventListener("dragover", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return; // text falls into the box as ever
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (!file) return;
  event.preventDefault();
  usePicture(file);
});
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (!file || event.clipboardData.types.includes("text/plain")) return; // a table's cells come as both
  event.preventDefault();
  usePicture(file);
});

// ---- Form and keys

/** What the form holds now, as a view. */
function typed() {
  const picture = pictures.has(view.picture) ? view.picture : 0;
  return { q: by("query").value.trim(), partition: by("partition").value.trim(), similar: "", picture };
}

by("search").onsubmit = (event) => {
  event.preventDefault();
  go(typed());
};
by("pick").onclick = () => by("file").click();
by("file").onchange = () => {
  const [file] = by("file").files;
  if (file) usePicture(file);
  by("file").value = ""; // the same file may be chosen again
};
by("remove").onclick = () => {
  go({ ...typed(), picture: 0 });
  by("query").focus();
};
by("back").onclick = goBack;
by("forget").onclick = () => {
  useKey("");
  show("");
};
by("hits").onclick = (event) => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab, as for any link
  event.preventDefault();
  goSimilar(link.dataset.item);
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const writing = event.target.matches?.("input");
  if (event.key === "/" && !writing) {
    event.preventDefault();
    by("query").focus();
    by("query").select();
  } else if (event.key === "Escape" && !(writing && event.target.value !== (view[FIELDS[event.target.id]] ?? ""))) {
    event.preventDefault();
    goBack();
  } else moveInGrid(event);
});

const FIELDS = { query: "q", partition: "partition" };

/** Arrows walk over the grid, down from the box into it, and up out of it. */
function moveInGrid(event) {
  const links = [...by("hits").querySelectorAll("a")];
  const here = links.indexOf(document.activeElement);
  const columns = getComputedStyle(by("hits")).gridTemplateColumns.split(" ").length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -here, End: links.length };
  const step = steps[event.key];
  const enters = event.key === "ArrowDown" && document.activeElement === by("query");
  if (step === undefined || !links.length || (here < 0 && !enters)) return;
  event.preventDefault();
  if (here < 0) links[0].focus();
  else if (here + step < 0) by("query").focus();
  else links[Math.min(here + step, links.length - 1)].focus();
}

addEventListener("popstate", restore);
restore();
