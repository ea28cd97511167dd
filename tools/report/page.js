"use strict";
const byId = (id) => document.getElementById(id);
const { columns, recordings, base, charts, config } = JSON.parse(byId("data").textContent);
const columnOf = Object.fromEntries(columns.map((column) => [column.title, column]));
const files = columnOf.file.data;

// Theme. Charts have the text color of the page, so they follow by themselves.

const dark = matchMedia("(prefers-color-scheme: dark)");
function setTheme(isDark) {
  document.documentElement.classList.toggle("dark", isDark);
  byId("theme").textContent = isDark ? "Light" : "Dark";
}
byId("theme").addEventListener("click", () => setTheme(!document.documentElement.classList.contains("dark")));
dark.addEventListener("change", () => setTheme(dark.matches));
setTheme(dark.matches);

// Player

const audio = byId("audio");
let playing = null; // row
const nameOf = (row) => (recordings[row] === 0 ? files[row] : recordings[row]);

function play(row) {
  byId("player").hidden = false;
  byId("playing").textContent = files[row];
  if (recordings[row] === null) {
    audio.pause();
    byId("playing").textContent += ": no recording found";
  } else if (row === playing) {
    if (audio.paused) audio.play(); else audio.pause();
  } else {
    playing = row;
    audio.src = base + encodeURIComponent(nameOf(row));
    audio.play().catch(() => {}); // the error event says why
  }
}
function markButtons() {
  for (const button of document.querySelectorAll("#utterance-table button[data-row]")) {
    const on = Number(button.dataset.row) === playing && !audio.paused;
    button.textContent = on ? "❚❚" : "▶";
    button.setAttribute("aria-label", `${on ? "Pause" : "Play"} ${files[button.dataset.row]}`);
  }
}
for (const event of ["play", "pause", "ended"]) audio.addEventListener(event, markButtons);
audio.addEventListener("error", () => {
  byId("playing").textContent = `${files[playing]}: can't be played from ${audio.src}`;
});

// Table. Every name goes in as text.

const PART = 100; // rows shown at a time
const table = { column: columnOf.place, sign: 1, rows: [] };
const head = byId("utterance-table").createTHead().insertRow();
const body = byId("utterance-table").createTBody();
const filters = ["split", "level", "first bin", "cluster"].filter((title) => title in columnOf);

function shown({ data, names, digits }, row) {
  const value = data[row];
  return value === null ? "" : names ? names[value] : digits === undefined ? value : value.toFixed(digits);
}
function element(tag, text, parent) {
  const made = document.createElement(tag);
  made.textContent = text;
  parent.append(made);
  return made;
}
function compare({ data }, sign) { // utterances without a value come last either way
  return (a, b) => {
    const [x, y] = [data[a], data[b]];
    return x === y ? a - b : x === null ? 1 : y === null ? -1 : x < y ? -sign : sign;
  };
}
function select() {
  const sought = byId("search").value.trim().toLowerCase();
  const chosen = filters.map((title) => [columnOf[title], byId(`filter-${title}`).value]).filter(([, value]) => value);
  const texts = columns.filter((column) => column.digits === undefined);
  table.rows = files.map((_, row) => row).filter((row) =>
    chosen.every(([column, value]) => String(column.data[row]) === value) &&
    (!sought || texts.some((column) => shown(column, row).toLowerCase().includes(sought))));
  table.rows.sort(compare(table.column, table.sign));
  for (const [number, column] of columns.entries()) {
    const direction = column !== table.column ? "none" : table.sign > 0 ? "ascending" : "descending";
    head.cells[number + 1].setAttribute("aria-sort", direction);
  }
  body.replaceChildren();
  showMore();
}
function showMore() {
  for (const row of table.rows.slice(body.rows.length, body.rows.length + PART)) {
    const line = body.insertRow();
    const button = element(recordings[row] === null ? "span" : "button", "–", line.insertCell());
    if (recordings[row] !== null) {
      button.dataset.row = row;
      button.addEventListener("click", () => play(row));
    }
    for (const column of columns) {
      const isNumber = column.digits !== undefined && !column.names;
      element("td", shown(column, row), line).className = isNumber ? "number" : "";
    }
  }
  markButtons();
  const [count, total] = [body.rows.length, table.rows.length].map((number) => number.toLocaleString("en"));
  byId("shown").textContent = table.rows.length ? `${count} of ${total} utterances` : "No utterance matches.";
  byId("more").hidden = body.rows.length === table.rows.length;
}
function sortBy(column, sign) {
  Object.assign(table, { column, sign });
  select();
}
element("th", "play", head);
for (const column of columns) {
  const button = element("button", column.title, element("th", "", head));
  button.addEventListener("click", () => sortBy(column, column === table.column ? -table.sign : 1));
}
for (const title of filters) {
  const choice = document.createElement("select");
  choice.id = `filter-${title}`;
  choice.append(new Option("all", ""));
  const values = [...new Set(columnOf[title].data)].filter((value) => value !== null).sort((a, b) => a - b);
  for (const value of values) choice.append(new Option(columnOf[title].names?.[value] ?? value, value));
  choice.addEventListener("change", select);
  const label = document.createElement("label");
  label.append(title, choice);
  byId("most").before(label);
}
let typing;
byId("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(select, 150);
});
byId("more").addEventListener("click", showMore);
byId("most").addEventListener("click", () => sortBy(columnOf.place, 1));
byId("least").addEventListener("click", () => sortBy(columnOf.place, -1));
byId("download").addEventListener("click", () => {
  const quoted = (text) => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const lines = [columns.map(({ title }) => title), ...table.rows.map((row) => columns.map((column) => shown(column, row)))];
  const text = lines.map((cells) => cells.map((cell) => quoted(String(cell))).join(",") + "\n").join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "DeepMI.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href));
});
byId("reset").addEventListener("click", () => {
  for (const title of filters) byId(`filter-${title}`).value = "";
  byId("search").value = "";
  sortBy(columnOf.place, 1);
});
select();
performance.mark("usable"); // how long the page took to open

for (const heading of document.querySelectorAll("h2")) {
  element("a", heading.textContent, document.querySelector("nav")).href = `#${heading.id}`;
}

// Charts, one after the other, so that the page answers in between. `ast` evaluates Vega's expressions without eval.

async function draw(figure) {
  if (document.documentElement.clientWidth < 520) {
    config.axis.labelLimit = 90;
    Object.assign(config.legend, { columns: 4, gradientLength: 150, layout: { top: { direction: "vertical" } } });
  }
  const options = {
    ast: true, actions: false, renderer: "svg", defaultStyle: false, config, tooltip: { disableDefaultStyle: true },
  };
  const { view: chart } = await window.vegaEmbed(figure, charts[figure.dataset.chart], options);
  chart.addEventListener("click", (_, item) => {
    if (item?.datum?.file !== undefined) play(files.indexOf(item.datum.file));
  });
}
(async () => {
  for (const figure of document.querySelectorAll(".chart")) {
    await new Promise((resolve) => setTimeout(resolve));
    await draw(figure);
  }
  performance.mark("drawn");
})();
