"use strict";
// Rewards -> advantages -> what one step does to each token. The same formulas as grpo/advantage.py and grpo/loss.py.

const DATA = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("controls"), field = form.elements;
const SIGNALS = Object.keys(DATA.weights);
const EPS = 1e-6, DUST = 1e-9;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Rewards of a group -> advantages; zeros where all rewards are equal. */
function advantages(rewards, divide) {
  const low = Math.min(...rewards), high = Math.max(...rewards), centre = mean(rewards);
  if (high - low <= DUST * Math.max(1, Math.abs(high), Math.abs(low))) return rewards.map(() => 0);
  const std = Math.sqrt(rewards.reduce((sum, r) => sum + (r - centre) ** 2, 0) / (rewards.length - 1));
  return rewards.map((r) => (r - centre) / (divide ? std + EPS : 1));
}

/** The gradient of the surrogate by log pi is A * ratio, or 0 where the clip has cut it off. */
function surrogate(advantage, ratio, low, high) {
  return (advantage > 0 && ratio > 1 + high) || (advantage < 0 && ratio < 1 - low) ? 0 : advantage * ratio;
}

function compute() {
  const { groups } = DATA.steps[+field.step.value], group = groups[Math.min(+field.group.value, groups.length - 1)];
  const rows = group.completions, number = (name) => +field[name].value;
  const rewards = rows.map((row) => SIGNALS.reduce((sum, name) => sum + number(`weight ${name}`) * (row.signals[name] ?? 0), 0));
  const found = advantages(rewards, field.std.checked);
  const tokens = rows.reduce((sum, row) => sum + row.tokens, 0);
  return { group, rows: rows.map((row, i) => {
    const weight = field.aggregation.value === "token-mean" ? 1 / tokens : 1 / (rows.length * row.tokens);
    const kept = surrogate(found[i], number("ratio"), number("clip_low"), number("clip_high"));
    const pull = number("kl_coef") * (1 - Math.exp(number("log_ratio")));
    return { ...row, reward: rewards[i], advantage: found[i], clipped: kept === 0 && found[i] !== 0, push: weight * (kept - pull) };
  }) };
}

function card(row, strongest) {
  const article = make("article"), facts = make("div", "facts"), push = make("div", "push"), pre = make("pre");
  const side = row.push > 0 ? "up" : row.push < 0 ? "down" : "", force = strongest ? Math.abs(row.push) / strongest : 0;
  for (const [label, value] of [["reward", row.reward], ["advantage", row.advantage], ["push × 1000", 1000 * row.push],
    ...SIGNALS.map((name) => [name, row.signals[name] ?? 0]), ["tokens", row.tokens]]) {
    const fact = make("span", "", `${label} `);
    fact.append(make("b", label === "advantage" || label[0] === "p" ? (value > 0 ? "good" : value < 0 ? "bad" : "") : "", String(+value.toFixed(4))));
    facts.append(fact);
  }
  if (row.clipped) facts.append(make("span", "bad", "clipped"));
  for (const name of ["down", "up"]) {
    const bar = make("i", name);
    bar.style.width = name === side ? `${100 * force}%` : "0";
    push.append(bar);
  }
  for (const piece of row.pieces) {
    const token = make("span", `token ${side}`, piece);
    token.style.setProperty("--force", `${Math.round(8 + 40 * force)}%`);
    pre.append(token);
  }
  article.append(facts, push, pre);
  return article;
}

function draw() {
  const { group, rows } = compute(), strongest = Math.max(...rows.map((row) => Math.abs(row.push)));
  const up = rows.filter((row) => row.push > 0).length, down = rows.filter((row) => row.push < 0).length;
  document.getElementById("says").textContent = strongest === 0
    ? "Nothing is pushed: all rewards are equal, or the clip has cut off every completion. This group teaches nothing now."
    : `${up} completions are made likelier, ${down} less likely, ${rows.length - up - down} left alone.`;
  document.getElementById("prompt").replaceChildren(coloured(group.prompt));
  document.getElementById("completions").replaceChildren(...rows.map((row) => card(row, strongest)));
  for (const input of form.querySelectorAll("input[type=range]")) {
    const shown = input.parentElement.querySelector("output");
    if (shown) shown.textContent = input.name === "step" ? DATA.steps[+input.value].step : (+input.value).toFixed(2);
  }
}

function fillGroups() {
  const chosen = +field.group.value || 0, { groups } = DATA.steps[+field.step.value];
  field.group.replaceChildren(...groups.map((group, i) => new Option(group.group, i)));
  field.group.value = Math.min(chosen, groups.length - 1);
}

function restore() {
  const own = DATA.learner;
  field.step.value = Math.floor(DATA.steps.length / 2); // late groups are mostly equal
  for (const name of SIGNALS) field[`weight ${name}`].value = DATA.weights[name];
  field.std.checked = own.advantage !== "dr_grpo";
  field.aggregation.value = own.loss_aggregation === "token-mean" ? "token-mean" : "seq-mean";
  for (const name of ["clip_low", "clip_high", "kl_coef"]) field[name].value = own[name];
  fillGroups();
  draw();
}

field.step.max = DATA.steps.length - 1;
for (const name of SIGNALS) {
  const label = make("label", "", `${name} `), input = make("input");
  Object.assign(input, { type: "range", name: `weight ${name}`, min: 0, max: 2, step: 0.05 });
  label.append(make("output"), input);
  document.getElementById("weights").append(label);
}
field.step.addEventListener("input", fillGroups);
form.addEventListener("input", draw);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(restore));
restore();
