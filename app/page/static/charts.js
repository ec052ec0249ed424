// Four charts of the last minute, on uPlot; colours come from the style sheet, and change with the theme.

const WINDOW = 60;
// Rates and percentiles are shown as means of this number of half seconds: two seconds.
const MEAN_OF = 4;
const MARKED = { sale: "sale", price: "price", kill: "kill", "stop-store": "store stops", "start-store": "store starts" };
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (value) => (value == null ? "–" : whole.format(value));
export const short = (value) => (value >= 1000 ? `${+(value / 1000).toFixed(1)}k` : `${+value.toFixed(2)}`);
const plain = (value) => (value == null ? "–" : value < 10 ? value.toFixed(1) : whole.format(value));
export const ms = (value) => {
  if (value == null) return "–";
  return value < 1000 ? `${value < 10 ? value.toFixed(1) : whole.format(value)} ms` : `${(value / 1000).toFixed(1)} s`;
};
const percent = (value) => (value == null ? "–" : `${value > 0 && value < 1 ? "<1" : Math.round(value)}%`);

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const KINDS = ["miss", "stale", "store", "l1"];

function shares(tick) {
  const total = KINDS.reduce((sum, kind) => sum + (tick.kinds[kind] ?? 0), 0);
  return KINDS.map((kind) => (total ? (100 * (tick.kinds[kind] ?? 0)) / total : null));
}

// From the top down: each area covers what is below it, so that what shows of it is its own share.
function stacked(tick) {
  const own = shares(tick);
  return own.map((_, at) => (own[at] == null ? null : own.slice(at).reduce((sum, share) => sum + share, 0)));
}

const SPECS = {
  rate: {
    title: "Requests a second",
    series: [
      { label: "cached", colour: "cached", fill: "cached-fill", of: (tick) => tick.cached.rate },
      { label: "uncached", colour: "uncached", dashed: true, of: (tick) => tick.uncached.rate },
    ],
    show: count,
    least: 400,
    isMean: true,
  },
  queries: {
    title: "Database queries a second",
    series: [
      { label: "uncached", colour: "uncached", fill: "uncached-fill", dashed: true, of: (tick) => tick.uncached.queries },
      { label: "cached", colour: "cached", of: (tick) => tick.cached.queries },
    ],
    show: count,
    least: 400,
    isMean: true,
  },
  latency: {
    title: "Latency, ms",
    series: [
      { label: "cached p50", colour: "cached", of: (tick) => tick.cached.p50 },
      { label: "p99", colour: "cached", thin: true, of: (tick) => tick.cached.p99 },
      { label: "uncached p50", colour: "uncached", dashed: true, of: (tick) => tick.uncached.p50 },
      { label: "p99", colour: "uncached", dashed: true, thin: true, of: (tick) => tick.uncached.p99 },
    ],
    show: plain,
    isLog: true,
    isMean: true,
  },
  kinds: {
    title: "Where answers come from",
    series: [
      { label: "miss", colour: "miss", isArea: true },
      { label: "stale", colour: "stale", isArea: true },
      { label: "store", colour: "store", isArea: true },
      { label: "memory", colour: "l1", isArea: true },
    ],
    rows: stacked,
    own: shares,
    show: percent,
    most: 100,
  },
};

class Chart {
  constructor(figure, spec, outcomes) {
    this.spec = spec;
    this.outcomes = outcomes;
    const caption = document.createElement("figcaption");
    const title = document.createElement("b");
    title.textContent = spec.title;
    const legend = document.createElement("ul");
    legend.className = "legend";
    this.values = spec.series.map((series) => {
      const row = document.createElement("li");
      const mark = document.createElement("i");
      mark.className = series.isArea ? "block" : series.dashed ? "dashed" : "";
      mark.style.setProperty("--c", `var(--${series.colour})`);
      const value = document.createElement("b");
      row.append(mark, `${series.label} `, value);
      legend.append(row);
      return value;
    });
    caption.append(title, legend);
    const place = document.createElement("div");
    place.className = "plot";
    place.setAttribute("role", "img");
    figure.append(caption, place);
    this.place = place;
    this.own = [];
    this.now = 0;
    this.note();
    this.plot = new uPlot(this.options(), [[0], ...spec.series.map(() => [null])], place);
    new ResizeObserver(() => this.plot.setSize(this.size(place))).observe(place);
    this.plot.setSize(this.size(place));
  }

  size(place) {
    return { width: Math.max(120, place.clientWidth), height: Math.max(150, place.clientHeight) };
  }

  options() {
    const { spec } = this;
    const font = "12px Inter, system-ui, sans-serif";
    const axis = { stroke: () => colour("dim"), font, ticks: { show: false }, grid: { stroke: () => colour("grid"), width: 1 } };
    return {
      width: 300,
      height: 190,
      padding: [10, 16, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "sale" }, y: false, points: { size: 6 }, drag: { setScale: false, x: false } },
      scales: {
        x: { time: false, range: [-WINDOW, 0] },
        y: spec.isLog ? { distr: 3, range: (_, low, high) => logRange(low, high) } : { range: (_, low, high) => [0, spec.most ?? Math.max(spec.least, high * 1.12 || 0)] },
      },
      axes: [
        { ...axis, size: 26, gap: 4, splits: () => [-60, -45, -30, -15, 0], values: (_, at) => at.map((s) => (s ? `${s} s`.replace("-", "−") : "now")) },
        {
          ...axis, size: 52, gap: 6,
          values: (_, at) => at.map((value) => (value == null ? "" : spec.isLog ? logLabel(value) : spec.most ? `${value}%` : short(value))),
          ...(spec.isLog ? { filter: (_, at) => at.map((value) => (isDecade(value) ? value : null)) } : {}),
          ...(spec.isLog ? { grid: { ...axis.grid, filter: (_, at) => at.map((value) => (isDecade(value) ? value : null)) } } : { splits: (plot, _, low, high) => steps(high) }),
        },
      ],
      series: [{}, ...spec.series.map((series) => this.line(series))],
      hooks: { draw: [(plot) => this.mark(plot)], setCursor: [(plot) => this.label(plot.cursor.idx)] },
    };
  }

  line(series) {
    if (series.isArea) {
      return { stroke: () => colour(series.colour), fill: () => colour(series.colour), width: 0, points: { show: false } };
    }
    return {
      stroke: () => colour(series.colour),
      ...(series.fill ? { fill: () => colour(series.fill) } : {}),
      width: series.thin ? 1.25 : 2,
      dash: series.dashed ? [6, 4] : undefined,
      points: { show: false },
    };
  }

  // Lines at what was done, each with its word.
  mark(plot) {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    ctx.save();
    ctx.font = `${11 * ratio}px Inter, system-ui, sans-serif`;
    ctx.textBaseline = "top";
    ctx.textAlign = "left";
    ctx.lineWidth = ratio;
    ctx.setLineDash([2 * ratio, 3 * ratio]);
    ctx.strokeStyle = colour(this.spec.most ? "text" : "dim");
    const marks = this.marked.map(({ at, word }) => ({ x: plot.valToPos(at, "x", true), word }));
    ctx.globalAlpha = 0.75;
    for (const { x } of marks) {
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    const gap = 4 * ratio;
    for (const { left, row, text, width } of labels(marks, (words) => ctx.measureText(words).width, bbox.left + bbox.width, gap)) {
      const top = bbox.top + (13 * row - 9) * ratio;
      if (row) {
        ctx.globalAlpha = 0.85;
        ctx.fillStyle = colour("card");
        ctx.fillRect(left - gap / 2, top - ratio, width + gap, 13 * ratio);
      }
      ctx.globalAlpha = 1;
      ctx.fillStyle = colour("dim");
      ctx.fillText(text, left, top);
    }
    ctx.restore();
  }

  // What was done in the last minute: seconds from now, and its word; for those who do not see the lines, too.
  note() {
    const done = [...this.outcomes.values()].filter(({ action, at, stage }) => {
      return MARKED[action] && stage !== "failed" && at <= this.now && at > this.now - WINDOW;
    });
    this.marked = done.map(({ action, at }) => ({ at: at - this.now, word: MARKED[action] }));
    const marks = done.map(({ action, at }) => `${MARKED[action]} at ${new Date(at * 1000).toLocaleTimeString("en-GB")}`);
    const text = [`${this.spec.title}, the last minute`, ...marks].join("; ");
    if (this.place.getAttribute("aria-label") !== text) this.place.setAttribute("aria-label", text);
  }

  // The values under the pointer, or else the last.
  label(at) {
    const row = this.own[at ?? this.own.length - 1];
    this.values.forEach((value, series) => {
      value.textContent = this.spec.show(row?.[series]);
    });
  }

  draw(ticks) {
    const { spec } = this;
    this.now = ticks.length ? ticks.at(-1).at : 0;
    this.note();
    let rows = ticks.map(spec.rows ?? ((tick) => spec.series.map((series) => positive(series.of(tick), spec.isLog))));
    if (spec.isMean) rows = means(rows);
    this.own = spec.own ? ticks.map(spec.own) : rows;
    this.plot.setData([ticks.map((tick) => tick.at - this.now), ...spec.series.map((_, at) => rows.map((row) => row[at]))]);
    this.label(this.plot.cursor.idx);
  }
}

// Where the words of marks stand, these from left to right: beside their line, left of it at the right edge, in the
// first row with room.  A word that would cover its like is counted there instead.
export function labels(marks, measure, right, gap) {
  const groups = [];
  for (const { x, word } of marks) {
    const alike = groups.findLast((group) => group.word === word);
    if (alike && x <= alike.x + measure(`${word} x99`)) alike.count += 1;
    else groups.push({ x, word, count: 1 });
  }
  const ends = [];
  return groups.map(({ x, word, count: times }) => {
    const text = times > 1 ? `${word} x${times}` : word;
    const width = measure(text);
    const left = x + gap + width <= right ? x + gap : x - gap - width;
    let row = ends.findIndex((end) => end + gap <= left);
    if (row < 0) row = ends.length;
    ends[row] = left + width;
    return { left, row, text, width };
  });
}

// The mean of each value and those just before it, as far as there are any.
export function means(rows) {
  return rows.map((row, at) =>
    row.map((value, series) => {
      if (value == null) return null;
      const near = rows.slice(Math.max(0, at - MEAN_OF + 1), at + 1).map((each) => each[series]).filter((each) => each != null);
      return near.reduce((sum, each) => sum + each, 0) / near.length;
    }),
  );
}

const positive = (value, isLog) => (isLog && value === 0 ? null : value);

function logRange(low, high) {
  if (!(high > 0)) return [0.1, 100];
  return [10 ** Math.floor(Math.log10(Math.min(low, 0.9))), 10 ** Math.ceil(Math.log10(Math.max(high, 11)))];
}

const isDecade = (value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-9;
const logLabel = (value) => short(value);

function steps(high) {
  const raw = high / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= raw);
  return Array.from({ length: Math.floor(high / step) + 1 }, (_, at) => at * step);
}

export function makeCharts(outcomes) {
  const charts = Object.entries(SPECS).map(([name, spec]) => new Chart(document.getElementById(`chart-${name}`), spec, outcomes));
  document.addEventListener("themechange", () => charts.forEach((chart) => chart.plot.redraw(false, true)));
  return { draw: (ticks) => charts.forEach((chart) => chart.draw(ticks)) };
}
