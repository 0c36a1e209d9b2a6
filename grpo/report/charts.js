"use strict";
// Draws the charts of the JSON in #data as SVG; draws them again when a run is switched off or the page changes its width.

const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#3b82f6", "#e07b00", "#10a36b", "#d6409f", "#8b5cf6", "#0ea5b7", "#84a312", "#e5484d"];
const DASHES = ["none", "6 3", "2 3", "7 3 2 3"];
const HEIGHT = 250, LEFT = 58, RIGHT = 10, TOP = 8, BOTTOM = 38;
const several = DATA.runs.length > 1;
const boxes = [...document.querySelectorAll("#runs input")];
const isOn = (run) => boxes[run].checked;
const LAST = Math.max(0, ...DATA.runs.map((run) => run.steps.at(-1) ?? 0));
const colour = (index) => COLOURS[index % COLOURS.length];

// ---- the curves of a chart: {name, colour, dash, points: [{x, y}], area: [{x, low, high}], markers}

/** The points of one metric. A few sparse values are joined; in a dense column a missing value is a gap in the line. */
function points(run, metric, chart) {
  const all = (run.metrics[metric] || []).map((y, i) => ({ x: run.steps[i], y: chart.log && y <= 0 ? null : y }));
  const present = all.filter((p) => p.y !== null);
  return chart.markers || present.length < all.length / 2 ? present : all.slice(all.indexOf(present[0]));
}

function line(run, r, [metric, label], s, chart) {
  const shown = points(run, metric, chart);
  const ofRun = chart.series.length > 1 && chart.kind !== "band" ? `${run.name}: ${label}` : run.name;
  return {
    name: several ? ofRun : label, colour: colour(several ? r : s), dash: several ? DASHES[s % DASHES.length] : "none",
    points: shown, area: [], markers: chart.markers || shown.length < 40,
  };
}

/** The smallest and the largest value that a completion of this page has for a reward or a signal. */
function rangeOf(run, metric) {
  const name = metric.replace("signal/", "");
  const values = run.completions.map((row) => metric === "reward/mean" ? row.reward : row.signals[name]).filter((value) => value != null);
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

/** Mean, and the area mean - spread .. mean + spread within the range of the values. */
function band(run, r, chart) {
  const [[mean], [spread]] = chart.series;
  const ys = run.metrics[mean] || [], ds = run.metrics[spread] || [];
  const [low, high] = rangeOf(run, mean);
  // The page may hold only some of the completions, so the range never cuts the mean itself.
  const within = (y, edge) => low > high ? edge : Math.min(Math.max(edge, Math.min(low, y)), Math.max(high, y));
  const at = run.steps.map((_, i) => i).filter((i) => ys[i] != null && ds[i] != null);
  const area = at.map((i) => ({ x: run.steps[i], low: within(ys[i], ys[i] - ds[i]), high: within(ys[i], ys[i] + ds[i]) }));
  return { ...line(run, r, chart.series[0], 0, chart), area };
}

/** Parts that add up, one on top of the other; step 0, which only evaluates, is not drawn beside others. */
function stacked(run, chart) {
  const base = run.steps.map(() => 0);
  return chart.series.map(([metric, label], s) => {
    const area = [], values = [];
    (run.metrics[metric] || []).forEach((y, i) => {
      if (y === null || (run.steps[i] < 1 && LAST > 1)) return;
      area.push({ x: run.steps[i], low: base[i], high: base[i] + y });
      values.push({ x: run.steps[i], y });
      base[i] += y;
    });
    return { name: label, colour: colour(s), solid: true, points: values, area };
  }).filter((curve) => curve.area.length);
}

// ---- axes

/** About `count` round numbers from low to high. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => +((first + i) * step).toPrecision(12));
}

/** Powers of ten, and 2 and 5 times them where there are few; round numbers within one decade. */
function logTicks(low, high) {
  if (high < 10 * low) return ticks(low, high, 4);
  const powers = ticks(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)), 100).filter(Number.isInteger);
  const within = (values) => values.filter((value) => value >= low && value <= high);
  const tens = within(powers.map((power) => 10 ** power));
  return tens.length > 2 ? tens.filter((_, i) => i % Math.ceil(tens.length / 6) === 0) : within(powers.flatMap((power) => [1, 2, 5].map((factor) => factor * 10 ** power)));
}

function written(value, chart) {
  if (chart.unit === "share") return `${+(100 * value).toFixed(1)}%`;
  const size = Math.abs(value);
  return size && (size < 1e-3 || size >= 1e7) ? value.toExponential(1).replace(".0e", "e") : (+value.toPrecision(4)).toLocaleString("en");
}

/** {range, at, ticks}: `at` maps a value of the y axis to a share of its length. */
function yAxis(curves, chart) {
  const values = curves.flatMap((curve) => [...(curve.solid ? [] : curve.points.map((p) => p.y)), ...curve.area.flatMap((p) => [p.low, p.high])]).filter((y) => y !== null);
  let [low, high] = values.reduce(([a, b], y) => [Math.min(a, y), Math.max(b, y)], [Infinity, -Infinity]);
  if (low > high) [low, high] = [0, 1];
  if (chart.log) {
    [low, high] = [low / 1.3, high * 1.3];
    return { at: (y) => Math.log(y / low) / Math.log(high / low), ticks: logTicks(low, high) };
  }
  if (chart.unit === "share") [low, high] = [0, 1];
  else if (chart.kind === "stack") low = 0;
  const room = chart.kind === "stack" ? 0 : 0.04 * (high - low || Math.abs(high) || 1);
  [low, high] = [low - room, high + room];
  return { at: (y) => (y - low) / (high - low || 1), ticks: ticks(low, high, 6) };
}

// ---- drawing

function svg(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** The path through the points; a missing y interrupts it. */
function path(shown, x, y) {
  let pen = "M";
  return shown.map((p) => {
    const part = p.y === null ? "" : `${pen}${x(p.x).toFixed(1)} ${y(p.y).toFixed(1)}`;
    pen = p.y === null ? "M" : "L";
    return part;
  }).join("");
}

function shape(curve, x, y) {
  const parts = [];
  if (curve.area.length) {
    const upper = curve.area.map((p) => ({ x: p.x, y: p.high })), lower = curve.area.map((p) => ({ x: p.x, y: p.low })).reverse();
    const outline = path(upper, x, y) + path(lower, x, y).replace("M", "L") + "Z";
    parts.push(svg("path", { d: outline, fill: curve.colour, "fill-opacity": curve.solid ? 0.7 : several ? 0.1 : 0.18 }));
  }
  if (!curve.solid) parts.push(svg("path", { d: path(curve.points, x, y), class: "line", stroke: curve.colour, "stroke-dasharray": curve.dash }));
  if (curve.markers) parts.push(...curve.points.filter((p) => p.y !== null).map((p) => svg("circle", { cx: x(p.x), cy: y(p.y), r: 2.5, fill: curve.colour })));
  return parts;
}

function legend(curves) {
  const place = make("div", "legend");
  for (const curve of curves) {
    const label = make("span", "", curve.name);
    label.prepend(svg("svg", { width: 18, height: 8 }, svg("path", { d: "M0 4H18", stroke: curve.colour, "stroke-width": curve.solid ? 8 : 2, "stroke-dasharray": curve.dash || "none" })));
    place.append(label);
  }
  return place;
}

/** A line of text for the step under the pointer, and a vertical rule there. */
function follow(picture, tip, curves, chart, x, width) {
  const steps = [...new Set(curves.flatMap((curve) => curve.points.filter((p) => p.y !== null).map((p) => p.x)))];
  const rule = svg("path", { class: "rule" });
  picture.append(rule);
  picture.addEventListener("pointermove", (event) => {
    const at = event.clientX - picture.getBoundingClientRect().left;
    const step = steps.reduce((best, s) => Math.abs(x(s) - at) < Math.abs(x(best) - at) ? s : best, steps[0]);
    rule.setAttribute("d", `M${x(step)} ${TOP}V${HEIGHT - BOTTOM}`);
    const values = curves.map((curve) => [curve, curve.points.find((p) => p.x === step && p.y !== null)]).filter(([, p]) => p);
    tip.replaceChildren(make("b", "", `step ${step}`), ...values.map(([curve, p]) => {
      const row = make("div", "", curves.length > 1 || several ? `${curve.name} ${written(p.y, chart)}` : written(p.y, chart));
      row.style.setProperty("--run", curve.colour);
      return row;
    }));
    tip.hidden = false;
    tip.style.left = `${x(step) < width / 2 ? x(step) + 10 : x(step) - 10 - tip.offsetWidth}px`;
  });
  picture.addEventListener("pointerleave", () => { tip.hidden = true; rule.removeAttribute("d"); });
}

function plot(place, curves, chart) {
  const width = place.clientWidth, first = chart.kind === "stack" ? Math.min(1, LAST) : Math.min(...curves.flatMap((curve) => curve.points.map((p) => p.x)), LAST);
  const x = (step) => LEFT + (width - LEFT - RIGHT) * (LAST > first ? (step - first) / (LAST - first) : 0.5);
  const axis = yAxis(curves, chart), y = (value) => HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * axis.at(value);
  const picture = svg("svg", { width, height: HEIGHT, role: "img", "aria-label": chart.title });
  for (const value of axis.ticks) {
    picture.append(svg("path", { class: "grid", d: `M${LEFT} ${y(value)}H${width - RIGHT}` }));
    picture.append(svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, written(value, chart)));
  }
  for (const step of ticks(first, LAST, Math.max(2, width / 90)).filter(Number.isInteger)) {
    picture.append(svg("text", { x: x(step), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, step.toLocaleString("en")));
  }
  picture.append(svg("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "step"));
  const middle = (TOP + HEIGHT - BOTTOM) / 2, unit = chart.unit === "share" ? "" : chart.unit;
  picture.append(svg("text", { x: 11, y: middle, transform: `rotate(-90 11 ${middle})`, "text-anchor": "middle" }, unit));
  for (const curve of curves) picture.append(svg("g", { class: "curve" }, ...shape(curve, x, y)));
  const tip = Object.assign(make("div", "tip"), { hidden: true });
  follow(picture, tip, curves, chart, x, width);
  place.replaceChildren(...(several || curves.length > 1 ? [legend(curves)] : []), picture, tip);
}

/** Lines of all runs share one chart; areas that add up get one panel a run. */
function draw(chart) {
  const place = document.getElementById(chart.id);
  if (chart.kind !== "stack") {
    const curves = DATA.runs.flatMap((run, r) => !isOn(r) ? [] : chart.kind === "band" && run.metrics[chart.series[1]?.[0]]
      ? [band(run, r, chart)] : chart.series.slice(0, chart.kind === "band" ? 1 : undefined).map((series, s) => line(run, r, series, s, chart)));
    plot(place, curves.filter((curve) => curve.points.length), chart);
    return;
  }
  place.replaceChildren();
  DATA.runs.forEach((run, r) => {
    const curves = stacked(run, chart);
    if (!isOn(r) || !curves.length) return;
    if (several) place.append(make("div", "panel", run.name));
    const panel = make("div");
    place.append(panel);
    plot(panel, curves, chart);
  });
}

boxes.forEach((box, r) => {
  if (several) box.parentElement.style.setProperty("--run", colour(r));
  box.hidden = !several;
  box.addEventListener("change", () => DATA.charts.forEach(draw));
});
let drawnWidth = 0;
new ResizeObserver(() => {
  if (drawnWidth !== document.body.clientWidth) {
    drawnWidth = document.body.clientWidth;
    DATA.charts.forEach(draw);
  }
}).observe(document.body);
