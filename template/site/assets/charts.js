// Draw the charts with uPlot, each with its numbers as a table.
"use strict";
window.drawCharts = function (page) {
  const names = window.NAMES;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const colors = {
    light: ["#0b5cc2", "#b35900", "#14703f", "#a3276f", "#5b4bb5", "#0a7583", "#8c3b2a", "#5f6b00", "#59636e"],
    dark: ["#74abff", "#f0a35e", "#5fce93", "#ee8cc2", "#b3a5ff", "#5cc9d6", "#e5917f", "#c3cf57", "#9aa5b1"],
  };

  function style(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  // Return the blocks, and the lines as {title, values, isBest}.
  function content(kind, view) {
    const own = kind.startsWith("own") ? window.HOTKEY[view] : window.HISTORY;
    const validator = names.validators[own.validator];
    const best = { title: "Best loss", values: validator.best, isBest: true };
    const title = (series) => page.short(names.hotkeys[series.hotkey][0]);
    if (kind === "losses") {
      return [validator.blocks, [best, ...own.series.map((s) => ({ title: title(s), values: s.loss }))]];
    }
    if (kind === "weights") return [validator.blocks, own.series.map((s) => ({ title: title(s), values: s.weight }))];
    if (kind === "own-loss") return [validator.blocks, [best, { title: "This hotkey", values: own.loss }]];
    return [validator.blocks, [{ title: "This hotkey", values: own.weight }]];
  }

  function options(blocks, lines, isWeight, width) {
    const palette = dark.matches ? colors.dark : colors.light;
    const show = isWeight ? page.percent : page.number;
    const axis = { stroke: style("--dim"), grid: { stroke: style("--line"), width: 1 }, ticks: { show: false } };
    let turn = 0;
    // Without a pointer over the chart, the legend shows the newest values.
    const legend = (values, format) => (_, value, __, index) => {
      const shown = index === null || index === undefined ? values[values.length - 1] : value;
      return shown === null || shown === undefined ? "-" : format(shown);
    };
    return {
      width,
      height: Math.max(200, Math.min(300, Math.round(width * 0.34))),
      scales: { x: { time: false }, y: isWeight ? { range: (_, low, high) => [0, Math.max(0.01, 1.05 * high)] } : {} },
      cursor: { y: false },
      axes: [
        { ...axis, values: (_, ticks) => ticks.map(String), space: 70, size: 34 },
        { ...axis, size: 58, values: (_, ticks) => ticks.map((tick) => (isWeight ? (tick * 100).toFixed(0) + "%" : String(+tick.toFixed(4)))) },
      ],
      series: [
        { label: "Block", value: legend(blocks, String) },
        ...lines.map((line) => ({
          label: line.title,
          stroke: line.isBest ? style("--text") : palette[turn++ % palette.length],
          width: line.isBest ? 2 : 1.5,
          // A value holds from its round to the next one.
          paths: uPlot.paths.stepped({ align: 1 }),
          dash: line.isBest ? [6, 4] : undefined,
          points: { show: line.values.length < 40, size: 5 },
          value: legend(line.values, show),
        })),
      ],
    };
  }

  function numbers(blocks, lines, isWeight) {
    const show = isWeight ? page.percent : page.number;
    const columns = [
      ["Block", "", (index) => String(blocks[index])],
      ...lines.map((line) => [line.title, "num", (index) => (line.values[index] === null ? "-" : show(line.values[index]))]),
    ];
    const rows = blocks.map((_, index) => index).reverse();
    return page.table("The numbers of this chart, newest first.", columns, rows);
  }

  function draw(figure) {
    const kind = figure.dataset.chart;
    const isWeight = kind.endsWith("weights") || kind.endsWith("weight");
    const [blocks, lines] = content(kind, Number(figure.dataset.view));
    const place = page.make("div", "plot");
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", figure.querySelector("figcaption").textContent.trim() + " The numbers are in the table below.");
    const region = page.make("div", "scroll");
    region.tabIndex = 0;
    region.setAttribute("role", "region");
    region.setAttribute("aria-label", "Numbers of the chart");
    const details = page.make("details", "", [page.make("summary", "", "Show the numbers"), region]);
    details.addEventListener("toggle", () => {
      if (details.open && !region.firstChild) region.append(numbers(blocks, lines, isWeight));
    });
    figure.append(place, details);
    let plot = null;
    function redraw() {
      if (plot) plot.destroy();
      const width = place.clientWidth;
      plot = new uPlot(options(blocks, lines, isWeight, width), [blocks, ...lines.map((line) => line.values)], place);
    }
    redraw();
    dark.addEventListener("change", redraw);
    let last = place.clientWidth;
    new ResizeObserver(() => {
      if (place.clientWidth !== last) {
        last = place.clientWidth;
        redraw();
      }
    }).observe(place);
  }

  for (const figure of document.querySelectorAll("[data-chart]")) draw(figure);
};
