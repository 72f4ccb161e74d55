"use strict";
// The page answers without this script, which draws the map of facts by version and opens what is chosen in it. Only
// the rows in sight are in the document, so that thousands of facts stay quick. Every string of the data is inserted as
// text, never as markup.

const $ = (id) => document.getElementById(id);
const ROW = 24; // pixels, as in the style of .heat-row
const SPARE = 6; // rows drawn beyond those in sight
const LISTED = 40; // ids listed before the rest is counted
const LN2 = Math.log(2);
const SIGNS = {
  c: ["certified", ""],
  r: ["at risk", "?"],
  l: ["lost", "\u00d7"],
  g: ["retracted, gone", "\u2013"],
  b: ["retracted, comes back", "!"],
  " ": ["not held", ""],
};

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

const isolated = (text) => make("bdi", "", text);
const nats = (thousandths) => `${thousandths < 0 ? "\u2212" : ""}${Math.abs(thousandths / 1000).toFixed(3)}`;
const signed = (thousandths) => `${thousandths < 0 ? "" : "+"}${nats(thousandths)}`;
const counted = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

const data = $("ledger-data") ? JSON.parse($("ledger-data").textContent) : null;

// A cell of a fact, by the place of the version.
const stateAt = (fact, at) => (at < fact.start ? " " : fact.states[at - fact.start]);
const valueAt = (fact, at) => (at < fact.start ? null : fact.values[at - fact.start]);
const isHeld = (state) => state === "c" || state === "r" || state === "l";
const isNew = (fact, at) => isHeld(stateAt(fact, at)) && fact.since.includes(data.versions[at].n);

function describe(fact, at) {
  const state = stateAt(fact, at);
  const value = valueAt(fact, at);
  const parts = [SIGNS[state][0]];
  if (isHeld(state)) parts.push(`margin ${nats(value)} nats`);
  else if (value !== null) parts.push(`log p ${signed(value)} nats beside the model alone`);
  if (isNew(fact, at)) parts.push("new target");
  return parts.join(", ");
}

// What opens beside the map.
const panel = {
  leave() {}, // the map says how
  clear(title) {
    const heading = make("h3", "", title);
    heading.tabIndex = -1;
    $("panel").replaceChildren(link("button back", "Back to the map", () => this.leave()), heading);
    $("panel").scrollTop = 0;
    return heading;
  },
  list(rows) {
    const list = make("dl", "facts");
    for (const [name, ...values] of rows) list.append(make("dt", "", name), make("dd", "", ...values));
    $("panel").append(list);
  },
  links(title, places) {
    const list = make("ul", "links");
    for (const place of places.slice(0, LISTED)) {
      // An id that is no row of the map stays text.
      const link = typeof place === "number" ? factLink(place) : isolated(place);
      list.append(make("li", "", link));
    }
    if (places.length > LISTED) list.append(make("li", "", `and ${(places.length - LISTED).toLocaleString("en")} more`));
    $("panel").append(make("h4", "", `${places.length.toLocaleString("en")} ${title}`), list);
  },
  table(heads, rows) {
    const head = make("tr", "", ...heads.map(([text, kind]) => make("th", kind, text)));
    const body = rows.map(([on, cells]) => make("tr", on ? "on" : "", ...cells.map((cell, at) => make("td", heads[at][1], cell))));
    const box = make("div", "table", make("table", "", make("thead", "", head), make("tbody", "", ...body)));
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Its numbers");
    $("panel").append(box);
  },
};

// Where reading goes on: the panel lies beside the map, or below it on a narrow screen.
function reveal(heading) {
  heading.focus({ preventScroll: true });
  if (!matchMedia("(min-width: 70rem)").matches) $("panel").scrollIntoView();
}

function link(className, text, open) {
  const button = make("button", className, text);
  button.type = "button";
  button.addEventListener("click", open);
  return button;
}

const factLink = (place) => link("link", isolated(data.facts[place].id), () => reveal(openFact(data.facts[place], null)));
const versionLink = (at) => link("link", String(data.versions[at].n), () => reveal(openVersion(at)));

// How a fact stands, since when, and which update cost it most.
function verdict(fact) {
  const last = data.versions.length - 1;
  const state = stateAt(fact, last);
  let first = last;
  while (first > fact.start && stateAt(fact, first - 1) === state && !isNew(fact, first)) first--;
  const words = SIGNS[state][0];
  const stands = `${words[0].toUpperCase()}${words.slice(1)} since version ${data.versions[first].n}.`;
  if (!isHeld(state)) return stands;
  const [by, before, after] = fact.fall ?? [];
  const cost = by ? `Version ${by} cost it most: from ${nats(before)} to ${nats(after)} nats.` : "No update has taken any of it.";
  return `${stands} Its margin under version ${data.versions[last].n} is ${nats(valueAt(fact, last))} nats. ${cost}`;
}

function openFact(fact, at) {
  const heading = panel.clear(isolated(fact.id));
  const day = (number) => data.versions.find((version) => version.n === number)?.day ?? "";
  $("panel").append(make("p", "", verdict(fact)), chart(fact));
  const rows = [["target tokens", fact.tokens.toLocaleString("en")]];
  if (data.adapters > 1) rows.push(["adapter", fact.adapter]);
  fact.since.forEach((number, k) => rows.push([k ? "changed by" : "stored by", `version ${number}, ${day(number)}`]));
  if (fact.prompt !== undefined) {
    const shown = (text) => make("span", "text", text ?? "not kept");
    rows.push(["prompt", shown(fact.prompt)]);
    fact.targets.forEach((target, k) => rows.push([fact.since.length > 1 ? `target of version ${fact.since[k]}` : "target", shown(target)]));
  }
  panel.list(rows);
  const cells = data.versions.map((_, k) => k).filter((k) => k >= fact.start).reverse();
  panel.table(
    [["version", "r"], ["verdict", ""], ["margin", "r"], ["step", "r"]],
    cells.map((k) => [k === at, [versionLink(k), `${SIGNS[stateAt(fact, k)][0]}${isNew(fact, k) ? ", new target" : ""}`, margin(fact, k), step(fact, k)]]),
  );
  return heading;
}

const margin = (fact, at) => (isHeld(stateAt(fact, at)) ? nats(valueAt(fact, at)) : "");

// By how much the margin of the same target moved.
function step(fact, at) {
  const both = at > 0 && isHeld(stateAt(fact, at)) && isHeld(stateAt(fact, at - 1)) && !isNew(fact, at);
  return both ? signed(valueAt(fact, at) - valueAt(fact, at - 1)) : "";
}

function openVersion(at) {
  const version = data.versions[at];
  const heading = panel.clear(`Version ${version.n}`);
  panel.list(version.words);
  for (const [label, places] of version.lists) panel.links(label, places);
  if (version.costs.length) {
    $("panel").append(make("h4", "", "Margins that it took most from"));
    panel.table(
      [["fact", "id"], ["before", "r"], ["after", "r"], ["", ""]],
      version.costs.map(([place, before, after, lost]) => [false, [factLink(place), nats(before), nats(after), lost ? "lost" : ""]]),
    );
  }
  return heading;
}

// The margins of a fact as a line, broken where it is not held or has a new target. The table beside it says the same.
function chart(fact) {
  const [width, height, left, right] = [340, 96, 34, 8];
  const svg = (tag, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const image = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const n = data.versions.length;
  const held = data.versions.map((_, at) => at).filter((at) => isHeld(stateAt(fact, at)));
  const margins = held.map((at) => valueAt(fact, at) / 1000);
  const [low, high] = [Math.min(0, ...margins), Math.max(LN2, ...margins)];
  const x = (at) => left + ((width - left - right) * (at + 0.5)) / n;
  const y = (value) => 8 + ((height - 24) * (high - value)) / (high - low);
  for (const [value, name] of [[0, "0"], [LN2, "ln 2"]]) {
    image.append(svg("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: value ? "" : "zero" }));
    image.append(svg("text", { x: left - 5, y: y(value) + 3.5, "text-anchor": "end" }, name));
  }
  let path = "";
  held.forEach((at, k) => {
    const joined = k && held[k - 1] === at - 1 && !isNew(fact, at);
    path += `${joined ? "L" : "M"}${x(at).toFixed(1)} ${y(margins[k]).toFixed(1)}`;
  });
  image.append(svg("path", { d: path }));
  held.forEach((at, k) => {
    const lost = stateAt(fact, at) === "l";
    if (n <= 30 || lost) image.append(svg("circle", { cx: x(at), cy: y(margins[k]), r: lost ? 3.5 : 2.4, class: lost ? "low" : "" }));
  });
  for (const at of new Set([0, n - 1])) {
    image.append(svg("text", { x: x(at), y: height - 3, "text-anchor": at && n > 1 ? "end" : "start" }, `version ${data.versions[at].n}`));
  }
  return image;
}

function heatmap() {
  const grid = $("heat");
  const head = make("div", "heat-head");
  const body = make("div", "heat-body");
  const last = data.versions.length - 1;
  const drawn = new Map(); // place in `shown` -> its row in the document
  let shown = [];
  let active = { row: -1, column: last }; // row -1: the versions; column -1: the facts
  let chosen = { fact: null, column: last };

  head.setAttribute("role", "row");
  head.setAttribute("aria-rowindex", "1");
  const corner = make("div", "corner", "fact");
  corner.setAttribute("role", "columnheader");
  head.append(corner);
  data.versions.forEach((version, at) => {
    const cell = make("div", "version", make("b", "", String(version.n)), make("small", "", version.day), make("small", "", version.short));
    cell.setAttribute("role", "columnheader");
    cell.setAttribute("aria-label", `version ${version.n}, ${version.day}, ${version.short}`);
    cell.title = `version ${version.n}, ${version.day}: ${version.short || "no fact changed"}${version.again ? "; measured again by an audit" : ""}`;
    cell.dataset.column = at;
    cell.tabIndex = -1;
    head.append(cell);
  });
  body.setAttribute("role", "rowgroup");
  grid.append(head, body);
  grid.setAttribute("aria-colcount", data.versions.length + 1);

  function row(place) {
    const fact = shown[place];
    const line = make("div", startsGroup(place) ? "heat-row first" : "heat-row");
    line.setAttribute("role", "row");
    line.setAttribute("aria-rowindex", place + 2);
    line.style.top = `${place * ROW}px`;
    line.dataset.row = place;
    const name = make("div", "name", isolated(fact.id));
    name.setAttribute("role", "rowheader");
    name.title = fact.id;
    name.dataset.column = -1;
    name.tabIndex = -1;
    line.append(name);
    data.versions.forEach((version, at) => {
      const state = stateAt(fact, at);
      const cell = make("div", `cell ${state === " " ? "" : state === "c" ? "c" : `k-${state}`}`);
      if (SIGNS[state][1]) cell.append(make("span", "", SIGNS[state][1]));
      if (state === "c") cell.style.setProperty("--strength", `${Math.round(22 + 78 * Math.min(1, Math.max(0, valueAt(fact, at) / 1000 / LN2)))}%`);
      if (isNew(fact, at)) cell.classList.add("new");
      cell.setAttribute("role", "gridcell");
      cell.setAttribute("aria-label", `version ${version.n}: ${describe(fact, at)}`);
      cell.title = `${fact.id}, version ${version.n}: ${describe(fact, at)}`;
      cell.dataset.column = at;
      cell.tabIndex = -1;
      line.append(cell);
    });
    return line;
  }

  // Whether the fact above came with another update.
  const startsGroup = (place) => place > 0 && $("order").value === "came" && shown[place - 1].since[0] !== shown[place].since[0];

  function paint() {
    const from = Math.max(0, Math.floor(grid.scrollTop / ROW) - SPARE);
    const to = Math.min(shown.length, Math.ceil((grid.scrollTop + grid.clientHeight) / ROW) + SPARE);
    for (const [place, line] of drawn) {
      if ((place < from || place >= to) && place !== active.row) {
        line.remove();
        drawn.delete(place);
      }
    }
    const wanted = Array.from({ length: Math.max(0, to - from) }, (_, k) => from + k);
    if (active.row >= 0) wanted.push(active.row);
    for (const place of wanted) {
      if (!drawn.has(place)) {
        drawn.set(place, row(place));
        body.append(drawn.get(place));
      }
    }
    mark();
  }

  const cellAt = ({ row, column }) => (row < 0 ? head : drawn.get(row))?.querySelector(`[data-column="${column}"]`);

  // Where Tab enters the map, and what is open.
  function mark() {
    for (const cell of grid.querySelectorAll('[tabindex="0"]')) cell.tabIndex = -1;
    const entry = cellAt(active);
    if (entry) entry.tabIndex = 0;
    for (const cell of grid.querySelectorAll(".on")) cell.classList.remove("on");
    const place = shown.indexOf(chosen.fact);
    if (!chosen.fact) cellAt({ row: -1, column: chosen.column })?.classList.add("on");
    else if (place >= 0) for (const column of new Set([-1, chosen.column])) cellAt({ row: place, column })?.classList.add("on");
  }

  function move(rowNow, columnNow) {
    const least = rowNow < 0 ? 0 : -1; // the corner does nothing
    active = { row: Math.max(-1, Math.min(shown.length - 1, rowNow)), column: Math.max(least, Math.min(last, columnNow)) };
    if (active.row >= 0) {
      const [top, bottom] = [active.row * ROW, (active.row + 1) * ROW + head.offsetHeight];
      if (top < grid.scrollTop) grid.scrollTop = top;
      if (bottom > grid.scrollTop + grid.clientHeight) grid.scrollTop = bottom - grid.clientHeight;
    }
    paint();
    const cell = cellAt(active);
    if (active.column >= 0) { // the names cover what is scrolled under them
      const [start, end] = [cell.offsetLeft - corner.offsetWidth, cell.offsetLeft + cell.offsetWidth];
      if (start < grid.scrollLeft) grid.scrollLeft = start;
      if (end > grid.scrollLeft + grid.clientWidth) grid.scrollLeft = end - grid.clientWidth;
    }
    cell.focus();
  }

  function open() {
    const fact = active.row < 0 ? null : shown[active.row];
    chosen = { fact, column: active.column };
    mark();
    reveal(fact ? openFact(fact, active.column < 0 ? null : active.column) : openVersion(active.column));
  }

  grid.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-column]");
    if (!cell) return;
    const line = cell.closest("[data-row]");
    active = { row: line ? +line.dataset.row : -1, column: +cell.dataset.column };
    open();
  });
  grid.addEventListener("keydown", (event) => {
    const { row: rowNow, column: columnNow } = active;
    const page = Math.max(1, Math.floor((grid.clientHeight - head.offsetHeight) / ROW) - 1);
    const steps = {
      ArrowDown: [rowNow + 1, columnNow], ArrowUp: [rowNow - 1, columnNow],
      ArrowRight: [rowNow, columnNow + 1], ArrowLeft: [rowNow, columnNow - 1],
      PageDown: [rowNow + page, columnNow], PageUp: [rowNow - page, columnNow],
      Home: [event.ctrlKey ? -1 : rowNow, event.ctrlKey ? 0 : -1], End: [event.ctrlKey ? shown.length - 1 : rowNow, last],
    };
    if (event.key === "Enter" || event.key === " ") open();
    else if (steps[event.key]) move(...steps[event.key]);
    else return;
    event.preventDefault();
  });
  panel.leave = () => move(active.row, active.column);
  $("panel").addEventListener("keydown", (event) => {
    if (event.key === "Escape") panel.leave();
  });
  let asked = false;
  grid.addEventListener("scroll", () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      paint();
    });
  });

  // Columns as wide as there is room for; narrow ones have their heads upright.
  function fit() {
    const width = $("map-room").clientWidth - 2; // without the border
    const names = Math.round(Math.min(190, Math.max(90, 0.3 * width)));
    const cell = Math.max(16, Math.min(150, Math.floor((width - names) / data.versions.length)));
    grid.style.setProperty("--names", `${names}px`);
    grid.style.setProperty("--cell", `${cell}px`);
    grid.style.setProperty("--columns", data.versions.length);
    body.style.width = `${names + cell * data.versions.length}px`;
    head.classList.toggle("upright", cell < 76);
    paint();
  }

  function show(facts) {
    shown = facts;
    for (const line of drawn.values()) line.remove();
    drawn.clear();
    active = { row: -1, column: active.column < 0 ? last : active.column };
    body.style.height = `${Math.max(1, shown.length) * ROW}px`;
    body.replaceChildren(...(shown.length ? [] : [make("p", "nothing", "No fact matches.")]));
    grid.setAttribute("aria-rowcount", shown.length + 1);
    grid.scrollTop = 0;
    paint();
  }

  return { fit, show, toTheLast: () => { grid.scrollLeft = grid.scrollWidth; } };
}

const latest = (fact) => fact.states[fact.states.length - 1];
const fell = (fact) => (fact.fall ? fact.fall[2] - fact.fall[1] : 0);
const now = (fact) => (isHeld(latest(fact)) ? fact.values[fact.values.length - 1] : Infinity);
const wasLost = (fact) =>
  data.versions.some((_, at) => stateAt(fact, at) === "l" && "cr".includes(stateAt(fact, at - 1)) && !isNew(fact, at));
const WHICH = {
  all: () => true,
  unsafe: (fact) => "rlb".includes(latest(fact)),
  cost: wasLost,
  changed: (fact) => fact.since.length > 1,
  retracted: (fact) => /[gb]/.test(fact.states),
};
const ORDER = {
  came: () => 0,
  margin: (a, b) => now(a) - now(b) || 0,
  fall: (a, b) => fell(a) - fell(b),
  id: (a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0),
};

if (data) {
  $("explorer").hidden = false;
  document.documentElement.classList.add("live");
  const map = heatmap();
  const update = () => {
    const wanted = $("find").value.trim().toLowerCase();
    const facts = data.facts.filter((fact) => fact.id.toLowerCase().includes(wanted) && WHICH[$("which").value](fact));
    facts.sort(ORDER[$("order").value]);
    $("matches").textContent = `${facts.length.toLocaleString("en")} of ${counted(data.facts.length, "fact")}`;
    map.show(facts);
  };
  $("find").addEventListener("input", update);
  $("which").addEventListener("change", update);
  $("order").addEventListener("change", update);
  map.fit();
  update();
  map.toTheLast();
  new ResizeObserver(map.fit).observe($("map-room"));
  openVersion(data.versions.length - 1);
}
