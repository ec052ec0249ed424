// The page: one stream of events in, actions out.

import { count, makeCharts, means, ms } from "./charts.js";
import { makeRace } from "./race.js";

const KEPT = 120;
const SILENT_FOR = 4000;
// The number of ticks, half seconds, for which the page says that the store is back.
const SAID_FOR = 10;
const isAway = (tick) => tick.state.store_pid === 0;
const byId = (id) => document.getElementById(id);
const show = (id, text) => {
  if (byId(id).textContent !== text) byId(id).textContent = text;
};

const outcomes = new Map();
const charts = makeCharts(outcomes);
const race = makeRace();
const buttons = [...document.querySelectorAll("button[data-action]")];
const storeButton = byId("actions").querySelector('[data-action="stop-store"]');

let ticks = [];
let boot = "";
let wasLost = false;
let heardAt = performance.now();

// -- what comes in

let stream;

function connect() {
  stream?.close();
  stream = new EventSource("/events");
  stream.addEventListener("hello", (event) => hello(JSON.parse(event.data)));
  stream.addEventListener("tick", (event) => tick(JSON.parse(event.data)));
  stream.addEventListener("race", (event) => race.race(JSON.parse(event.data)));
  stream.addEventListener("outcome", (event) => outcome(JSON.parse(event.data)));
  stream.addEventListener("error", lost);
}

function hello(message) {
  const isNew = boot && boot !== message.boot;
  boot = message.boot;
  ticks = message.ticks;
  outcomes.clear();
  message.outcomes.forEach((each) => outcomes.set(each.number, each));
  race.race(message.race);
  drawOutcomes();
  for (const name of ["api", "flower"]) {
    byId(name).hidden = !message[name];
    byId(name).href = message[name] + (name === "api" ? "/products/1" : "");
  }
  if (wasLost) {
    notify(isNew ? "Connected again. The stack was started again, so the charts begin again." : "Connected again.", "done");
  } else if (message.outcomes.length) {
    const last = message.outcomes.at(-1);
    notify(last.text, last.stage);
  }
  wasLost = false;
  heardAt = performance.now();
  state("live", "Live");
  draw();
}

function tick(next) {
  heardAt = performance.now();
  ticks.push(next);
  ticks = ticks.slice(-KEPT);
  draw();
}

function lost() {
  if (!wasLost) notify("The connection is lost; trying again. If make up has ended, start it: this page goes on by itself.", "failed");
  wasLost = true;
  state("lost", "Reconnecting");
  // A stream that was refused is not tried again by the browser.
  if (stream.readyState === EventSource.CLOSED) setTimeout(connect, 1000);
}

setInterval(() => {
  if (!wasLost && performance.now() - heardAt > SILENT_FOR) state("wait", "Waiting");
}, 1000);

function outcome(next) {
  outcomes.set(next.number, next);
  notify(next.text, next.stage);
  drawOutcomes();
}

// -- what is shown

function state(name, text) {
  byId("link").dataset.state = name;
  document.body.dataset.link = name;
  show("link", text);
}

function notify(text, stage) {
  byId("latest").dataset.stage = stage;
  show("latest", text);
}

function draw() {
  charts.draw(ticks);
  const last = ticks.at(-1);
  if (!last) return;
  drawLink(last);
  for (const side of ["cached", "uncached"]) {
    const { p50, p99, failed } = last[side];
    const [rate, queries] = means(ticks.slice(-4).map((tick) => [tick[side].rate, tick[side].queries])).at(-1);
    show(`${side}-rate`, count(rate));
    show(`${side}-queries`, count(queries));
    const latency = p50 === null ? "" : `p50 ${ms(p50)}, p99 ${ms(p99)}`;
    show(`${side}-more`, failed ? `${count(failed)} failed` : latency);
  }
  for (const button of buttons) {
    const { action } = button.dataset;
    if (["normal", "sale", "idle"].includes(action)) button.setAttribute("aria-pressed", String(last.mode === action));
    if (action === "compare") button.setAttribute("aria-pressed", String(last.is_compared));
  }
  drawStore(last);
  drawWhy(last.why_not);
  drawProcesses(last);
  race.tick(last.panels);
  show("counted", last.counted_by || "Postgres does not answer now");
}

function drawLink(last) {
  if (isAway(last)) state("away", "Store away");
  else state("live", ticks.slice(-SAID_FOR).some(isAway) ? "Store is back" : "Live");
}

function drawStore(last) {
  const action = isAway(last) ? "start-store" : "stop-store";
  if (storeButton.dataset.action === action) return;
  storeButton.dataset.action = action;
  storeButton.firstChild.textContent = isAway(last) ? "Start the store" : "Stop the store";
}

function drawWhy(whyNot) {
  const reasons = new Map();
  for (const button of buttons) {
    const reason = whyNot[button.dataset.action];
    button.disabled = Boolean(reason);
    button.title = reason ?? "";
    if (reason) reasons.set(reason, [...(reasons.get(reason) ?? []), button.firstChild.textContent]);
  }
  byId("why").hidden = !reasons.size;
  show("why", [...reasons].map(([reason, names]) => `${names.join(", ")}: not here. ${reason[0].toUpperCase()}${reason.slice(1)}.`).join(" "));
}

function drawProcesses({ state: { workers, store_pid: store }, counted_by: counted, panels }) {
  const rows = workers.map(({ name, pid, is_ready: isReady, restarts }) => ({
    name: `Worker ${name}`,
    state: isReady ? "up" : "wait",
    more: isReady ? `${pid}${restarts ? ` · start ${restarts + 1}` : ""}` : "starting",
  }));
  rows.push({ name: "Store", state: store === 0 ? "down" : "up", more: store === 0 ? "stopped" : store ? `${store}` : "not ours" });
  rows.push({ name: "Postgres", state: counted ? "up" : "down", more: counted ? "counting" : "no answer" });
  const there = panels.filter((seen) => seen && !seen.error).length;
  rows.push({ name: "Panels", state: there === panels.length ? "up" : "wait", more: `${there} of ${panels.length}` });
  const list = byId("processes");
  while (list.children.length < rows.length) list.append(Object.assign(document.createElement("li"), { innerHTML: "<b></b><span></span>" }));
  while (list.children.length > rows.length) list.lastChild.remove();
  rows.forEach((row, at) => {
    const item = list.children[at];
    item.dataset.state = row.state;
    item.dataset.name = row.name;
    if (item.textContent !== row.name + row.more) {
      item.firstChild.textContent = row.name;
      item.lastChild.textContent = row.more;
    }
  });
}

function drawOutcomes() {
  const items = [...outcomes.values()].reverse().map(({ at, text, stage, action }) => {
    const item = document.createElement("li");
    item.dataset.stage = stage;
    item.dataset.action = action;
    const time = document.createElement("time");
    time.dateTime = new Date(at * 1000).toISOString();
    time.textContent = new Date(at * 1000).toLocaleTimeString("en-GB");
    const what = document.createElement("span");
    what.textContent = text;
    item.append(time, what);
    return item;
  });
  if (items.length) byId("outcomes").replaceChildren(...items);
}

// -- what goes out

async function act(button) {
  button.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(`/actions/${button.dataset.action}`, { method: "POST" });
    if (!answer.ok) notify((await answer.json()).detail, "failed");
  } catch {
    notify("The page's server does not answer.", "failed");
  } finally {
    button.removeAttribute("aria-busy");
  }
}

for (const button of buttons) {
  const { key } = button.dataset;
  button.setAttribute("aria-keyshortcuts", key.toUpperCase());
  button.append(Object.assign(document.createElement("kbd"), { textContent: key.toUpperCase() }));
  button.addEventListener("click", () => act(button));
}

byId("theme").addEventListener("click", () => window.toggleTheme());

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase();
  const button = key === "t" ? byId("theme") : buttons.find((each) => each.dataset.key === key);
  button?.click();
});

connect();
