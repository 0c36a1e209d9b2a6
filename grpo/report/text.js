"use strict";
// Text of a model -> elements. It becomes text nodes cut into coloured spans; no string of it is ever parsed as HTML.

function make(name, className = "", text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text) element.append(...visible(text));
  return element;
}

/** Text nodes, with each character that would print nothing, or turn the text around, as a small labelled box. */
function visible(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(/(?![\n\t])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\u2028\u2029]/gu)) {
    if (match.index > from) nodes.push(document.createTextNode(text.slice(from, match.index)));
    const code = match[0].codePointAt(0);
    const label = document.createElement("span");
    label.className = "ctrl";
    label.textContent = code < 32 ? String.fromCodePoint(0x2400 + code) : `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
    nodes.push(label);
    from = match.index + match[0].length;
  }
  if (from < text.length) nodes.push(document.createTextNode(text.slice(from)));
  return nodes;
}

/** Index after the brace that closes the box opened before `at`, or -1. */
function boxEnd(text, at) {
  for (let depth = 1, i = at; i < text.length; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "{") depth++;
    else if (text[i] === "}" && --depth === 0) return i + 1;
  }
  return -1;
}

const HUES = { think: 215, reflection: 28, answer: 150 };
const hue = (tag) => HUES[tag] ?? [...tag].reduce((sum, c) => (sum * 31 + c.codePointAt(0)) % 360, 7);

/** A <pre> with tags, special tokens and boxes coloured: the text is cut into spans, nothing is parsed. */
function coloured(text) {
  const pre = make("pre");
  let open = null;
  const add = (piece, className, name) => {
    if (!piece) return;
    const span = make("span", className, piece);
    if (name) span.style.setProperty("--hue", hue(name));
    pre.append(span);
  };
  const pattern = /<(\/?)([A-Za-z][\w-]{0,40})>|<\|([^|<>\s]{1,40})\|>|\\boxed\s*\{/g;
  let from = 0;
  for (let match; (match = pattern.exec(text));) {
    const tag = match[2] || match[3];
    const end = tag ? pattern.lastIndex : boxEnd(text, pattern.lastIndex);
    if (end < 0) continue;
    add(text.slice(from, match.index), open ? "inside" : "", open);
    add(text.slice(match.index, end), tag ? "tag" : "box", tag);
    if (match[2]) open = match[1] ? null : tag;
    pattern.lastIndex = from = end;
  }
  add(text.slice(from), open ? "inside" : "", open);
  return pre;
}
