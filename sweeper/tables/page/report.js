"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// Pieces of the page. Every text of the sweep enters as a text node, never as markup.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}

const table = (heads, lines, name) => make("div", {class: "scroll", tabindex: 0, role: "region",
  "aria-label": name}, make("table", {class: "list"},
  make("thead", {}, make("tr", {}, ...heads.map((head) =>
    make("th", {scope: "col", class: "text"}, head)))),
  make("tbody", {}, ...lines.map((line) => make("tr", {}, ...line.map((cell) =>
    make("td", {class: typeof cell === "number" ? null : "text wrap"},
      typeof cell === "number" ? String(cell) : cell ?? "–")))))));

const section = (id, title, note) => {
  byId("contents").append(make("a", {href: `#${id}`}, title));
  const body = make("div", {});
  const words = make("p", {class: "note"}, note);
  byId("main").append(make("section", {id, "aria-labelledby": `${id}-title`},
    make("h2", {id: `${id}-title`}, title), words, body));
  return {body, words};
};

// Numbers and words.

const unpack = (columns) => {
  const names = Object.keys(columns);
  const read = names.map((name) => Array.isArray(columns[name]) ? (i) => columns[name][i]
    : (i) => columns[name].levels[columns[name].codes[i]] ?? null);
  return Array.from({length: data.sizes[columns === data.rows ? "rows" : "points"]}, (_, i) =>
    Object.fromEntries(names.map((name, j) => [name, read[j](i)])));
};
const points = unpack(data.points), rows = unpack(data.rows);
const oracles = new Set(points.filter((point) => point.oracle).map((point) => point.defense));
const measures = data.measures.filter((item) =>
  points.some((point) => point[item.name] !== null));
const measure = (name) => measures.find((item) => item.name === name);
const reached = new Set(points.filter((point) => point.reached).map((point) => point.defense));
const marked = (defense) => defense + (oracles.has(defense) ? data.states.oracle.sign : "")
  + (reached.has(defense) ? data.states.reached.sign : "");
const tooLossy = (loss) => loss !== null && loss > data.max_acc_loss + 1e-12;
const one = (value) => value.toFixed(1).replace(/^-0\.0$/, "0.0");
const percent = (value) => value === null ? "n/a" : one(100 * value);
const share = (value) => `${+(100 * value).toPrecision(6)} %`;
const word = (axis, value) => value === null ? "–" : axis === "poison_rate" ? share(value)
  : axis === "clean_budget" ? (value < 1 ? share(value) : String(value)) : String(value);
const time = (seconds) => seconds === null ? "not recorded" : seconds < 0.1 ? "< 0.1 s"
  : seconds < 90 ? `${+seconds.toPrecision(3)} s` : seconds < 5400 ? `${one(seconds / 60)} min`
  : `${one(seconds / 3600)} h`;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const averaged = (all, name) => { // over the seeds that count
  const values = all.map((point) => point[`${name}_counted`]).filter((value) => value !== null);
  return values.length ? mean(values) : null;
};
const unique = (values) => [...new Set(values)];

// What is shown.

const AXES = ["dataset", "model", "poison_rate", "target", "clean_budget"];
const shown = {metric: measures[0]?.name, sort: "file", attack: "", defense: ""};
const options = Object.fromEntries(AXES.map((axis) => {
  const found = data.order[axis] ?? unique(points.map((point) => point[axis]))
    .sort((a, b) => a - b);
  const real = found.filter((value) => value !== 0 || axis === "target");
  return [axis, real.length ? real : found];
}));
for (const axis of AXES) shown[axis] = options[axis][axis === "poison_rate"
  ? options[axis].length - 1 : 0];
const rated = new Map(data.order.attack.map((attack) => [attack, unique(points.filter((point) =>
  point.attack === attack && point.poison_rate).map((point) => point.poison_rate))]));
const OWN = "own"; // each attack at its highest rate, where the attacks do not share their rates
if ([...rated.values()].some((own) => own.length && !own.includes(shown.poison_rate))) {
  options.poison_rate = [OWN, ...options.poison_rate];
  shown.poison_rate = OWN;
}
const onlyTarget = new Map(data.order.attack.map((attack) =>
  [attack, unique(points.filter((point) => point.attack === attack).map((p) => p.target))]));

const fits = (point, axis) => {
  if (point[axis] === shown[axis]) return true;
  if (axis === "target") return String(onlyTarget.get(point.attack)) === "0";
  if (shown[axis] === OWN && point.poison_rate) {
    return point.poison_rate === Math.max(...rated.get(point.attack));
  }
  return (axis === "poison_rate" || axis === "clean_budget") && !point[axis];
};
const contains = (text, part) => text.toLowerCase().includes(part.trim().toLowerCase());
const chosen = (axes = AXES) => points.filter((point) => axes.every((axis) => fits(point, axis))
  && contains(point.attack, shown.attack) && contains(point.defense, shown.defense));

function controls() {
  const pick = (name, title, values) => make("label", {}, title, make("select", {name,
    onchange: (event) => {
      shown[name] = values[event.target.selectedIndex][0];
      draw();
    }}, ...values.map(([value, text]) =>
      make("option", {selected: value === shown[name]}, text))));
  const search = (name, title) => make("label", {}, title, make("input", {name, type: "search",
    placeholder: "part of a name", oninput: (event) => {
      shown[name] = event.target.value;
      draw();
    }}));
  const titles = {dataset: "Data set", model: "Model", poison_rate: "Poison rate",
    target: "Target", clean_budget: "Clean budget"};
  byId("controls").append(
    pick("metric", "Metric", measures.map((item) => [item.name, item.head])),
    ...AXES.filter((axis) => options[axis].length > 1).map((axis) =>
      pick(axis, titles[axis], options[axis].map((value) =>
        [value, value === OWN ? "highest of each attack" : word(axis, value)]))),
    pick("sort", "Sort", [["file", "as in the sweep file"], ["name", "by name"],
      ["mean", "by mean, best first"]]),
    search("attack", "Attacks"), search("defense", "Defenses"));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
}

// Colours: cividis (Nunez, Anderton and Renslow, 2018), which colour-blind readers can order.

const dark = matchMedia("(prefers-color-scheme: dark)");
const CIVIDIS = ["#00224e", "#083370", "#35456c", "#4f576c", "#666970", "#7d7c78", "#948e77",
  "#aea371", "#c8b866", "#e5cf52", "#fee838"].map((hex) =>
  [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const OKABE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function color(share) { // 0 lies near the page, 1 stands out
  const place = 10 * Math.min(1, Math.max(0, dark.matches ? share : 1 - share));
  const low = Math.min(9, Math.floor(place));
  const rgb = CIVIDIS[low].map((value, i) =>
    Math.round(value + (place - low) * (CIVIDIS[low + 1][i] - value)));
  const light = rgb.map((value) => value / 255).map((value) =>
    value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const luminance = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2];
  return {background: `rgb(${rgb})`, color: luminance > 0.179 ? "#000" : "#fff"};
}

// The matrix.

let matrixPart;
function stateOf(point) { // of one without a value
  if (!point || point.state !== "ok") return point ? point.state : "missing";
  const {triggered} = measure(shown.metric);
  const measured = triggered ? point.acc !== null : point.kind === "input filter";
  return point.blind && measured ? "unknown" : "undefined";
}
const interval = (point, name) => point[`${name}_low`] === null ? "no interval"
  : `95 % interval ${percent(point[`${name}_low`])} to ${percent(point[`${name}_high`])}`;

function matrix() {
  const here = chosen(), item = measure(shown.metric), name = item.name;
  const cells = new Map(here.map((point) => [`${point.attack}\n${point.defense}`, point]));
  const average = (axis, label, what = name) =>
    averaged(here.filter((point) => point[axis] === label), what);
  const guesses = (defense) => item.triggered && tooLossy(average("defense", defense, "acc_loss"));
  const labels = (axis) => {
    const found = data.order[axis].filter((label) => here.some((point) => point[axis] === label));
    if (shown.sort === "name") return found.sort((a, b) => a.localeCompare(b));
    if (shown.sort === "file") return found;
    const worst = -Infinity, score = (label) => {
      const value = average(axis, label);
      const guessing = axis === "defense" && guesses(label);
      return value === null || guessing ? worst : item.better * value;
    };
    return found.sort((a, b) => score(b) - score(a));
  };
  const attacks = labels("attack"), defenses = labels("defense");
  const values = here.map((point) => point[name]).filter((value) => value !== null);
  const rate = ["asr", "ra", "tpr", "fpr", "auroc"].includes(name);
  const low = rate ? 0 : Math.min(...values), high = rate ? 1 : Math.max(...values);
  const tint = (value) => color(high > low ? (value - low) / (high - low) : 0);
  const states = new Set();
  const signs = (marks) => Object.keys(marks).filter((mark) => marks[mark]).map((mark) => {
    states.add(mark);
    return data.states[mark].sign;
  }).join("");
  const named = (attack) => shown.poison_rate === OWN && rated.get(attack).length
    ? `${attack} ${share(Math.max(...rated.get(attack)))}` : attack;
  const cell = (attack, defense) => {
    const point = cells.get(`${attack}\n${defense}`);
    if (point && point[name] !== null) {
      const {background, color: ink} = tint(point[name]);
      const text = percent(point[name]) + signs({partial: point.partial,
        untaken: point.untaken > 0, guessing: item.triggered && tooLossy(point.acc_loss)});
      const link = make("a", {href: `#row-${keys(point)[0]}`, tabindex: -1,
        "aria-label": `${attack} against ${defense}: ${item.head} ${text}`}, text);
      link.point = point;
      const box = make("td", {}, link);
      box.style.background = background;
      box.style.color = ink;
      return box;
    }
    const state = stateOf(point);
    states.add(state);
    const {sign, text} = data.states[state];
    if (!point) return make("td", {class: "state none", title: text}, sign);
    const link = make("a", {href: `#row-${keys(point)[0]}`, tabindex: -1,
      "aria-label": `${attack} against ${defense}: ${text}`}, sign);
    link.point = point;
    return make("td", {class: "state"}, link);
  };
  const body = make("table", {class: "matrix"},
    make("thead", {}, make("tr", {}, make("th", {scope: "col", class: "text"}, "attack"),
      ...defenses.map((defense) => make("th", {scope: "col"}, make("span", {}, marked(defense)))))),
    make("tbody", {}, ...attacks.map((attack) => make("tr", {},
      make("th", {scope: "row"}, named(attack)),
      ...defenses.map((defense) => cell(attack, defense))))),
    make("tfoot", {}, make("tr", {}, make("th", {scope: "row"}, "mean"),
      ...defenses.map((defense) => make("td", {}, percent(average("defense", defense)) +
        signs({guessing: guesses(defense)}))))));
  body.addEventListener("keydown", (event) => walk(event, body));
  if (defenses.some((defense) => oracles.has(defense))) states.add("oracle");
  if (defenses.some((defense) => reached.has(defense))) states.add("reached");
  const ramp = make("span", {class: "ramp", role: "img", "aria-label": "colour scale"});
  const stops = [0, 0.25, 0.5, 0.75, 1].map((at) => color(at).background);
  ramp.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
  const legend = make("p", {class: "key"},
    make("span", {}, `${item.head}, percent: ${percent(low)}`, ramp, percent(high)),
    ...[...states].map((state) => make("span", {},
      `${data.states[state].sign} ${data.states[state].text}`)));
  const empty = make("p", {}, "Nothing in the sweep has these names; clear the two search fields.");
  matrixPart.body.replaceChildren(...(attacks.length
    ? [make("div", {class: "scroll"}, body), legend,
      ...data.notes.map((note) => make("p", {class: "note"}, note))] : [empty]));
  body.querySelector("td a")?.setAttribute("tabindex", 0);
}

function walk(event, body) { // arrows move between the cells, Tab leaves the matrix
  const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
    Home: [0, -Infinity], End: [0, Infinity]}[event.key];
  const link = event.target.closest("td a");
  if (!step || !link) return;
  event.preventDefault();
  const lines = [...body.tBodies[0].rows].map((row) => [...row.querySelectorAll("td")]);
  let y = lines.findIndex((line) => line.includes(link.parentNode));
  let x = lines[y].indexOf(link.parentNode);
  if (Math.abs(step[1]) === Infinity) {
    const links = lines[y].map((box) => box.querySelector("a")).filter(Boolean);
    return links.at(step[1] > 0 ? -1 : 0).focus();
  }
  do [y, x] = [y + step[0], x + step[1]]; while (lines[y]?.[x] && !lines[y][x].querySelector("a"));
  lines[y]?.[x]?.querySelector("a").focus();
}

function tip(link) {
  const point = link?.point;
  byId("tip").hidden = !point;
  if (!point) return;
  const item = measure(shown.metric), value = point[item.name];
  const lines = value === null ? [data.states[stateOf(point)].text]
    : [`${item.head} ${percent(value)} %, ${interval(point, item.name)}`,
      `${point[`${item.name}_n`]} of ${point.runs} seed${point.runs > 1 ? "s" : ""}` +
      (point.untaken ? `, ${point.untaken} marked ${data.states.untaken.sign}` : "")];
  lines.push(`${time(point.seconds)} a cell, victim ${time(point.victim_seconds)}`,
    `sees ${point.sees ?? "not recorded"}`);
  byId("tip").replaceChildren(make("b", {}, `${point.attack} against ${marked(point.defense)}`),
    ...lines.flatMap((line) => [line, make("br")]), "Enter or click: its record");
  const box = link.getBoundingClientRect(), size = byId("tip").getBoundingClientRect();
  const below = box.bottom + 8 + size.height < innerHeight;
  byId("tip").style.left = `${Math.max(8, Math.min(box.left, innerWidth - size.width - 8))}px`;
  byId("tip").style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - size.height - 8)}px`;
}

// Records.

const rowsOf = new Map();
for (const row of rows) {
  const place = [row.dataset, row.model, row.attack, row.poison_rate, row.target, row.defense];
  const name = JSON.stringify(place);
  rowsOf.set(name, [...(rowsOf.get(name) ?? []), row]);
}
const siblings = (place) => (rowsOf.get(JSON.stringify([place.dataset, place.model, place.attack,
  place.poison_rate, place.target, place.defense])) ?? []).filter((row) =>
  !row.clean_budget || row.clean_budget === place.clean_budget);
const keys = (point) => siblings(point).map((row) => row.key);

function record() {
  const row = rows.find((row) => location.hash === `#row-${row.key}`);
  const dialog = byId("record");
  if (!row) return dialog.close();
  const found = siblings(row).sort((a, b) => a.seed - b.seed);
  const names = Object.keys(row).filter((name) => found.some((row) =>
    row[name] !== null && row[name] !== ""));
  const same = found.length > 1;
  dialog.replaceChildren(
    make("header", {}, make("h2", {id: "record-title"}, `${row.attack} ` +
      `${word("poison_rate", row.poison_rate)} against ${row.defense}, ${row.dataset}`),
    make("form", {method: "dialog"}, make("button", {}, "Close"))),
    make("p", {class: "note"}, `The row${same ? "s, one a seed," : ""} as the store has ` +
      `${same ? "them" : "it"}; fractions, seconds, megabytes.`),
    table(["column", ...found.map((row) => `seed ${row.seed}`)], names.map((name) =>
      [name, ...found.map((row) => row[name] === null ? "–" : String(row[name]))]), "Record"));
  if (!dialog.open) dialog.showModal();
}

// Charts.

const charts = {};

function chart(part, id, spec, heads, lines) {
  part.body.hidden = !lines.length;
  if (!lines.length) return;
  if (!charts[id]) {
    const box = make("div", {class: "chart"});
    const save = (form) => make("button", {type: "button", onclick: async () => {
      const url = await charts[id].view.toImageURL(form, 2);
      make("a", {href: url, download: `${data.sweep}-${id}.${form}`}).click();
    }}, `Save ${form.toUpperCase()}`);
    charts[id] = {box, numbers: make("details", {}), turn: 0};
    part.body.append(box, make("div", {class: "tools"}, save("svg"), save("png"),
      charts[id].numbers));
  }
  const mine = charts[id], turn = ++mine.turn;
  const open = mine.numbers.open;
  mine.numbers.replaceChildren(make("summary", {}, "The numbers"),
    table(heads, lines, `${part.words.textContent.split(".")[0]}: numbers`));
  mine.numbers.open = open;
  const axis = {labelColor: css("--ink"), titleColor: css("--soft"), gridColor: css("--line"),
    domainColor: css("--mute"), tickColor: css("--mute"), labelFontSize: 12, titleFontSize: 12,
    titleFontWeight: "normal", labelLimit: 160};
  const config = {background: "transparent", font: "system-ui, sans-serif", view: {stroke: null},
    axis, legend: {labelColor: css("--ink"), titleColor: css("--soft"), symbolOpacity: 1},
    header: {labelColor: css("--ink"), labelFontSize: 12}, text: {color: css("--ink")}};
  const whole = {$schema: "https://vega.github.io/schema/vega-lite/v6.json", config, ...spec};
  mine.done = (mine.done ?? Promise.resolve()).then(() => {
    if (turn !== mine.turn) return null; // a later choice is already on its way
    mine.result?.finalize();
    return vegaEmbed(mine.box, whole, {actions: false, renderer: "svg", ast: true,
      tooltip: {theme: dark.matches ? "dark" : "light"}}).then((result) => {
      mine.result = result;
      mine.view = result.view;
    });
  });
}

const quantity = (field, title, more = {}) => ({field, type: "quantitative", title, ...more});
const tipped = (...names) => names.map(([field, title]) => ({field, title}));

function tradeoff(part) {
  const name = shown.metric === "acc_loss" ? "asr" : shown.metric, item = measure(name);
  const both = chosen().filter((point) => point[`${name}_counted`] !== null
    && point.acc_loss_counted !== null).map((point) => ({attack: point.attack,
      defense: point.defense, x: 100 * point.acc_loss_counted, y: 100 * point[`${name}_counted`],
      oracle: Boolean(point.oracle || point.reached)}));
  const means = data.order.defense.map((defense) => {
    const own = both.filter((point) => point.defense === defense);
    return own.length && {defense, label: marked(defense), n: own.length, oracle: own[0].oracle,
      x: mean(own.map((point) => point.x)), y: mean(own.map((point) => point.y))};
  }).filter(Boolean);
  const loss = (point) => [point.x, -item.better * point.y];
  const beats = (a, b) => loss(a).every((value, i) => value <= loss(b)[i])
    && loss(a).some((value, i) => value < loss(b)[i]);
  const leads = (point) => !point.oracle && !tooLossy(point.x / 100);
  for (const point of means) point.front = leads(point)
    && !means.some((rival) => leads(rival) && beats(rival, point));
  const round = (point) => ({...point, xs: one(point.x), ys: one(point.y)});
  const x = quantity("x", "ACC loss (points)", {scale: {zero: false, padding: 24},
    axis: {tickCount: 8}});
  const whole = name === "asr" && {domain: [-5, 105], nice: false};
  const y = quantity("y", `${item.head} (%)`, {scale: whole || {zero: false, padding: 20},
    axis: whole ? {values: [0, 20, 40, 60, 80, 100]} : {}});
  const front = means.filter((point) => point.front);
  const spots = new Map(); // the names of points that cover each other stand side by side
  for (const point of means.length > 9 || part.body.clientWidth < 600 ? front : means) {
    const spot = [one(point.x), one(point.y)].join(), other = spots.get(spot);
    spots.set(spot, {...point, label: other ? `${other.label}, ${point.label}` : point.label});
  }
  const named = [...spots.values()];
  const strong = {condition: {test: "datum.front", value: css("--mark")}, value: css("--accent")};
  chart(part, "tradeoff", {
    description: `${item.head} against ACC loss; the front: ` +
      front.map((point) => point.label).join(", "),
    width: "container", height: 340, encoding: {x, y}, layer: [
      {data: {values: both.map(round)}, mark: {type: "point", filled: true, size: 22},
        encoding: {opacity: {condition: {param: "over", empty: false, value: 1}, value: 0.35},
          color: {condition: {param: "over", empty: false, value: css("--mark")},
            value: css("--mute")},
          tooltip: tipped(["attack", "attack"], ["defense", "defense"], ["ys", item.head],
            ["xs", "ACC loss"])}},
      {data: {values: front}, mark: {type: "line", interpolate: item.better < 0 ? "step-after"
        : "step-before", color: css("--mark"), strokeDash: [4, 3], strokeWidth: 1.5}},
      {data: {values: means.map(round)}, mark: {type: "point", size: 130, strokeWidth: 2,
        opacity: 1},
        params: [{name: "over", select: {type: "point", fields: ["defense"], on: "pointerover",
          clear: "pointerout"}}],
        encoding: {stroke: strong, fill: {condition: {test: "datum.oracle", value: "transparent"},
          ...strong, ...{condition: [{test: "datum.oracle", value: "transparent"},
            strong.condition]}},
        tooltip: tipped(["label", "defense"], ["ys", `mean ${item.head}`],
          ["xs", "mean ACC loss"], ["n", "cells"])}},
      {data: {values: named}, mark: {type: "text", dx: 7, dy: -10, align: "left", fontSize: 12},
        encoding: {text: {field: "label"}}}]},
  ["defense", `mean ${item.head}`, "mean ACC loss", "cells", "on the front"],
  means.map((point) => [point.label, one(point.y), one(point.x), point.n,
    point.front ? "yes" : "no"]));
}

function rates(part) {
  const item = measure(shown.metric), name = item.name;
  const all = chosen(AXES.filter((axis) => axis !== "poison_rate"))
    .filter((point) => rated.get(point.attack).length > 1 && point[name] !== null);
  const defenses = data.order.defense.filter((defense) =>
    all.some((point) => point.defense === defense));
  const first = defenses.slice(0, 7), rest = defenses.length > 7 ? ["others"] : [];
  const hundred = (value) => value === null ? null : 100 * value;
  const values = all.map((point) => ({attack: point.attack, defense: marked(point.defense),
    line: first.includes(point.defense) ? marked(point.defense) : "others",
    rate: 100 * point.poison_rate, y: 100 * point[name], ys: percent(point[name]),
    low: hundred(point[`${name}_low`]), high: hundred(point[`${name}_high`]), lost: point.untaken,
    about: interval(point, name)}));
  const attacks = data.order.attack.filter((attack) =>
    values.some((value) => value.attack === attack));
  const room = part.body.clientWidth;
  const columns = Math.max(1, Math.min(3, Math.floor(room / 260), attacks.length));
  const hues = [...OKABE.slice(0, first.length), ...(rest.length ? [css("--mute")] : [])]
    .map((hue) => hue === "#000000" ? css("--ink") : hue);
  const keyed = {field: "line", type: "nominal", title: null,
    sort: [...first.map(marked), ...rest]};
  const at = unique(values.map((value) => value.rate)).sort((a, b) => a - b);
  const x = quantity("rate", "poison rate (%)", {scale: {type: "log", nice: false},
    axis: {values: at, format: "~g", grid: false}});
  const y = {scale: {zero: true}};
  chart(part, "rates", {
    description: `${item.head} over the poison rate, a panel an attack`,
    data: {values}, columns, spacing: 18,
    facet: {field: "attack", type: "nominal", title: null, sort: attacks},
    spec: {width: Math.floor(room / columns) - 62, height: 150,
      encoding: {x, detail: {field: "defense"}, color: {...keyed,
        scale: {domain: keyed.sort, range: hues},
        legend: {orient: "top", columns: Math.max(2, Math.floor(room / 130))}}},
      layer: [
        {mark: {type: "rule", opacity: 0.55},
          encoding: {y: quantity("low", `${item.head} (%)`, y), y2: {field: "high"}}},
        {mark: {type: "line", point: {size: 34, filled: true}, strokeWidth: 1.6},
          encoding: {y: quantity("y", `${item.head} (%)`, y), tooltip: tipped(
            ["attack", "attack"], ["defense", "defense"], ["rate", "poison rate (%)"],
            ["ys", item.head], ["about", "interval"])}},
        {mark: {type: "point", filled: true, opacity: 1},
          encoding: {y: quantity("y", `${item.head} (%)`, y), color: {value: css("--page")},
            size: {condition: {test: "datum.lost", value: 12}, value: 0}}}]}},
  ["attack", "defense", "poison rate (%)", item.head, "interval"],
  values.map((value) => [value.attack, value.defense, value.rate, value.ys, value.about]));
}

function ranking(part) {
  const item = measure(shown.metric);
  const found = data.ranks.find((about) => about.measure === item.name
    && about.dataset === shown.dataset);
  if (!found.rank) {
    part.body.hidden = true;
    part.words.textContent = `No ranks: ${found.why}.`;
    return;
  }
  part.words.textContent = `Average rank by ${item.head} over the ${found.blocks} settings of ` +
    `${shown.dataset} in which all have a value, 1 is best; the other choices above do not ` +
    "matter here. Each bar is the critical difference wide (Nemenyi, 5 %): where two bars do not " +
    "overlap, the defenses differ by more than chance." + (found.left_out.length
    ? ` Left out, with a value in fewer than half: ${found.left_out.join(", ")}.` : "") +
    (found.guessing.length ? ` Last where they lost more than ${100 * data.max_acc_loss} points ` +
    `of ACC: ${found.guessing.join(", ")}.` : "");
  const half = found.difference / 2;
  const values = found.defenses.map((defense, i) => ({defense, rank: found.rank[i],
    low: found.rank[i] - half, high: found.rank[i] + half, text: found.rank[i].toFixed(2)}));
  const tooltip = tipped(["defense", "defense"], ["text", "average rank"]);
  const y = {field: "defense", type: "nominal", sort: found.defenses, title: null};
  chart(part, "ranks", {
    description: `Average ranks by ${item.head}, best first: ${found.defenses.join(", ")}`,
    data: {values}, width: "container", height: 24 * values.length,
    encoding: {y, tooltip}, layer: [
      {mark: {type: "rule", strokeWidth: 7, opacity: 0.3, color: css("--accent")}, encoding: {
        x: quantity("low", "average rank", {scale: {zero: false},
          axis: {tickCount: 8}}), x2: {field: "high"}}},
      {mark: {type: "point", filled: true, size: 80, opacity: 1, color: css("--accent")},
        encoding: {x: quantity("rank", "average rank")}},
      {mark: {type: "text", dy: -10, fontSize: 11},
        encoding: {x: quantity("rank", "average rank"), text: {field: "text"}}}]},
  ["defense", "average rank"], values.map((value) => [value.defense, value.text]));
}

function costs(part) {
  const values = data.costs.cells.filter((line) => contains(line.defense, shown.defense))
    .map((line) => ({...line, defense: marked(line.defense), device: line.device ?? "not recorded",
      each: time(line.mean), sum: time(line.total)}));
  const several = unique(values.map((value) => value.device)).length > 1;
  chart(part, "costs", {
    description: "Mean seconds of a cell by defense",
    data: {values}, width: "container", height: 22 * values.length, layer: [
      {mark: {type: "bar", color: css("--accent"), cornerRadiusEnd: 2}}, {
      mark: {type: "text", align: "left", dx: 4, fontSize: 11}, encoding: {text: {field: "each"},
        color: {value: css("--ink")}}}],
    encoding: {
      y: {field: "defense", type: "nominal", title: null,
        sort: {field: "mean", op: "max", order: "descending"}},
      x: quantity("mean", "seconds of a cell, mean", {axis: {tickCount: 8},
        scale: {domainMax: 1.2 * Math.max(...values.map((line) => line.mean ?? 0)) || 1}}),
      ...(several ? {yOffset: {field: "device"}, color: {field: "device", title: null,
        scale: {range: OKABE.slice(0, 6)}, legend: {orient: "top"}}} : {}),
      tooltip: tipped(["defense", "defense"], ["device", "device"], ["each", "mean"],
        ["sum", "total"], ["cells", "cells"])}},
  ["defense", "device", "cells", "mean", "total"],
  values.map((value) => [value.defense, value.device, value.cells, value.each, value.sum]));
}

// What does not change with the choices.

function summary() {
  const ended = rows.filter((row) => row.status === "ok").length;
  const bad = rows.filter((row) => !["ok", "not_applicable"].includes(row.status)).length;
  const count = (axis) => unique(points.map((point) => point[axis])).length;
  const spent = data.costs.training + data.costs.cells.reduce((sum, line) => sum + line.total, 0);
  const tiles = {"cells that ended well": ended, "failed or blocked": bad,
    attacks: count("attack"), defenses: count("defense"), "data sets": count("dataset"),
    seeds: unique(rows.map((row) => row.seed)).length, "computed": time(spent)};
  byId("summary").append(...Object.entries(tiles).map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
}

function failures() {
  const bad = rows.filter((row) => row.status !== "ok");
  const {body} = section("failures", "Cells without a result", bad.length
    ? "By state and cause; run the sweep again to retry those that failed or were blocked."
    : "None: every cell ended well.");
  const groups = new Map();
  for (const row of bad) {
    const cause = (row.error ?? "").trim().split("\n").at(-1) || "no cause recorded";
    const name = JSON.stringify([row.status, cause.replace(/\b[0-9a-f]{20}\b/g, "…")]);
    groups.set(name, [...(groups.get(name) ?? []), row]);
  }
  const lines = [...groups].sort((a, b) => b[1].length - a[1].length).map(([name, found]) => {
    const [status, cause] = JSON.parse(name);
    const links = found.slice(0, 50).flatMap((row) => [make("a", {href: `#row-${row.key}`},
      `${row.attack} ${word("poison_rate", row.poison_rate)} / ${row.defense} / ${row.dataset} / ` +
      `seed ${row.seed}`), make("br")]);
    const more = found.length > 50 ? `and ${found.length - 50} more` : "";
    return [data.states[status]?.text ?? status, found.length, cause,
      make("details", {}, make("summary", {}, "Which"), ...links, more)];
  });
  if (bad.length) body.append(table(["state", "cells", "cause", "cells"], lines, "Causes"));
}

function gallery() {
  const {body, words} = section("gallery", "Triggers", "Test images, the same with the trigger, " +
    "and the difference, amplified.");
  body.className = "gallery";
  if (!data.pictures.length) words.textContent = "No pictures: the report was written without " +
    "--pictures, or the data or the learned triggers were not at hand.";
  body.append(...data.pictures.map(([name, source]) => make("figure", {},
    make("img", {src: source, alt: `${name}: clean, triggered, difference`}),
    make("figcaption", {class: "note"}, name))));
}

function provenance() {
  const {body} = section("provenance", "Provenance", "From which code, on what, of which sweep.");
  const facts = Object.entries(data.about).flatMap(([name, values]) =>
    [make("dt", {}, name), make("dd", {}, ...values.flatMap((value) => [value, make("br")]))]);
  body.append(make("dl", {class: "facts"}, ...facts), make("details", {},
    make("summary", {}, "The sweep file"), make("pre", {tabindex: 0}, data.text)));
}

// Everything together.

let parts;

function draw() {
  tip(null);
  matrix();
  for (const [redraw, part] of parts) redraw(part);
}

function start() {
  const lost = points.some((point) => point.untaken);
  const leftOut = lost && !data.counted ? " without the victims marked °" : "";
  summary();
  if (!measures.length) {
    byId("main").append(make("p", {}, "No cell of this sweep has ended well yet."));
  } else {
    controls();
    matrixPart = section("matrix", "Attacks against defenses", "Mean over seeds, in percent; the " +
      `last line is the mean of its column${leftOut}. Arrow keys move between the cells; Enter ` +
      "opens a cell's record.");
    parts = [];
    if (measure("acc_loss") && measure("asr")) parts.push([tradeoff, section("tradeoff",
      "Trade-off", `Small: one attack. Large: a defense's mean over the attacks shown${leftOut}. ` +
      "Dashed: the front, the defenses no other beats in both; oracles (hollow) are not on it, nor " +
      `what lost more than ${100 * data.max_acc_loss} points of ACC.`)]);
    if ([...rated.values()].some((own) => own.length > 1)) parts.push([rates, section("rates",
      "Poison rates", "Mean over seeds with its 95 % interval; the first seven defenses that pass " +
      `the filter have a colour.${lost ? " Hollow: with victims marked ° above." : ""}`)]);
    parts.push([ranking, section("ranks", "Ranks", "")]);
    const {cells, victims, training, saved} = data.costs;
    parts.push([costs, section("costs", "Cost", `${victims} victims were trained in ` +
      `${time(training)}; a training for each of the ${cells.reduce((n, c) => n + c.cells, 0)} ` +
      `defense cells would have taken ${time(saved)} more. Seconds are never averaged over ` +
      "different devices.")]);
  }
  gallery();
  failures();
  provenance();
  if (!measures.length) return;
  draw();
  dark.addEventListener("change", draw);
  let width = innerWidth, waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    if (innerWidth !== width) waiting = setTimeout(() => { width = innerWidth; draw(); }, 200);
  });
}

start();
for (const [event, show] of [["pointerover", true], ["focusin", true], ["pointerout", false],
  ["focusout", false]]) {
  byId("main").addEventListener(event, ({target}) => {
    const link = target.closest?.(".matrix td a");
    if (!link) return;
    if (event === "focusin") {
      for (const other of link.closest("table").querySelectorAll("td a[tabindex='0']")) {
        other.tabIndex = -1;
      }
      link.tabIndex = 0;
    }
    tip(show ? link : null);
  });
}
addEventListener("keydown", (event) => { if (event.key === "Escape") tip(null); });
addEventListener("scroll", () => tip(null), {passive: true});
addEventListener("hashchange", record);
byId("record").addEventListener("close", () =>
  history.replaceState(null, "", location.pathname + location.search));
if (location.hash.startsWith("#row-")) record();
window.ready = () => Promise.all(Object.values(charts).map((chart) => chart.done));
})();
