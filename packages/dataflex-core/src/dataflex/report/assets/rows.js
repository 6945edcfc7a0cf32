"use strict";
// The rows: lists, a search over their texts, and for each row the target rows that pulled it.
(() => {
  const { el, show } = report;
  const PAGE = report.data.runs.length > 1 ? 6 : 15;
  const LISTS = {
    most: "Most chosen", least: "Least chosen", last: "Chosen last", never: "Never chosen", high: "Highest score", low: "Lowest score",
    heavy: "Weighs most", light: "Weighs least", explained: "With a why", all: "All rows here",
  };

  report.rows = (block) => {
    const decided = block.chosen.length > 0;
    const titles = decided ? LISTS : { ...LISTS, never: "Never seen" };
    const names = Object.keys(LISTS).sort((one, other) => (decided ? 0 : (one === "never") - (other === "never")));
    const lists = { ...block.lists, all: block.row.map((_, place) => place) };
    const cut = new Set(block.cut);
    let list = names.find((name) => lists[name] && lists[name].length);
    let shown = PAGE;
    let query = "";
    let first = true; // at the start one row shows why it was chosen
    let lowered = null; // texts in lower case, made at the first search

    // A row of a stream is counted within it.
    const number = (place) => block.row[place] - (block.firsts.length && block.source.length ? block.firsts[block.source[place]] : 0);
    const source = (place) => (block.source.length ? block.sources[block.source[place]] : block.named[place]);

    const matches = () => {
      const word = query.trim().toLowerCase();
      if (!word) return lists[list];
      lowered = lowered || block.text.map((text, place) => `${text || ""}\n${source(place) || ""}`.toLowerCase());
      const wanted = /^#?\d+$/.test(word) ? Number(word.replace("#", "")) : null;
      const is = (place) => number(place) === wanted || block.row[place] === wanted;
      const found = lists.all.filter((place) => is(place) || lowered[place].includes(word));
      return wanted === null ? found : found.sort((a, b) => is(b) - is(a));
    };

    const body = el("ol", { class: "rows" });
    const count = el("p", { class: "found", role: "status" });
    const more = el("button", { type: "button", class: "more", onclick: () => { shown += PAGE; fill(); } }, "Show more rows");

    function fill() {
      const found = matches();
      body.replaceChildren(...found.slice(0, shown).map(row));
      const of = query.trim() ? `${show(found.length, "count")} ${found.length === 1 ? "row matches" : "rows match"}` : `${titles[list]}: ${show(found.length, "count")} rows`;
      count.textContent = found.length > shown ? `${of}; the first ${show(shown, "count")} are shown.` : `${of}.`;
      more.classList.toggle("hidden", found.length <= shown);
    }

    function row(place) {
      const text = block.text[place];
      const facts = [];
      if (decided) facts.push(`chosen ${show(block.chosen[place], "count")} ×`);
      facts.push(`seen ${show(block.times[place], "count")} ×`);
      if (block.score.length && block.score[place] !== null) facts.push(`score ${show(block.score[place])}`);
      if (block.weight.length && block.weight[place] !== null) facts.push(`weight ${show(block.weight[place])}`);
      const named = source(place);
      const tone = block.source.length ? block.tones[block.source[place]] : "grey";
      const item = el("li", { class: "row", "data-row": block.row[place] });
      const shownText = !block.with_text ? null : text === null ? el("p", { class: "text none" }, "The record has no text of this row, or the page no room for it.") : marked(text, place);
      const acts = el("div", { class: "acts" });
      const why = block.why[place];
      if (why) {
        const button = el("button", { type: "button", "aria-expanded": "false", onclick: () => toggleWhy(item, button, why) }, "Why this row?");
        acts.append(button);
        if (first) queueMicrotask(() => toggleWhy(item, button, why));
        first = false;
      }
      item.append(
        el("div", { class: "what" }, el("b", {}, `Row ${number(place)}`),
          named ? el("span", { class: "src", tone }, el("span", { class: "dot" }), named) : null, ...facts.map((fact) => el("span", {}, fact))),
        el("div", {}, shownText, acts));
      if (text !== null) requestAnimationFrame(() => offerAll(item, shownText, acts, place));
      return item;
    }

    // A button for what does not fit; asked of the layout, which alone knows how long three lines are.
    function offerAll(item, node, acts, place) {
      if (!node.classList.contains("short")) return;
      if (node.scrollHeight <= node.clientHeight + 2 && !cut.has(place) && !block.skip[place]) return;
      const button = el("button", {
        type: "button", "aria-expanded": "false",
        onclick: () => {
          const open = node.classList.toggle("short") === false;
          write(node, place, open);
          button.setAttribute("aria-expanded", String(open));
          button.textContent = open ? "Less" : "All of it";
        },
      }, "All of it");
      acts.prepend(button);
    }

    function marked(text, place) {
      const node = el("p", { class: "text short", dir: "auto" });
      write(node, place, false);
      return node;
    }

    // Closed, a text begins after what all of its source begin with, and before what was searched for.
    function write(node, place, open) {
      const text = block.text[place];
      node.replaceChildren();
      const word = query.trim().toLowerCase();
      const whole = cut.has(place) ? `${text} …` : text;
      const at = word ? whole.toLowerCase().indexOf(word) : -1;
      const skip = open ? 0 : block.skip[place];
      if (at < 0) node.append(skip ? `… ${whole.slice(skip)}` : whole);
      else {
        const from = open ? 0 : at > skip + 160 ? at - 60 : at < skip ? 0 : skip;
        node.append(from ? "… " : "", whole.slice(from, at), el("mark", {}, whole.slice(at, at + word.length)), whole.slice(at + word.length));
      }
    }

    function toggleWhy(item, button, why) {
      const open = item.querySelector(".why");
      button.setAttribute("aria-expanded", String(!open));
      if (open) open.remove();
      else item.append(report.why(block, why));
    }

    const chips = el("div", { class: "chips", role: "group", "aria-label": "Which rows" }, names.filter((name) => lists[name] && lists[name].length).map((name) =>
      el("button", {
        type: "button", "aria-pressed": String(name === list), "data-list": name,
        onclick: (event) => {
          list = name;
          shown = PAGE;
          query = search.value = "";
          for (const chip of event.currentTarget.parentElement.children) chip.setAttribute("aria-pressed", String(chip === event.currentTarget));
          fill();
        },
      }, titles[name])));
    const search = el("input", {
      type: "search", placeholder: "Search text, source or row number", "aria-label": "Search text, source or row number",
      oninput: () => { query = search.value; shown = PAGE; fill(); },
    });
    fill();
    return report.card({ ...block, title: "", says: extent(block), wide: true }, el("div", { class: "tools" }, search), chips, count, body, more);
  };

  function extent(block) {
    const total = block.total === null ? "" : ` of the ${show(block.total, "count")} rows`;
    if (!block.with_text) return `No text is recorded. The rows of the lists are here by number${block.total === null ? "" : `, out of ${show(block.total, "count")}`}.`;
    const short = block.shown_with_text < block.with_text ? ` The record has the text of ${show(block.with_text, "count")}; for more of them the page has no room.` : "";
    const cut = block.cut_at < 2000 ? ` Texts are cut at ${show(block.cut_at, "count")} characters.` : "";
    return `The text of ${show(block.shown_with_text, "count")}${total} is here and searched.${short}${cut}`;
  }

  // Shares are of the row's score: a negative one pulled it down.
  report.why = (block, why) => {
    const what = why.weight ? "weight" : "score";
    const value = why.value === null ? "" : ` ${show(why.value)}`;
    const cost = why.seconds === null ? "" : ` Explaining the rows of that update took ${show(why.seconds, "seconds")}.`;
    const most = Math.max(1e-9, ...why.targets.map(([, , , share]) => Math.abs(share || 0)), 1);
    const targets = why.targets.map(([key, set, row, share]) => {
      const found = block.targets[key];
      return el("li", { class: "target" },
        el("div", { class: "share" }, el("span", {}, `${set ? `${set}, ` : ""}target row ${show(row, "count")}`), el("b", {}, share === null ? "–" : `${show(share, "percent").replace("-", "−")} of the ${what}`)),
        el("div", { class: "meter" }, el("span", { class: (share || 0) < 0 ? "minus" : null, style: { width: `${(100 * Math.abs(share || 0)) / most}%` } })),
        found ? el("p", { class: "text", dir: "auto" }, `${found.skip ? "… " : ""}${found.text.slice(found.skip)}${found.cut ? " …" : ""}`) : el("p", { class: "text none" }, "The record has no text of this target row."));
    });
    const at = why.update === null ? `step ${show(why.step, "count")}` : `update ${why.update}, step ${show(why.step, "count")}`;
    return el("div", { class: "why" },
      el("p", {}, targets.length ? `The target rows that pulled it most, by ${why.component} at ${at}; its ${what} there:${value || " not known"}.${cost}` : `No target row is named, by ${why.component} at ${at}.`),
      el("ul", { class: "targets" }, targets));
  };
})();
