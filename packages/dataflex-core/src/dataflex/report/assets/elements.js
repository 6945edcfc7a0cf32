"use strict";
// What every part of the page is made from. Text is set as text, never as markup: rows are data.
const report = {};

report.data = JSON.parse(document.getElementById("data").textContent);

report.el = (tag, attributes, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "tone") node.style.setProperty("--tone", report.tone(value));
    else if (name === "style") for (const [key, how] of Object.entries(value)) node.style.setProperty(key, how);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== "") node.append(child);
  }
  return node;
};

report.tone = (tone) => (typeof tone === "number" ? `var(--t${tone % 8})` : "var(--grey)");
report.dashes = [[], [7, 4], [2, 3], [9, 3, 2, 3]];

// A colour of the style as the canvas takes it.
report.colour = (tone) => report.style(typeof tone === "number" ? `--t${tone % 8}` : "--grey");
report.style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

report.faint = (colour, alpha) => {
  const n = parseInt(colour.slice(1), 16);
  return `rgb(${n >> 16} ${(n >> 8) & 255} ${n & 255} / ${alpha})`;
};

report.digits = (value, most) => value.toLocaleString("en", { maximumSignificantDigits: most });
const digits = (value, most) => value.toLocaleString("en", { maximumSignificantDigits: most });

report.formats = {
  text: (value) => String(value),
  count: (value) => Math.round(value).toLocaleString("en"),
  number: (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : digits(value, 4)),
  loss: (value) => (Math.abs(value) >= 10 ? digits(value, 4) : value.toFixed(3)),
  percent: (value) => {
    const share = 100 * value;
    if (share !== 0 && Math.abs(share) < 0.05) return "under 0.1 %";
    return `${Math.abs(share) < 9.95 && share !== 0 ? share.toFixed(1) : Math.round(share)} %`;
  },
  times: (value) => `${digits(value, 2)} ×`,
  seconds: (value) => {
    if (value < 99.5) return `${digits(value, value < 10 ? 2 : 3)} s`;
    const minutes = Math.floor(Math.round(value) / 60);
    return minutes < 60 ? `${minutes} min ${Math.round(value) % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  },
  short: (value) => value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 }),
};

report.show = (value, format) => (value === null || value === undefined ? "–" : report.formats[format || "number"](value));

// A card of a section, headed by the run that it is of where there are several.
report.card = (block, ...children) => {
  const { el, data } = report;
  const run = block.run === undefined || data.runs.length < 2 ? null : data.runs[block.run];
  return el(
    "article",
    { class: `card${block.wide ? " wide" : ""}` },
    run && el("div", { class: "of-run", tone: run.tone }, el("span", { class: "dot" }), run.name),
    block.title && el("h3", {}, block.title),
    block.says && el("p", { class: "note" }, block.says),
    block.thinned ? el("p", { class: "note" }, `Some of ${report.show(block.thinned, "count")} points are shown, evenly spread.`) : null,
    ...children,
  );
};

const MOST_LINES = 400;

// columns: [name, format] each. Cells without a value are shown as a dash.
report.table = (columns, rows, options = {}) => {
  const { el, show } = report;
  const number = (format) => format && format !== "text";
  const every = Math.max(1, Math.ceil(rows.length / MOST_LINES));
  const kept = rows.filter((_, place) => place % every === 0 || place === rows.length - 1);
  const most = options.bar === undefined ? 0 : Math.max(...rows.map((row) => row[options.bar] || 0));
  const body = kept.map((row) =>
    el("tr", {}, columns.map(([, format], place) => {
      const cell = el("td", { class: number(format) ? "n" : null }, show(row[place], format));
      if (place === options.bar && most) {
        cell.append(el("span", { class: "fill", tone: options.tone, style: { width: `${(100 * (row[place] || 0)) / most}%` } }));
      }
      return cell;
    })),
  );
  const head = el("tr", {}, columns.map(([name, format]) => el("th", { scope: "col", class: number(format) ? "n" : null }, name)));
  const scroll = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": options.label || "Table" },
    el("table", {}, el("thead", {}, head), el("tbody", {}, body)));
  if (every === 1) return scroll;
  return el("div", {}, el("p", { class: "note" }, `Every ${every}th of ${show(rows.length, "count")} lines.`), scroll);
};

// The table behind a plot. It is made when it is opened: pages stay quick with a thousand updates.
report.behind = (label, columns, rows) => {
  const { el } = report;
  const details = el("details", { class: "behind" }, el("summary", {}, "Table"));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(report.table(columns, rows(), { label }));
  });
  return details;
};
