"use strict";
// What is drawn without a canvas: bars, histograms, the split of the time, intervals, verdicts, the configuration.
(() => {
  const { el, show, behind, card } = report;

  const keys = (curves) => (curves.length < 2 ? null : el("div", { class: "legend" }, curves.map((curve) =>
    el("span", { class: "key", tone: curve.tone }, el("span", { class: "dot" }), curve.name))));

  report.bars = (block) => {
    const most = Math.max(1, ...block.series.flatMap((each) => each.values));
    const few = block.series.length <= 2;
    const groups = block.labels.map((label, place) => el("div", { class: "group" },
      el("div", { class: "cols" }, block.series.map((each) => el("div", {
        class: `col${each.values[place] ? " some" : ""}`, tone: each.tone, style: { height: `${(100 * each.values[place]) / most}%` },
        title: `${each.name}: ${show(each.values[place], "count")}`,
      }, few ? el("i", {}, each.values[place] >= 100000 ? show(each.values[place], "short") : show(each.values[place], "count")) : null))),
      el("div", { class: "name" }, label)));
    const said = block.series.map((each) => `${each.name}: ${block.labels.map((label, place) => `${label} ${show(each.values[place], "count")}`).join(", ")}`);
    return card(block, keys(block.series),
      el("div", { class: "bars", role: "img", tabindex: 0, "aria-label": `${block.title}. ${said.join("; ")}` }, groups), el("div", { class: "axis" }, block.x),
      behind(block.title, [[block.x, "text"], ...block.series.map((each) => [each.name, "count"])],
        () => block.labels.map((label, place) => [label, ...block.series.map((each) => each.values[place])])));
  };

  const svg = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };

  // Areas are shares of the rows of each set, so that few chosen rows and many candidates can be compared.
  report.histograms = (block) => {
    const last = block.steps.length - 1;
    const picture = el("div", {});
    const label = el("label", {});
    const id = `slider-${Math.random().toString(36).slice(2)}`;
    label.setAttribute("for", id);
    const draw = (at) => {
      const sets = block.of.filter((set) => set.counts[at].length);
      const filled = sets.map((set) => set.counts[at].flatMap((n, bin) => (n ? [bin] : []))).map((bins, place) => (bins.length ? bins : [0, sets[place].counts[at].length - 1]));
      const low = Math.min(...sets.map((set, place) => set.edges[at][filled[place][0]]));
      const high = Math.max(...sets.map((set, place) => set.edges[at][filled[place].at(-1) + 1]));
      const reach = high - low || 1;
      const heights = sets.map((set) => {
        const total = set.counts[at].reduce((sum, n) => sum + n, 0) || 1;
        return set.counts[at].map((n, bin) => n / total / Math.max(set.edges[at][bin + 1] - set.edges[at][bin], reach / 1000));
      });
      const most = Math.max(...heights.flat(), 1e-300);
      const shape = svg("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", "aria-hidden": "true" });
      sets.map((set, place) => [set, place]).reverse().forEach(([set, place]) => set.counts[at].forEach((n, bin) => {
        if (!n) return;
        const [a, b] = [set.edges[at][bin], set.edges[at][bin + 1]].map((edge) => (1000 * (edge - low)) / reach);
        const tall = Math.max(0.8, (100 * heights[place][bin]) / most);
        const bar = svg("rect", { x: a + 1, y: 100 - tall, width: Math.max(2, b - a - 2), height: tall, rx: 1 });
        bar.style.fill = report.tone(set.tone);
        bar.style.opacity = set.tone === "grey" ? "0.45" : "0.75";
        shape.append(bar);
      }));
      const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => el("span", {}, report.digits(low + part * reach, 3)));
      picture.replaceChildren(shape, el("div", { class: "ticks" }, ticks));
      label.replaceChildren(el("span", { class: "soft" }, last ? `Step ${show(block.steps[at], "count")}, ${at + 1} of ${last + 1}` : `Step ${show(block.steps[at], "count")}`));
    };
    const slider = last ? el("input", { type: "range", id, min: 0, max: last, value: last, oninput: (event) => draw(Number(event.target.value)) }) : null;
    draw(last);
    const rows = () => block.steps.flatMap((step, at) => block.of.flatMap((set) => set.counts[at].map((n, bin) => [step, set.name, set.edges[at][bin], set.edges[at][bin + 1], n])));
    const note = block.of.length > 1 ? "An area is a share of its rows: both sets have the same area in all." : "";
    return card({ ...block, says: note }, keys(block.of), el("div", { class: "hist" }, picture, slider, label),
      behind(block.title, [["step", "count"], ["of", "text"], ["from", "number"], ["to", "number"], ["rows", "count"]], rows));
  };

  const PARTS = { training: 0, deciding: 1, saving: 3, evaluating: 2 };

  report.split = (block) => {
    const bars = block.bars.map((bar) => {
      const total = bar.parts.reduce((sum, [, seconds]) => sum + seconds, 0) || 1;
      const known = bar.parts.filter(([, seconds]) => seconds > 0);
      return el("div", { class: "split-run" },
        block.bars.length > 1 ? el("div", { class: "of-run", tone: bar.tone }, el("span", { class: "dot" }), bar.name) : null,
        el("div", { class: "strip", role: "img", "aria-label": known.map(([name, seconds]) => `${name} ${show(seconds / total, "percent")}`).join(", ") },
          known.map(([name, seconds]) => el("span", { tone: PARTS[name], style: { width: `${(100 * seconds) / total}%` }, title: `${name}: ${show(seconds, "seconds")}` }))),
        el("dl", {}, known.map(([name, seconds]) => [el("dt", {}, el("span", { class: "dot", tone: PARTS[name] }), el("span", {}, name)),
          el("dd", {}, show(seconds, "seconds")), el("dd", {}, show(seconds / total, "percent"))])));
    });
    return card(block, el("div", { class: "split" }, bars),
      behind(block.title, [["run", "text"], ["part", "text"], ["time", "seconds"]], () => block.bars.flatMap((bar) => bar.parts.map(([name, seconds]) => [bar.name, name, seconds]))));
  };

  report.plainTable = (block) => card(block, report.table(block.columns, block.rows,
    { label: block.title, bar: block.bar, tone: block.run === undefined ? 0 : report.data.runs[block.run].tone }));

  report.verdicts = (block) => {
    const own = block.rows.some((row) => row[13] !== null); // corrected for many arms, each has its own level
    const interval = block.level && !own ? `${Math.round(100 * (1 - block.level))} % interval` : "interval";
    const columns = ["arm", "mean ± std", "difference", interval, "p", "won", "verdict", ""];
    const bootstrapped = block.rows.some((row) => row[11] !== null);
    if (bootstrapped) columns.splice(4, 0, "bootstrap");
    const rows = block.rows.map(([arm, mean, std, difference, low, high, p, won, verdict, says, against, least, most, confidence], place) => el("tr", {},
      el("td", { class: "who", tone: block.tones[place] }, el("span", { class: "dot" }), ` ${arm}`),
      el("td", { class: "n" }, mean === null ? "–" : `${show(mean)}${std === null ? "" : ` ± ${show(std)}`}`),
      el("td", { class: "n" }, difference === null ? "–" : signed(difference)),
      el("td", { class: "n" }, low === null || high === null ? "–" : `${signed(low)} to ${signed(high)}${confidence === null ? "" : ` (${show(confidence, "percent")})`}`),
      !bootstrapped ? null : el("td", { class: "n" }, least === null || most === null ? "–" : `${signed(least)} to ${signed(most)}`),
      el("td", { class: "n" }, p === null ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3)),
      el("td", { class: "n" }, won || "–"),
      el("td", {}, verdict ? el("span", { class: `verdict ${verdict}` }, { better: "▲ better", worse: "▼ worse", undecided: "● undecided" }[verdict]) : against ? "" : "held against"),
      el("td", { class: "long" }, says)));
    return card(block, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": block.title },
      el("table", {}, el("thead", {}, el("tr", {}, columns.map((name, place) => el("th", { scope: "col", class: place > 0 && place < (bootstrapped ? 7 : 6) ? "n" : null }, name)))), el("tbody", {}, rows))));
  };

  const signed = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${show(Math.abs(value))}`;

  const short = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${report.digits(Math.abs(value), 2)}`;

  report.intervals = (block) => {
    const ends = block.rows.flatMap((row) => [row.difference, row.low, row.high, 0]).filter((value) => value !== null);
    const room = (Math.max(...ends) - Math.min(...ends)) * 0.06 || 1;
    const [low, high] = [Math.min(...ends) - room, Math.max(...ends) + room];
    const at = (value) => `${(100 * (value - low)) / (high - low)}%`;
    const tracks = block.rows.map((row) => el("div", { class: "interval" },
      el("span", { class: "who", tone: row.tone }, el("span", { class: "dot" }), ` ${row.name}`),
      el("div", { class: "track", tone: row.tone, role: "img", "aria-label": `${row.name}: ${signed(row.difference)}, between ${show(row.low)} and ${show(row.high)}` },
        el("span", { class: "zero", style: { left: at(0) } }),
        row.low === null || row.high === null ? null : el("span", { class: "reach", style: { left: at(row.low), width: `${(100 * (row.high - row.low)) / (high - low)}%` } }),
        el("span", { class: "point", style: { left: at(row.difference) } })),
      el("span", { class: `verdict ${row.verdict}` }, row.verdict)));
    const better = block.lower ? ["← better", "worse →"] : ["← worse", "better →"];
    return card(block, el("div", { class: "intervals" }, tracks, el("div", { class: "interval" }, el("div", { class: "scale" }, el("span", {}, `${better[0]}  ${short(low)}`), el("span", {}, `${short(high)}  ${better[1]}`)))),
      behind(block.title, [["arm", "text"], ["difference", "number"], ["low", "number"], ["high", "number"], ["verdict", "text"]],
        () => block.rows.map((row) => [row.name, row.difference, row.low, row.high, row.verdict])));
  };

  report.config = (block) => {
    const differs = block.columns.length;
    const body = el("tbody", {});
    const fill = (only) => body.replaceChildren(...block.rows.filter((row) => !only || row[differs]).map((row) =>
      el("tr", { class: row[differs] ? "differs" : "plain" }, row.slice(0, differs).map((cell) => el("td", { dir: "auto" }, cell)))));
    const box = el("input", { type: "checkbox", checked: true, onchange: () => fill(box.checked) });
    fill(true);
    return card(block, el("label", { class: "check" }, box, block.filter),
      el("div", { class: "scroll config", tabindex: 0, role: "region", "aria-label": "Configuration" },
        el("table", {}, el("thead", {}, el("tr", {}, block.columns.map((name) => el("th", { scope: "col" }, name)))), body)));
  };
})();
