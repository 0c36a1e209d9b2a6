"use strict";
// Draws the charts of the JSON in #data; redraws them when a run is switched off or the colour scheme changes.

const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#3b82f6", "#e07b00", "#10a36b", "#d6409f", "#8b5cf6", "#0ea5b7", "#84a312", "#e5484d"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const several = DATA.runs.length > 1;
const boxes = [...document.querySelectorAll("#runs input")];
const isOn = (run) => boxes[run].checked;
const LAST = Math.max(0, ...DATA.runs.map((run) => run.steps.at(-1) ?? 0));
const colour = (index) => COLOURS[index % COLOURS.length];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// Plotly reads a little HTML (<b>, <a href>) in names; a run's or a signal's name is plain text.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

/** The points of one metric. A few sparse values are joined; in a dense column a missing value is a gap in the line. */
function points(run, metric, chart) {
  const all = (run.metrics[metric] || []).map((y, i) => ({ x: run.steps[i], y: chart.log && y <= 0 ? null : y }));
  const present = all.filter((p) => p.y !== null);
  return chart.markers || present.length < all.length / 2 ? present : all.slice(all.indexOf(present[0]));
}

function line(run, r, [metric, label], s, chart) {
  const shown = points(run, metric, chart);
  const drawn = colour(several ? r : s);
  return {
    x: shown.map((p) => p.x), y: shown.map((p) => p.y), type: "scatter",
    mode: chart.markers || shown.length < 40 ? "lines+markers" : "lines",
    name: plain(several ? (chart.series.length > 1 && chart.kind !== "band" ? `${run.name}: ${label}` : run.name) : label),
    line: { color: drawn, width: 1.8, dash: several ? DASHES[s % DASHES.length] : "solid" }, marker: { size: 5 },
  };
}

/** The smallest and the largest value that a completion of this page has for a reward or a signal. */
function rangeOf(run, metric) {
  const name = metric.replace("signal/", "");
  const values = run.completions.map((row) => metric === "reward/mean" ? row.reward : row.signals[name]).filter((value) => value != null);
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

/** Mean, and the area mean - spread .. mean + spread within the values' range; the three switch together in the legend. */
function band(run, r, chart) {
  const [[mean], [spread]] = chart.series;
  const ys = run.metrics[mean] || [], ds = run.metrics[spread] || [];
  const [low, high] = rangeOf(run, mean);
  // The page may hold only some of the completions, so the range never cuts the mean itself.
  const within = (y, edge) => low > high ? edge : Math.min(Math.max(edge, Math.min(low, y)), Math.max(high, y));
  const at = run.steps.map((_, i) => i).filter((i) => ys[i] != null && ds[i] != null);
  const edge = (sign, fill) => ({
    x: at.map((i) => run.steps[i]), y: at.map((i) => within(ys[i], ys[i] + sign * ds[i])), type: "scatter", mode: "lines", fill,
    line: { width: 0, color: colour(r) }, fillcolor: colour(r) + "2e", hoverinfo: "skip", showlegend: false, legendgroup: `${r}`,
  });
  return [edge(-1, "none"), edge(1, "tonexty"), { ...line(run, r, chart.series[0], 0, chart), legendgroup: `${r}` }];
}

function stacked(run, chart) {
  return chart.series.map(([metric, label], s) => {
    const shown = points(run, metric, { markers: true });
    return {
      x: shown.map((p) => p.x), y: shown.map((p) => p.y), type: "scatter", mode: shown.length < 2 ? "markers" : "lines",
      stackgroup: "one", name: label, line: { width: 0.5, color: colour(s) }, fillcolor: colour(s) + "b0",
    };
  }).filter((trace) => trace.x.length);
}

function layout(chart, traces) {
  const axis = { gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: true };
  const share = chart.unit === "share";
  return {
    height: chart.kind === "stack" ? 270 : 290, margin: { l: 58, r: 8, t: 30, b: 40 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: css("--quiet") },
    hovermode: "x unified", hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--line"), activecolor: css("--quiet") },
    showlegend: several || traces.filter((trace) => trace.showlegend !== false).length > 1,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", bgcolor: "rgba(0,0,0,0)" },
    xaxis: { ...axis, title: { text: "step", standoff: 6 }, ...(chart.kind === "stack" && LAST > 1 ? { range: [1, LAST] } : {}) },
    yaxis: {
      ...axis, type: chart.log ? "log" : "linear", title: { text: share ? "" : chart.unit ?? "", standoff: 8 },
      ...(share ? { range: [-0.02, 1.02], tickformat: ".0%" } : {}),
      ...(chart.kind === "stack" && !share ? { rangemode: "tozero" } : {}),
    },
  };
}

function plot(element, traces, chart) {
  Plotly.react(element, traces, layout(chart, traces), { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "resetScale2d"]] });
}

/** Lines of all runs share one chart; areas that add up get one panel a run. */
function draw(chart) {
  const place = document.getElementById(chart.id);
  if (chart.kind !== "stack") {
    const traces = DATA.runs.flatMap((run, r) => !isOn(r) ? [] : chart.kind === "band" && run.metrics[chart.series[1]?.[0]]
      ? band(run, r, chart) : chart.series.slice(0, chart.kind === "band" ? 1 : undefined).map((series, s) => line(run, r, series, s, chart)));
    plot(place, traces.filter((trace) => trace.x.length), chart);
    return;
  }
  DATA.runs.forEach((run, r) => {
    const id = `${chart.id}-${r}`;
    let panel = document.getElementById(id);
    if (!panel) {
      if (several) place.append(make("div", "panel", run.name));
      place.append(panel = Object.assign(make("div"), { id }));
    }
    const traces = stacked(run, chart);
    panel.hidden = !isOn(r) || !traces.length;
    if (several) panel.previousSibling.hidden = panel.hidden;
    if (!panel.hidden) plot(panel, traces, chart);
  });
}

boxes.forEach((box, r) => {
  if (several) box.parentElement.style.setProperty("--run", colour(r));
  box.hidden = !several;
  box.addEventListener("change", () => DATA.charts.forEach(draw));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => DATA.charts.forEach(draw));
DATA.charts.forEach(draw);
