// Six panels, one web process each: the price it shows, and when it showed the new one.

import { ms } from "./charts.js";

const TIERS = { l1: "memory", store: "store", load: "loaded" };
const euro = (cents) => `€${(cents / 100).toLocaleString("en", { minimumFractionDigits: 2 })}`;

export function makeRace() {
  const list = document.getElementById("panels");
  const headline = document.getElementById("race");
  let race = null;
  let begun = 0;

  const panel = (at) => {
    while (list.children.length <= at) {
      const item = document.createElement("li");
      item.innerHTML = '<small><span class="pid"></span><span class="tier"></span></small><span class="price">–</span><small><span class="ms"></span></small><div class="track"><i></i></div>';
      list.append(item);
    }
    return list.children[at];
  };

  const text = (item, selector, value) => {
    const element = item.querySelector(selector);
    if (element.textContent !== value) element.textContent = value;
  };

  function drawRace() {
    if (!race) return;
    const seen = race.seen.filter((each) => each !== null);
    const most = Math.max(...seen, 1);
    const isOver = seen.length === race.seen.length;
    race.seen.forEach((late, at) => {
      const item = panel(at);
      item.classList.toggle("is-new", late !== null);
      item.classList.toggle("is-waiting", late === null);
      text(item, ".ms", late !== null ? `after ${ms(late)}` : `${((performance.now() - begun) / 1000).toFixed(1)} s`);
      item.querySelector("i").style.width = late !== null ? `${Math.max(6, (100 * late) / most)}%` : "0";
      if (late !== null) text(item, ".price", euro(race.amount));
    });
    headline.replaceChildren();
    const change = document.createElement("b");
    change.textContent = `${euro(race.before)} → ${euro(race.amount)}`;
    headline.append(change, isOver ? ` in all six ${ms(most)} after the commit` : ` in ${seen.length} of ${race.seen.length}`);
  }

  setInterval(() => {
    if (race && race.seen.some((late) => late === null)) drawRace();
  }, 100);

  return {
    tick(panels) {
      panels.forEach((seen, at) => {
        const item = panel(at);
        text(item, ".pid", seen ? `${seen.pid}` : "starting");
        text(item, ".tier", seen?.error ? "no answer" : (TIERS[seen?.tier] ?? ""));
        item.title = seen?.error ?? "";
        if (seen?.amount) text(item, ".price", euro(seen.amount));
      });
    },
    race(next) {
      if (next && (!race || next.number !== race.number)) begun = performance.now();
      race = next;
      drawRace();
    },
  };
}
