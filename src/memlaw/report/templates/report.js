"use strict";
// The page is complete without this script, which turns the table of the worst records into a list of all records, and
// adds sliders to the law. Every string of the data is inserted as text, never as markup.

const $ = (id) => document.getElementById(id);
const read = (id) => ($(id) ? JSON.parse($(id).textContent) : null);
const LN2 = Math.log(2);

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

const digits = (value, n = 3) =>
  value && value < 1e-3 ? value.toExponential(n - 1) : value.toLocaleString("en", { maximumSignificantDigits: n });
const nats = (value) => `${value < 0 ? "\u2212" : ""}${Math.abs(value).toFixed(3)}`;

function law(data) {
  const [size, length, prediction] = [$("law-size"), $("law-length"), $("law-prediction")];
  const update = () => {
    const [i, j] = [+size.value, +length.value];
    const gain = data.gain[j][i];
    const shownSize = data.sizes[i].toLocaleString("en");
    const where = data.axis === "rank" ? `rank ${shownSize}` : `${shownSize} parameters`;
    let text = `At ${where} and ${data.lengths[j].toLocaleString("en")} target tokens, the mean loss falls by ${nats(gain)} nats per token`;
    if (data.initial) {
      const last = Math.max(0, data.initial[j] - gain);
      text += `, from ${nats(data.initial[j])} to ${nats(last)}, which is ${last < LN2 ? "under" : "not under"} ln 2`;
    }
    prediction.textContent = `${text}.`;
    size.setAttribute("aria-valuetext", where);
    length.setAttribute("aria-valuetext", `${data.lengths[j]} target tokens`);
  };
  for (const [slider, stops] of [[size, data.sizes], [length, data.lengths]]) {
    slider.max = stops.length - 1;
    slider.value = Math.floor((stops.length - 1) / 2);
    slider.addEventListener("input", update);
  }
  update();
  $("law-slider").hidden = false;
}

const PAGE = 25;
const BINS = 120;
const BY = {
  worst: (a, b) => a.place - b.place,
  margin: (a, b) => a.margin - b.margin,
  failure: (a, b) => (a.failure ?? Infinity) - (b.failure ?? Infinity) || a.margin - b.margin,
  stubborn: (a, b) => (a.stubborn ?? Infinity) - (b.stubborn ?? Infinity) || a.margin - b.margin,
  id: (a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0),
};

const isStubborn = (kind) => kind === "s" || kind === "S";
const isWrong = (kind) => kind === "O" || kind === "S";

// The strength of a colour: full if p is 0 or 1, palest at 1/2.
function colour(element, nll, kind) {
  const sure = Math.min(1, Math.abs(2 * Math.exp(-nll) - 1));
  element.classList.add(isStubborn(kind) ? "stubborn" : "ordered");
  element.classList.toggle("wrong", isWrong(kind));
  element.style.setProperty("--sure", `${Math.round(30 + 70 * sure)}%`);
}

function strip(record) {
  const line = make("span", "pstrip");
  line.setAttribute("aria-hidden", "true");
  const bins = Math.min(BINS, record.nll.length);
  for (let bin = 0; bin < bins; bin++) {
    const start = Math.floor((bin * record.nll.length) / bins);
    const stop = Math.floor(((bin + 1) * record.nll.length) / bins);
    let worst = start;
    for (let t = start; t < stop; t++) if (record.nll[t] > record.nll[worst]) worst = t;
    const cell = make("i");
    colour(cell, record.nll[worst], record.kinds[worst]);
    cell.title = `${stop - start > 1 ? `weakest of positions ${start} to ${stop - 1}: ` : ""}${describe(record, worst)}`;
    line.append(cell);
  }
  return line;
}

function describe(record, t) {
  const p = Math.exp(-record.nll[t]);
  const parts = [`position ${t}: p ${digits(p)}, loss ${nats(record.nll[t])} nats`];
  if (record.rival) parts.push(`best other token p ${digits(Math.exp(-record.rival[t]))}`);
  parts.push(isStubborn(record.kinds[t]) ? "stubborn" : "ordered");
  if (record.unreachable.includes(t)) parts.push("unreachable for any adapter");
  if (isWrong(record.kinds[t])) parts.push("decoded wrong");
  return parts.join("; ");
}

function tokens(record) {
  const line = make("p", "token-status");
  line.setAttribute("role", "status");
  const grid = make("div", "tokengrid");
  grid.setAttribute("role", "group");
  grid.setAttribute("aria-label", "Target tokens; move with the arrow keys");
  const show = (t) => {
    line.textContent = describe(record, t);
  };
  record.nll.forEach((nll, t) => {
    const token = make("button", "token", record.texts ? make("bdi", "", record.texts[t]) : String(t));
    token.type = "button";
    token.tabIndex = t === (record.failure ?? record.stubborn ?? 0) ? 0 : -1;
    token.setAttribute("aria-label", describe(record, t));
    colour(token, nll, record.kinds[t]);
    token.addEventListener("focus", () => show(t));
    token.addEventListener("mouseenter", () => show(t));
    grid.append(token);
  });
  grid.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const at = [...grid.children].indexOf(document.activeElement);
    let next = at + (step ?? 0);
    if (event.key === "Home") next = 0;
    else if (event.key === "End") next = grid.children.length - 1;
    else if (step === undefined) return;
    event.preventDefault();
    if (!grid.children[next]) return;
    grid.children[at].tabIndex = -1;
    grid.children[next].tabIndex = 0;
    grid.children[next].focus();
  });
  show(record.failure ?? record.stubborn ?? 0);
  return [line, grid];
}

function details(record) {
  const facts = make("dl", "facts");
  const row = (name, value) => facts.append(make("dt", "", name), make("dd", "", value));
  row("margin", `${nats(record.margin)} nats`);
  row("first stubborn", record.stubborn === null ? "none" : `position ${record.stubborn}`);
  if (record.decoded) row("first wrong", record.failure === null ? "none" : `position ${record.failure}`);
  if (record.edits !== null) row("edits to the target", `${record.edits} of ${record.nll.length} tokens`);
  if (record.short) row("one token short", "yes: with the first wrong token corrected, the rest is verbatim");
  row("verbatim by sampling", `p ${digits(Math.exp(record.log_p), 2)} at temperature 1; on average ${digits(record.expected)} tokens before the first error`);
  const box = make("div", "details");
  if (record.why) box.append(make("p", "why", record.why));
  box.append(...tokens(record), facts);
  return box;
}

function item(record) {
  const button = make(
    "button", "row",
    make("span", "id", make("bdi", "", record.id)), strip(record),
    make("span", record.failed ? "verdict bad" : "verdict", record.verdict),
    make("span", "r", nats(record.margin)),
  );
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  const entry = make("li", "", button);
  button.addEventListener("click", () => {
    const open = entry.lastChild !== button;
    if (open) entry.lastChild.remove();
    else entry.append(details(record));
    button.setAttribute("aria-expanded", String(!open));
  });
  return entry;
}

function records(data) {
  data.forEach((record, place) => {
    record.place = place;
  });
  const [search, order, stubborn, count, list, more] =
    ["find", "order", "stubborn-only", "matches", "records", "more"].map($);
  let matches = [];
  const grow = () => {
    const from = list.children.length;
    list.append(...matches.slice(from, from + PAGE).map(item));
    more.hidden = list.children.length >= matches.length;
    return list.children[from];
  };
  const update = () => {
    const wanted = search.value.trim().toLowerCase();
    matches = data
      .filter((record) => record.id.toLowerCase().includes(wanted) && (!stubborn.checked || record.stubborn !== null))
      .sort(BY[order.value]);
    count.textContent = `${matches.length.toLocaleString("en")} of ${data.length.toLocaleString("en")} records`;
    list.replaceChildren();
    grow();
  };
  search.addEventListener("input", update);
  order.addEventListener("change", update);
  stubborn.addEventListener("change", update);
  more.addEventListener("click", () => grow()?.firstChild.focus());
  update();
  $("explorer").hidden = false;
  document.documentElement.classList.add("live");
}

const [lawData, recordData] = [read("law-data"), read("record-data")];
if (lawData) law(lawData);
if (recordData) records(recordData);
