"use strict";
// The pages work without this; it draws tables as curves, and closes the menu on small screens.

const LINES = ["--a", "--b", "--c", "--d", "--e", "--f"];

/** Formats of times by the seconds between them; see uPlot's documentation of `axis.values`. */
const DATES = [
  [28 * 86400, "{YYYY}-{MM}", null, null, null, null, null, null, 1],
  [86400, "{MM}-{DD}", "\n{YYYY}", null, null, null, null, null, 1],
  [60, "{HH}:{mm}", "\n{YYYY}-{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
];

/** A time of a table, which is in UTC wherever the reader is. */
function utc(seconds) {
  return uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC");
}

/** The colour that a name of the style sheet has now. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** The numbers of a table: the first column times in seconds, the others values or null. */
function readTable(table) {
  const columns = [...table.tHead.rows[0].cells].map(() => []);
  for (const row of table.tBodies[0].rows) {
    [...row.cells].forEach((cell, i) => {
      const text = cell.dataset.value;
      columns[i].push(text === undefined || text === "" ? null : Number(text));
    });
  }
  return columns;
}

/** Draw the table of a figure, which then is in a closed <details> below the curves. */
function draw(figure) {
  const table = figure.querySelector("table");
  const data = readTable(table);
  if (data[0].length < 2 || typeof uPlot === "undefined") return;
  const plot = document.createElement("div");
  const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  figure.prepend(plot);
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  const series = names.map((name, i) => i === 0 ? { label: name, value: "{YYYY}-{MM}-{DD}" } : {
    label: name, stroke: colour(LINES[(i - 1) % LINES.length]), width: 2, spanGaps: false,
  });
  const size = () => ({ width: plot.clientWidth, height: 200 });
  const chart = new uPlot({ ...size(), series, axes: [{ ...axis, values: DATES }, { ...axis, size: 64 }], tzDate: utc, scales: { y: { range: (_, low, high) => [0, high || 1] } } }, data, plot);
  new ResizeObserver(() => chart.setSize(size())).observe(plot);
}

function start(root) {
  for (const figure of root.querySelectorAll("figure.series")) draw(figure);
}

/** Follow the events that change a part of the page. */
function follow(part) {
  part.setAttribute("hx-sse:connect", part.dataset.events);
  htmx.process(part);
}

document.addEventListener("DOMContentLoaded", () => {
  start(document);
  // htmx starts in a task of its own, maybe before its extension is loaded, which would miss it.
  setTimeout(() => document.querySelectorAll("[data-events]").forEach(follow));
  const menu = document.querySelector(".side details");
  if (menu && matchMedia("(max-width: 56rem)").matches) menu.open = false;
});
