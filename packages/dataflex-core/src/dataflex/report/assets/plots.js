"use strict";
// Plots over steps, drawn by uPlot when they come into sight, and drawn anew in the colours of a theme that is chosen.
(() => {
  const { el, show } = report;
  const waiting = new Map(); // element -> what draws into it
  const drawn = new Map(); // element -> plot
  const height = () => (window.innerWidth < 640 ? 220 : 260);

  const sight = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { rootMargin: "300px" });

  const size = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const plot = drawn.get(target);
      if (plot && target.clientWidth && plot.width !== target.clientWidth) plot.setSize({ width: target.clientWidth, height: height() });
    }
  });

  function draw(box) {
    const made = waiting.get(box);
    if (!made || drawn.has(box) || !box.clientWidth) return;
    const plot = new uPlot(...made(box.clientWidth, height()), box);
    drawn.set(box, plot);
    box.dispatchEvent(new CustomEvent("drawn", { detail: plot }));
    size.observe(box);
  }

  report.redraw = (all) => {
    for (const [box, plot] of [...drawn]) { // a copy: drawing adds to it
      plot.destroy();
      drawn.delete(box);
      draw(box);
    }
    if (all) for (const box of [...waiting.keys()]) draw(box);
  };

  report.drawAgain = (box) => {
    if (drawn.has(box)) {
      drawn.get(box).destroy();
      drawn.delete(box);
    }
    draw(box);
  };

  // A box for a plot. Left and right move through its points, for who has no mouse.
  function plotBox(label, made) {
    const box = el("div", { class: "plot", role: "img", tabindex: 0, "aria-label": label });
    box.addEventListener("keydown", (event) => {
      draw(box);
      const plot = drawn.get(box);
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!plot || !way) return;
      event.preventDefault();
      const last = plot.data[0].length - 1;
      const at = Math.min(last, Math.max(0, (plot.cursor.idx ?? (way > 0 ? -1 : last + 1)) + way));
      plot.setCursor({ left: plot.valToPos(plot.data[0][at], "x"), top: plot.over.clientHeight / 2 });
    });
    waiting.set(box, made);
    sight.observe(box);
    return box;
  }

  const font = () => `12px ${getComputedStyle(document.body).fontFamily}`;

  function axes(block, format) {
    const soft = report.style("--soft");
    const grid = { stroke: report.style("--grid"), width: 1 };
    const common = { stroke: soft, font: font(), labelFont: font(), grid, ticks: { ...grid, size: 4 } };
    const ticks = (plot, values) => values.map((value) => (value === null ? "" : tick(value, format)));
    return [
      { ...common, size: 32, space: 70, label: block.x === "place" ? "% of the arranged rows" : "step", labelSize: 16, labelGap: 0, values: (plot, values) => values.map((v) => (v % 1 ? "" : report.formats.count(v))) },
      { ...common, values: ticks, size: (plot, values) => 18 + 7 * Math.max(3, ...(values || [""]).map((v) => String(v).length)) },
    ];
  }

  function tick(value, format) {
    if (format === "percent") return `${report.digits(100 * value, 4)} %`;
    if (Math.abs(value) >= 10000) return report.formats.short(value);
    return value.toLocaleString("en", { maximumSignificantDigits: 6 });
  }

  const xScale = { time: false, range: (plot, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) };

  function yRange(zero) {
    return (plot, low, high) => {
      if (low === null || high === null) return [0, 1];
      if (zero) return [0, high > 0 ? high * 1.08 : 1];
      const room = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
      return [low - room, high + room];
    };
  }

  // The updates, as ticks at the foot of the plot; few of them as lines through it as well.
  function markUpdates(marks) {
    return (plot) => {
      const { ctx, bbox } = plot;
      const ratio = devicePixelRatio || 1;
      ctx.save();
      marks.forEach((mark, place) => {
        const colour = mark.tone === "grey" ? report.style("--ink") : report.colour(mark.tone);
        for (const step of mark.x) {
          const x = Math.round(plot.valToPos(step, "x", true));
          if (x < bbox.left || x > bbox.left + bbox.width) continue;
          if (marks.length === 1 && mark.x.length <= 40) {
            ctx.strokeStyle = report.faint(report.style("--soft"), 0.28);
            ctx.setLineDash([2 * ratio, 3 * ratio]);
            ctx.lineWidth = ratio;
            ctx.beginPath();
            ctx.moveTo(x, bbox.top);
            ctx.lineTo(x, bbox.top + bbox.height);
            ctx.stroke();
          }
          ctx.fillStyle = colour;
          const foot = bbox.top + bbox.height - 5 * ratio * place;
          ctx.fillRect(x - ratio / 2, foot - 7 * ratio, 1.5 * ratio, 7 * ratio);
        }
      });
      ctx.restore();
    };
  }

  // The values under the pointer; without one, those at the end.
  function readout(parts) {
    const line = el("p", { class: "readout", "aria-live": "off" });
    const update = (plot) => {
      const at = plot.cursor.idx ?? plot.data[0].length - 1;
      line.replaceChildren(...parts(plot, at).flatMap(([name, value]) => [`${name} `, el("b", {}, value), "   "]));
    };
    return [line, update];
  }

  function legend(curves, toggle) {
    const many = curves.length > 12 ? curves.filter((curve) => curve.tone === "grey") : [];
    const rest = many.length < 2 ? null : el("button", {
      type: "button", tone: "grey", "aria-pressed": "true",
      onclick: (event) => {
        const on = event.currentTarget.getAttribute("aria-pressed") !== "true";
        event.currentTarget.setAttribute("aria-pressed", String(on));
        curves.forEach((curve, place) => { if (curve.tone === "grey") toggle(place, on); });
      },
    }, el("span", { class: "line" }), `${many.length} others`);
    return el("div", { class: "legend" }, curves.map((curve, place) => {
      if (rest && curve.tone === "grey") return null;
      const key = el("span", { class: `line${curve.style === "dashed" || curve.dash ? " dashed" : ""}` });
      return el("button", {
        type: "button", tone: curve.tone, "aria-pressed": "true",
        onclick: (event) => {
          const on = event.currentTarget.getAttribute("aria-pressed") !== "true";
          event.currentTarget.setAttribute("aria-pressed", String(on));
          toggle(place, on);
        },
      }, key, curve.name);
    }), rest);
  }

  // One y for each x: of two points at one step the later stands.
  function unique(curve) {
    const x = [], y = [];
    curve.x.forEach((value, place) => {
      if (x.length && x[x.length - 1] === value) y[y.length - 1] = curve.y[place];
      else {
        x.push(value);
        y.push(curve.y[place]);
      }
    });
    return [x, y];
  }

  const styles = {
    line: (n) => ({ width: 2, points: { show: n < 2, size: 7 } }),
    points: (n) => ({ width: 2, points: { show: n <= 60, size: 7 } }),
    dashed: (n) => ({ width: 1.5, dash: [6, 4], points: { show: n < 2, size: 6 } }),
    stepped: (n) => ({ width: 2, points: { show: n < 2, size: 7 }, paths: uPlot.paths.stepped({ align: 1 }) }),
  };

  report.lines = (block) => {
    const curves = block.series;
    const format = block.format || "number";
    const shownFormat = block.y === "loss" ? "loss" : format;
    const hidden = new Set();
    const data = uPlot.join(curves.map(unique));
    const xName = block.x || "step";
    const [line, update] = readout((plot, at) => [
      [xName, show(plot.data[0][at])],
      ...curves.map((curve, place) => [curve.name, nearest(plot.data[place + 1], at), place])
        .filter(([, value, place]) => value !== null && !hidden.has(place) && (curves.length <= 12 || curves[place].tone !== "grey"))
        .map(([name, value]) => [name, show(value, shownFormat)]),
    ]);
    const label = `${block.title}. ${curves.map((curve) => said(curve, shownFormat)).slice(0, 8).join("; ")}`;
    const box = plotBox(label, (width, tall) => [{
      width, height: tall, legend: { show: false }, padding: [10, 24, 0, 0],
      scales: { x: xScale, y: { range: yRange(block.zero) } },
      axes: axes(block, format),
      cursor: { points: { size: 8 }, y: false },
      series: [{}, ...curves.map((curve, place) => ({
        label: curve.name, stroke: report.colour(curve.tone), show: !hidden.has(place),
        ...styles[curve.style](curve.x.length), ...(curve.dash ? { dash: report.dashes[curve.dash] } : {}),
      }))],
      hooks: { draw: block.marks ? [markUpdates(block.marks.filter((mark) => mark.x.length))] : [], ready: [update], setCursor: [update] },
    }, data]);
    const toggle = (place, on) => {
      if (on) hidden.delete(place);
      else hidden.add(place);
      const plot = drawn.get(box);
      if (plot) {
        plot.setSeries(place + 1, { show: on });
        update(plot);
      }
    };
    const alone = curves.length === 1;
    return report.card(block, alone ? null : legend(curves, toggle), box, line, report.behind(block.title,
      [[xName, "count"], ...curves.map((curve) => [curve.name, shownFormat])],
      () => data[0].map((x, at) => [x, ...data.slice(1).map((column) => column[at] ?? null)])));
  };

  function said(curve, format) {
    const known = curve.y.filter((value) => value !== null);
    return known.length ? `${curve.name}: from ${show(known[0], format)} to ${show(known[known.length - 1], format)}` : curve.name;
  }

  // The value at a place, or the last one before it: curves of other steps are joined into one table.
  function nearest(column, at) {
    for (let place = at; place >= 0; place--) if (column[place] !== undefined && column[place] !== null) return column[place];
    return null;
  }

  report.stack = (block) => {
    const names = block.names;
    const units = Object.keys(block.units);
    let unit = block.planned.tokens && !block.planned.rows && block.units.tokens ? "tokens" : units[0];
    const x = [...block.x, block.end];
    const extended = (column) => [...column, column[column.length - 1]];
    const cumulated = (columns) => {
      const sums = new Array(x.length).fill(0);
      return columns.map(extended).map((column) => column.map((value, at) => (value === null ? null : (sums[at] += value))));
    };
    let lined = x.length <= 60; // more of them hide what they stand on
    const values = () => [x, ...cumulated(block.units[unit]).reverse(), ...(lined && block.planned[unit] ? cumulated(block.planned[unit]).slice(0, -1) : [])];
    const tones = block.tones;
    const [line, update] = readout((plot, at) => [
      ["step", show(x[at])],
      ...names.map((name, place) => {
        const planned = block.planned[unit] && extended(block.planned[unit][place])[at];
        return [name, `${show(extended(block.units[unit][place])[at], "percent")}${typeof planned === "number" ? ` (planned ${show(planned, "percent")})` : ""}`];
      }),
    ]);
    const box = plotBox(`${block.title || "Shares of the sources"}: ${names.map((name, place) => `${name} ${show(block.units[unit][place].at(-1), "percent")} at the end`).join("; ")}`, (width, tall) => {
      const count = names.length;
      const areas = names.map((name, place) => ({ label: name, stroke: report.style("--panel"), width: x.length > 100 ? 0 : 1, place })).reverse();
      const planned = lined && block.planned[unit] ? count - 1 : 0;
      return [{
        width, height: tall, legend: { show: false }, padding: [10, 24, 0, 0],
        scales: { x: xScale, y: { range: [0, 1] } },
        axes: axes(block, "percent"),
        cursor: { points: { show: false }, y: false },
        series: [{}, ...areas.map((area) => ({
          ...area, fill: report.faint(report.colour(tones[area.place]), 0.82), paths: uPlot.paths.stepped({ align: 1 }), points: { show: false },
        })), ...Array.from({ length: planned }, () => ({
          stroke: report.style("--ink"), width: 1.5, dash: [6, 4], paths: uPlot.paths.stepped({ align: 1 }), points: { show: false },
        }))],
        bands: names.slice(1).map((_, place) => ({ series: [place + 1, place + 2] })),
        hooks: { draw: [markUpdates([block.marks])], ready: [update], setCursor: [update] },
      }, values()];
    });
    const keys = el("div", { class: "legend" }, names.map((name, place) => el("span", { class: "key", tone: tones[place] }, el("span", { class: "dot" }), name)),
      Object.keys(block.planned).length ? el("button", {
        type: "button", "aria-pressed": String(lined),
        onclick: (event) => {
          lined = !lined;
          event.currentTarget.setAttribute("aria-pressed", String(lined));
          report.drawAgain(box);
        },
      }, el("span", { class: "line dashed", style: { "border-color": "var(--ink)" } }), "planned") : null);
    const choose = units.length < 2 ? null : el("div", { class: "units", role: "group", "aria-label": "Shares of" }, units.map((each) =>
      el("button", {
        type: "button", "aria-pressed": String(each === unit),
        onclick: (event) => {
          unit = each;
          for (const button of event.currentTarget.parentElement.children) button.setAttribute("aria-pressed", String(button === event.currentTarget));
          report.drawAgain(box);
        },
      }, `in ${each}`)));
    const shares = Object.entries(block.units).flatMap(([each, columns]) => names.map((name, place) => [`${name}, ${each}`, columns[place]]))
      .concat(Object.entries(block.planned).flatMap(([each, columns]) => names.map((name, place) => [`${name}, planned in ${each}`, columns[place]])));
    return report.card(block, choose, keys, box, line, report.behind(block.title || "Shares of the sources",
      [["step", "count"], ...shares.map(([name]) => [name, "percent"])],
      () => block.x.map((step, at) => [step, ...shares.map(([, column]) => column[at])])));
  };

  const FEW = 40; // up to here a box for each update, beyond it bands

  report.spread = (block) => {
    const parts = ["min", "q1", "median", "q3", "max"];
    const known = block.chosen.q1.some((value) => value !== null);
    const sets = [["chosen rows", block.chosen, block.tone], ...(block.candidates ? [["all candidates", block.candidates, "grey"]] : [])];
    const data = [block.x, ...sets.flatMap(([, of]) => parts.map((part) => of[part]))];
    const few = block.x.length <= FEW;
    const [first, last] = [block.x[0], block.x[block.x.length - 1]];
    const room = few ? (last - first || 2) / Math.max(2, block.x.length) / 1.5 : first === last ? 1 : 0;
    const edges = [first - room, last + room];
    const [line, update] = readout((plot, at) => [
      ["step", show(block.x[at])],
      ...sets.flatMap(([name, of]) => [[`${name}: median`, show(of.median[at])], ...(known ? [["half between", `${show(of.q1[at])} and ${show(of.q3[at])}`]] : []), ["all between", `${show(of.min[at])} and ${show(of.max[at])}`]]),
    ]);
    const box = plotBox(`${block.title}: median of the chosen rows from ${show(block.chosen.median[0])} to ${show(block.chosen.median.at(-1))}`, (width, tall) => [{
      width, height: tall, legend: { show: false }, padding: [10, 24, 0, 0],
      scales: { x: { ...xScale, range: () => edges }, y: { range: yRange(false) } },
      axes: axes(block, "number"),
      cursor: { points: { show: false }, y: false },
      series: [{}, ...sets.flatMap(([, , tone]) => parts.map((part) => ({
        label: part, points: { show: false }, stroke: part === "median" ? report.colour(tone) : "transparent", width: part === "median" ? 2 : 0,
        ...(few ? { paths: () => null } : {}), ...(tone === "grey" && part === "median" ? { dash: [5, 4] } : {}),
      })))],
      bands: few ? [] : sets.flatMap(([, , tone], place) => [
        { series: [5 * place + 5, 5 * place + 1], fill: report.faint(report.colour(tone), 0.14) },
        { series: [5 * place + 4, 5 * place + 2], fill: report.faint(report.colour(tone), 0.3) },
      ]),
      hooks: { draw: few ? [boxes(sets)] : [], ready: [update], setCursor: [update] },
    }, data]);
    const keys = sets.length < 2 ? null : el("div", { class: "legend" }, sets.map(([name, , tone]) => el("span", { class: "key", tone }, el("span", { class: "dot" }), name)));
    return report.card(block, keys, box, line, report.behind(block.title,
      [["step", "count"], ...sets.flatMap(([name]) => parts.map((part) => [`${name}, ${part}`, "number"]))],
      () => block.x.map((step, at) => [step, ...data.slice(1).map((column) => column[at])])));
  };

  function boxes(sets) {
    return (plot) => {
      const { ctx, bbox } = plot;
      const ratio = devicePixelRatio || 1;
      const count = plot.data[0].length;
      const wide = Math.min(22 * ratio, (bbox.width / count) * 0.6) / sets.length;
      ctx.save();
      sets.forEach(([, of, tone], place) => {
        const colour = report.colour(tone);
        plot.data[0].forEach((step, at) => {
          const x = plot.valToPos(step, "x", true) + (place - (sets.length - 1) / 2) * wide * 1.15;
          const y = (part) => (of[part][at] === null ? null : plot.valToPos(of[part][at], "y", true));
          const [low, q1, median, q3, high] = ["min", "q1", "median", "q3", "max"].map(y);
          ctx.strokeStyle = colour;
          ctx.lineWidth = 1.5 * ratio;
          ctx.beginPath();
          if (low !== null && high !== null) { ctx.moveTo(x, low); ctx.lineTo(x, high); }
          ctx.stroke();
          if (q1 !== null && q3 !== null) {
            ctx.fillStyle = report.style("--panel");
            ctx.fillRect(x - wide / 2, q3, wide, q1 - q3);
            ctx.fillStyle = report.faint(colour, 0.35);
            ctx.fillRect(x - wide / 2, q3, wide, q1 - q3);
            ctx.strokeRect(x - wide / 2, q3, wide, q1 - q3);
          }
          if (median !== null) {
            ctx.lineWidth = 3 * ratio;
            ctx.beginPath();
            ctx.moveTo(x - wide / 2, median);
            ctx.lineTo(x + wide / 2, median);
            ctx.stroke();
          }
        });
      });
      ctx.restore();
    };
  }
})();
