"use strict";
const byId = (id) => document.getElementById(id);
const root = document.documentElement;
const read = (id) => JSON.parse(byId(id).textContent);

// Theme

const THEMES = {
  light: {
    ink: "#1d242c", line: "#e2e5e8", paper: "#fdfdfc",
    sequential: [[0, "#f1f4f8"], [0.5, "#7ba6d6"], [1, "#173f73"]],
    diverging: [[0, "#2a5fa5"], [0.5, "#f4f4f3"], [1, "#b5392f"]],
  },
  dark: {
    ink: "#dde3e9", line: "#2d353e", paper: "#14181d",
    sequential: [[0, "#1b222a"], [0.5, "#3b76b4"], [1, "#c5e0ff"]],
    diverging: [[0, "#6aa8f5"], [0.5, "#20272e"], [1, "#f0796b"]],
  },
};
const system = matchMedia("(prefers-color-scheme: dark)");
let theme = system.matches ? "dark" : "light";

function template() {
  const { ink, line, paper, sequential, diverging } = THEMES[theme];
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, tickcolor: line };
  return {
    layout: {
      paper_bgcolor: paper, plot_bgcolor: paper, xaxis: axis, yaxis: axis,
      font: { color: ink, size: 12, family: getComputedStyle(document.body).fontFamily },
      colorscale: { sequential, sequentialminus: sequential, diverging },
      colorway: ["#4477bb", "#dd7f35", "#4fa35a", "#c94f4f"],
      shapedefaults: { line: { color: ink } },
      hoverlabel: { bgcolor: paper, bordercolor: ink, font: { color: ink } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: ink, activecolor: ink },
    },
    data: { box: [{ line: { color: "#4f86c6" }, fillcolor: "rgba(79,134,198,.35)" }] },
  };
}

function setTheme(name) {
  theme = name;
  root.classList.toggle("dark", theme === "dark");
  root.style.colorScheme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", `Change to ${theme === "dark" ? "light" : "dark"} colours`);
  const drawn = document.querySelectorAll(".chart[data-drawn]");
  if (!drawn.length) return;
  waiting.push(...drawn);
  drawWaiting();
}
byId("theme").addEventListener("click", () => setTheme(theme === "dark" ? "light" : "dark"));
system.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
setTheme(theme);

// Pictures: the library is text until the first of them comes near.

function loadPlotly() {
  if (window.Plotly) return;
  const script = document.createElement("script");
  script.textContent = byId("plotly").textContent;
  document.head.append(script);
}

async function draw(chart) {
  const { data, layout } = read(`figure-${chart.dataset.panel}`);
  if (chart.clientWidth < 520) narrow(data, layout);
  layout.template = template();
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  await window.Plotly.react(chart, data, layout, config);
  chart.dataset.drawn = "yes";
}

function narrow(data, layout) {
  layout.margin.l = 44;
  for (const axis of [layout.xaxis, layout.yaxis]) {
    axis.title.font = { size: 11 };
    axis.tickfont = { size: 10 };
    if (!axis.ticktext) continue;
    const every = axis === layout.xaxis ? Math.ceil(axis.ticktext.length / 14) : 1;
    for (const ticks of ["tickvals", "ticktext"]) axis[ticks] = axis[ticks].filter((_, at) => at % every === 0);
    axis.ticktext = axis.ticktext.map((text) => (text.length > 18 ? `${text.slice(0, 8)}…${text.slice(-9)}` : text));
  }
  for (const trace of data) {
    const bar = trace.colorbar || (trace.marker && trace.marker.colorbar);
    if (bar) bar.thickness = 8;
  }
}

// One at a time, with a pause between: the page answers while they come.
const waiting = [];
let busy = false;
const pause = () => new Promise((resolve) => (window.requestIdleCallback || setTimeout)(resolve, { timeout: 500 }));

async function drawWaiting() {
  if (busy) return;
  busy = true;
  await pause();
  loadPlotly();
  while (waiting.length) {
    await pause();
    await draw(waiting.shift());
  }
  busy = false;
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    near.unobserve(entry.target);
    waiting.push(entry.target);
  }
  if (waiting.length) drawWaiting();
}, { rootMargin: "300px" });

// Table: every string goes in as text.

const { columns, audio } = read("data");
const place = Object.fromEntries(columns.map((column, number) => [column.key, number]));
const rows = columns[0].data.map((_, row) =>
  columns.map((column) => (column.names ? column.names[column.data[row]] : column.data[row])).concat(row));
const ROW = columns.length; // where a row keeps its own number

const text = window.DataTable.render.text();
const shown = {
  text: (value, type) => text.display(value),
  number: (column) => (value, type) =>
    type !== "display" ? value : value === null ? "" : value.toFixed(column.digits),
  level: (column) => (value, type) =>
    type !== "display" ? value : text.display(column.levels[value]),
};

// Utterances without a value come last either way.
const last = (sign) => (a, b) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : sign * (a - b));
window.DataTable.type("number-last", { order: { asc: last(1), desc: last(-1) }, className: "dt-right" });

function sourceOf(row) {
  const code = audio.codes[row];
  if (code < 0) return null;
  const name = rows[row][place.file];
  if (code === 0) return audio.base + encodeURIComponent(name);
  return audio.base + encodeURIComponent(name.replace(new RegExp(audio.stem, "i"), "")) + audio.endings[code - 1];
}

const playing = { row: null, button: null };
const player = byId("audio");

function mark(button, on) {
  if (!button) return;
  button.textContent = on ? "❚❚" : "▶";
  button.setAttribute("aria-label", `${on ? "Pause" : "Play"} ${button.dataset.file}`);
}

function play(row, button) {
  if (playing.row === row) {
    playing.button = button;
    if (player.paused) player.play().catch(() => {}); else player.pause();
    return;
  }
  mark(playing.button, false);
  Object.assign(playing, { row, button });
  byId("player").hidden = false;
  byId("playing").textContent = rows[row][place.file];
  player.src = sourceOf(row);
  player.play().catch(() => {});
}
player.addEventListener("play", () => mark(playing.button, true));
for (const event of ["pause", "ended"]) player.addEventListener(event, () => mark(playing.button, false));
player.addEventListener("error", () => {
  byId("playing").textContent = `${rows[playing.row][place.file]}: can't be played from ${player.src}`;
});

function playButton(cell, row) {
  cell.textContent = "";
  if (audio.codes[row] < 0) {
    cell.textContent = "–";
    cell.title = "no recording found";
    return;
  }
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.file = rows[row][place.file];
  mark(button, playing.row === row && !player.paused);
  if (playing.row === row) playing.button = button;
  button.addEventListener("click", () => play(row, button));
  cell.append(button);
}

const table = new window.DataTable("#utterance-table", {
  data: rows,
  columns: [
    { title: "play", data: ROW, orderable: false, searchable: false, type: "num", render: () => "",
      createdCell: (cell, value, row) => playButton(cell, row[ROW]) },
    ...columns.map((column, number) => ({
      title: column.title,
      data: number,
      searchable: false, // see `matches`
      type: column.kind === "text" ? "string" : "number-last",
      render: column.kind === "text" ? text : shown[column.kind](column),
    })),
  ],
  order: [[place.rank + 1, "asc"]],
  autoWidth: false,
  deferRender: true,
  pageLength: 25,
  lengthMenu: [10, 25, 50, 100],
  language: { entries: { _: "utterances", 1: "utterance" } },
  layout: { topStart: null, topEnd: null, bottomStart: ["pageLength", "info"], bottomEnd: "paging" },
});
const scroller = byId("utterance-table").parentElement;
scroller.tabIndex = 0;
scroller.setAttribute("role", "region");
scroller.setAttribute("aria-label", "Table of utterances, scrolls sideways");

// Filters

const filters = ["split", "level", "cluster"].map((key) => ({ key, select: byId(`filter-${key}`) }));

function option(select, value, label) {
  const element = document.createElement("option");
  element.value = value;
  element.textContent = label;
  select.append(element);
}

for (const { key, select } of filters) {
  const number = place[key];
  if (number === undefined) {
    select.parentElement.remove();
    continue;
  }
  const present = [...new Set(rows.map((row) => row[number]))].filter((value) => value !== null);
  present.sort(typeof present[0] === "number" ? (a, b) => a - b : undefined);
  option(select, "", "all");
  for (const value of present) option(select, String(value), columns[number].levels ? columns[number].levels[value] : String(value));
  select.addEventListener("change", () => table.draw());
}
// The table's own search would first make a text of every cell, which takes as long as all the rest of opening.
const texts = columns.flatMap((column, number) => (column.kind === "text" ? [number] : []));
let sought = "";

function matches(row) {
  return (!sought || texts.some((number) => row[number].toLowerCase().includes(sought))) &&
    filters.every(({ key, select }) => !select.value || String(row[place[key]]) === select.value);
}
table.search.fixed("matches", (_, row) => matches(row));

let typing;
byId("search").addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    sought = event.target.value.trim().toLowerCase();
    table.draw();
  }, 150);
});
byId("most").addEventListener("click", () => table.order([place.rank + 1, "asc"]).draw());
byId("least").addEventListener("click", () => table.order([place.rank + 1, "desc"]).draw());
byId("reset").addEventListener("click", () => {
  for (const { select } of filters) select.value = "";
  byId("search").value = sought = "";
  table.order([place.rank + 1, "asc"]).draw();
});
performance.mark("usable"); // how long the page took to open, for whoever measures it
for (const chart of document.querySelectorAll(".chart")) near.observe(chart);
