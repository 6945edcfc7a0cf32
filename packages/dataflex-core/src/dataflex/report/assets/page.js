"use strict";
// The page: its head in words, its sections in order, the theme.
(() => {
  const { el, show, data } = report;
  const kinds = {
    lines: report.lines, stack: report.stack, spread: report.spread, bars: report.bars, histograms: report.histograms, split: report.split,
    table: report.plainTable, verdicts: report.verdicts, intervals: report.intervals, config: report.config, rows: report.rows,
  };
  const main = document.getElementById("main");
  const head = document.getElementById("head");
  const contents = document.getElementById("contents");

  const SHORT = { shares: "Shares", scores: "Scores", rows: "Rows", seen: "Seen", "source-losses": "By source", weights: "Weights", order: "Order" };

  const state = (run) => el("span", { class: `state ${run.state}` }, run.state);
  const notes = (run) => (run.notes.length ? el("ul", { class: "notes" }, run.notes.map((note) => el("li", {}, note))) : null);
  const facts = (run) => el("dl", { class: "facts" }, run.facts.map((fact) => el("div", { class: "fact" }, el("dt", {}, fact.name), el("dd", {}, fact.value, el("small", {}, fact.of)))));
  const says = (run) => el("ul", { class: "says" }, run.says.map((sentence) => el("li", {}, sentence)));

  function one(run) {
    head.append(el("div", {},
      el("div", { class: "top" }, state(run), el("span", { class: "soft" }, run.state_says)),
      el("h1", {}, run.name), el("p", { class: "does" }, run.does), says(run), facts(run), notes(run)));
  }

  const swatch = (run) => el("div", { class: "of-run", tone: run.tone }, el("span", { class: "dot" }), run.name);

  function several(runs) {
    head.append(el("h1", {}, document.title));
    if (data.verdict) head.append(el("ul", { class: "says" }, data.verdict.map((sentence) => el("li", {}, sentence))));
    else head.append(...runsTable(runs));
  }

  function runsTable(runs) {
    const columns = ["run", "what it does", "state", "steps", "updates", "rows seen", "deciding", "time", "eval loss"];
    const lines = runs.map((run) => el("tr", {},
      el("td", { class: "who", tone: run.tone }, el("span", { class: "dot" }), ` ${run.name}`), el("td", {}, run.does), el("td", {}, state(run)),
      ...[[run.line.step, "count"], [run.line.updates, "count"], [run.line.seen, "count"], [run.line.deciding, "percent"], [run.line.seconds, "seconds"], [run.line.eval, "loss"]].map(([value, format]) => el("td", { class: "n" }, show(value, format)))));
    const table = el("div", { class: "card", style: { "margin-top": "20px" } }, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "The runs" },
      el("table", {}, el("thead", {}, el("tr", {}, columns.map((name, place) => el("th", { scope: "col", class: place > 2 ? "n" : null }, name)))), el("tbody", {}, lines))));
    const words = (run) => [el("p", { class: "soft" }, run.state_says), says(run), notes(run)];
    const each = runs.length <= 3
      ? el("div", { class: "grid" }, runs.map((run) => el("article", { class: "card" }, swatch(run), words(run))))
      : el("div", { class: "runs-says" }, runs.map((run) => el("details", {}, el("summary", {}, run.name), words(run))));
    const some = data.panels < runs.length ? [el("p", { class: "notes" }, `Plots of single runs are drawn for ${data.panels} of the ${runs.length} runs; curves of all of them.`)] : [];
    return [table, ...some, each];
  }

  const link = (id, title) => contents.append(el("a", { href: `#${id}` }, title));

  function section(found) {
    link(found.id, SHORT[found.id] || found.title);
    const node = el("section", { class: "section", id: found.id, "aria-labelledby": `${found.id}-title` },
      el("h2", { id: `${found.id}-title` }, found.title), ...found.lead.map((sentence) => el("p", { class: "lead" }, sentence)));
    node.append(el("div", { class: "grid" }, found.blocks.map((block) => kinds[block.kind](block))));
    evened(node.querySelector(".grid"));
    main.append(node);
  }

  // Two cards stand side by side: one that is left over takes the whole line.
  function evened(grid) {
    let left = null;
    for (const card of [...grid.children, null]) {
      if (card !== null && !card.classList.contains("wide")) left = left ? null : card;
      else {
        if (left) left.classList.add("wide");
        left = null;
      }
    }
  }

  function warnings(runs) {
    const warned = runs.filter((run) => run.warnings.length);
    if (!warned.length) return;
    link("warnings", "Warnings");
    const cards = warned.map((run) => el("article", { class: "card wide" },
      runs.length > 1 ? swatch(run) : null,
      el("ul", { class: "warnings" }, run.warnings.map(([text, times]) => el("li", { dir: "auto" }, times > 1 ? `${text} (${show(times, "count")} times)` : text)))));
    main.append(el("section", { class: "section", id: "warnings", "aria-labelledby": "warnings-title" }, el("h2", { id: "warnings-title" }, "Warnings of the run"), el("div", { class: "grid" }, cards)));
  }

  // The theme is the system's until a person chooses one; a page on disk may have no place to remember it.
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("dataflex-theme"); } catch { /* not allowed here */ }
  function theme(name) {
    root.dataset.theme = name;
    button.textContent = name === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Show in ${name === "dark" ? "light" : "dark"} colours`);
    report.redraw();
  }
  const now = () => (chosen === "dark" || chosen === "light" ? chosen : system.matches ? "dark" : "light");
  button.addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("dataflex-theme", chosen); } catch { /* not allowed here */ }
    theme(chosen);
  });
  system.addEventListener("change", () => theme(now()));
  window.addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    report.redraw(true);
  });
  window.addEventListener("afterprint", () => theme(now()));

  theme(now());
  if (data.runs.length === 1) one(data.runs[0]);
  else several(data.runs);
  for (const found of data.sections) {
    section(found);
    if (found.id === "comparison") {
      link("runs", "The runs");
      main.append(el("section", { class: "section", id: "runs", "aria-labelledby": "runs-title" }, el("h2", { id: "runs-title" }, "The runs"), ...runsTable(data.runs)));
    }
  }
  warnings(data.runs);
  document.getElementById("foot").append(`Made by dataflex-cli report on ${data.made} from ${data.runs.map((run) => run.folder).join(", ")}. This page asks no server for anything.`);

  const links = new Map([...contents.children].map((each) => [each.getAttribute("href").slice(1), each]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const each of links.values()) each.removeAttribute("aria-current");
      const current = links.get(entry.target.id);
      if (!current) continue;
      current.setAttribute("aria-current", "true");
      contents.scrollTo({ left: current.offsetLeft - contents.clientWidth / 2 });
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const id of links.keys()) seen.observe(document.getElementById(id));
})();
