"use strict";
// The completion browser. It uses the JSON that charts.js has read.

const PAGE = 25;

const ROWS = DATA.runs.flatMap((run, r) => run.completions.map((row) => ({ ...row, run: r })));
const form = document.getElementById("filters");
const field = form.elements;
const short = (value) => value == null ? "?" : String(+value.toFixed(4));
const missingLast = (value, sign) => value == null ? Infinity : sign * value;
const by = (name, sign) => (a, b) => missingLast(a[name], sign) - missingLast(b[name], sign) || 0;
const SORTS = {
  "newest": by("step", -1), "reward-down": by("reward", -1), "reward-up": by("reward", 1),
  "advantage-down": by("advantage", -1), "tokens-down": by("tokens", -1),
};
let limit = PAGE;

function fill(name, any, options) {
  field[name].append(new Option(any, ""), ...options.map(([value, text]) => new Option(text, value)));
}

function distinct(name) {
  const values = [...new Set(ROWS.map((row) => row[name]))].filter((value) => value != null);
  return values.sort((a, b) => typeof a === "number" ? a - b : String(a).localeCompare(String(b))).map((value) => [value, value]);
}

function matches(row) {
  const value = field.signal.value && row.signals[field.signal.value];
  const bound = field.bound.valueAsNumber, wanted = field.text.value.toLowerCase();
  const inSignal = !field.signal.value || (value != null && (Number.isNaN(bound) || (field.compare.value === "ge" ? value >= bound : value < bound)));
  return inSignal && isOn(row.run) && ["run", "step", "group", "outcome"].every((name) => !field[name].value || String(row[name]) === field[name].value)
    && (!wanted || [row.text, String(row.answer ?? ""), DATA.runs[row.run].prompts[row.prompt]].some((text) => text.toLowerCase().includes(wanted)));
}

/** Rows with the same text, one card each: completions of one step whose run, prompt, text and reward are equal. */
function fold(rows) {
  const cards = new Map();
  for (const row of rows) {
    const key = JSON.stringify([row.run, row.step, row.prompt, row.text, row.reward]);
    if (!cards.has(key)) cards.set(key, []);
    cards.get(key).push(row);
  }
  return [...cards.values()];
}

const list = (rows, name) => [...new Set(rows.map((row) => short(row[name])))].join(", ");

function card(rows) {
  const row = rows[0];
  const article = make("article");
  const facts = (pairs) => {
    const place = make("div", "facts");
    for (const [label, value, className] of pairs) {
      const fact = make("span", "", `${label} `);
      fact.append(make("b", className, String(value ?? "none")));
      place.append(fact);
    }
    return place;
  };
  article.append(
    facts([
      ...(several ? [["run", DATA.runs[row.run].name]] : []), ["step", short(row.step)], ["group", list(rows, "group")],
      rows.length > 1 ? ["identical", `${rows.length} completions`] : ["sample", row.sample],
      ["reward", short(row.reward)], ["advantage", list(rows, "advantage"), row.advantage > 0 ? "good" : row.advantage < 0 ? "bad" : ""],
      ...Object.entries(row.signals).map(([name, value]) => [name, short(value)]),
    ]),
    facts([
      ["answer", row.answer, row.outcome === "correct" ? "good" : "bad"], ["truth", row.ground_truth], ["outcome", row.outcome],
      ["verdict", row.verdict], ["tokens", short(row.tokens)], ["finish", row.finish_reason, row.finish_reason === "length" ? "bad" : ""],
    ]),
    coloured(row.text),
  );
  const prompt = make("details");
  prompt.append(make("summary", "", "Prompt"));
  prompt.addEventListener("toggle", () => prompt.childElementCount > 1 || prompt.append(coloured(DATA.runs[row.run].prompts[row.prompt])));
  article.append(prompt);
  return article;
}

function browse() {
  const rows = ROWS.filter(matches).sort(SORTS[field.sort.value]);
  const cards = fold(rows);
  document.getElementById("rows").replaceChildren(...cards.slice(0, limit).map(card));
  document.getElementById("count").textContent = `${rows.length} of ${ROWS.length} completions match; ${cards.length} are different, ${Math.min(limit, cards.length)} shown`;
  document.getElementById("more").hidden = cards.length <= limit;
}

function restart() {
  limit = PAGE;
  browse();
}

boxes.forEach((box) => box.addEventListener("change", restart));
fill("run", "all", DATA.runs.map((run, r) => [r, run.name]));
fill("step", "all", distinct("step"));
fill("group", "all", distinct("group"));
fill("outcome", "all", distinct("outcome"));
fill("signal", "any", [...new Set(ROWS.flatMap((row) => Object.keys(row.signals)))].sort().map((name) => [name, name]));
document.getElementById("run-filter").hidden = !several;
form.addEventListener("input", restart);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(restart));
document.getElementById("more").addEventListener("click", () => { limit += PAGE; browse(); });
browse();
