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

const scrolled = (name, child) =>
  make("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": name}, child);
const table = (heads, lines, name) => scrolled(name, make("table", {class: "list"},
  make("thead", {}, make("tr", {}, ...heads.map((head) =>
    make("th", {scope: "col", class: "text"}, head)))),
  make("tbody", {}, ...lines.map((line) => make("tr", {}, ...line.map((value) =>
    make("td", {class: typeof value === "number" ? null : "text wrap"},
      typeof value === "number" ? String(value) : value ?? "–")))))));

// Downloads. A Blob's address is the page's own: the policy need not allow any other.

const cell = (value) => { // text that no spreadsheet takes for a formula
  const text = value === null || value === undefined ? "" : typeof value === "string"
    ? value.replace(/^(?=[=+\-@\t\r])/, "'") : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
const download = (name, lines, text = "Save CSV") => make("a", {class: "button", href: "#",
  download: `${data.sweep}-${name}.csv`, onclick: ({currentTarget}) => {
    const csv = lines().map((line) => line.map(cell).join(",") + "\n");
    URL.revokeObjectURL(currentTarget.href);
    currentTarget.href = URL.createObjectURL(new Blob(csv, {type: "text/csv"}));
  }}, text);

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
const having = (kind) =>
  new Set(points.filter((point) => point[kind]).map((point) => point.defense));
const oracles = having("oracle"), reached = having("reached"), references = having("reference");
const measures = data.measures.filter((item) =>
  points.some((point) => point[item.name] !== null));
const measure = (name) => measures.find((item) => item.name === name);
const titled = (axis, label) => data.titles[axis]?.[label] ?? label; // "FT"
const named = (axis, label) => { // "FT (fine-tuning)"
  const title = titled(axis, label);
  return title.toLowerCase() === label.toLowerCase() ? title : `${title} (${label})`;
};
const signed = (defense) => (oracles.has(defense) ? data.states.oracle.sign : "")
  + (reached.has(defense) ? data.states.reached.sign : "");
const marked = (defense) => titled("defense", defense) + signed(defense);
const defenses = [...data.order.defense].sort((a, b) => // the reference first, the others as given
  references.has(b) - references.has(a));
const tooLossy = (loss) => loss !== null && loss > data.max_acc_loss + 1e-12;
const one = (value) => value.toFixed(1).replace(/^-0\.0$/, "0.0");
const percent = (value) => value === null ? "n/a" : one(100 * value);
const share = (value) => `${+(100 * value).toPrecision(6)} %`;
const word = (axis, value) => value === null ? "–" : axis === "poison_rate" ? share(value)
  : axis === "clean_budget" ? (value < 1 ? share(value) : String(value)) : String(value);
const time = (seconds) => { // "3 min 20 s"
  if (seconds === null) return "not recorded";
  if (seconds < 9.95) return seconds < 0.05 ? "under 0.1 s" : `${one(seconds)} s`;
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const at = Math.max(0, units.findIndex(([, size]) => seconds >= size - 0.5));
  const [[large, size], small] = [units[at], units[at + 1]];
  if (!small) return `${Math.round(seconds)} s`;
  const whole = Math.round(seconds / small[1]), per = size / small[1];
  const left = whole % per;
  return `${Math.floor(whole / per)} ${large}` + (left ? ` ${left} ${small[0]}` : "");
};
const moment = (text) => // as a row has it, without its microseconds
  text.replace(/^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)[.\d]*\+00:00$/, "$1 $2 UTC");
const about = (head) => data.glossary[head] ? `${head}, ${data.glossary[head]}` : null;
const abbreviated = (head) => about(head)
  ? make("abbr", {title: about(head)}, head) : head;
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
const ratesOf = new Map(data.order.attack.map((attack) => [attack, unique(points.filter((point) =>
  point.attack === attack && point.poison_rate).map((point) => point.poison_rate))]));
const OWN = "own"; // each attack at its highest rate, where the attacks do not share their rates
if ([...ratesOf.values()].some((own) => own.length && !own.includes(shown.poison_rate))) {
  options.poison_rate = [OWN, ...options.poison_rate];
  shown.poison_rate = OWN;
}
const onlyTarget = new Map(data.order.attack.map((attack) =>
  [attack, unique(points.filter((point) => point.attack === attack).map((p) => p.target))]));

const fits = (point, axis) => {
  if (point[axis] === shown[axis]) return true;
  if (axis === "target") return String(onlyTarget.get(point.attack)) === "0";
  if (shown[axis] === OWN && point.poison_rate) {
    return point.poison_rate === Math.max(...ratesOf.get(point.attack));
  }
  return (axis === "poison_rate" || axis === "clean_budget") && !point[axis];
};
const wanted = (axis, label) =>
  named(axis, label).toLowerCase().includes(shown[axis].trim().toLowerCase());
const chosen = (axes = AXES) => points.filter((point) => axes.every((axis) => fits(point, axis))
  && wanted("attack", point.attack) && wanted("defense", point.defense));

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
    target: "Target class", clean_budget: "Clean budget"};
  byId("controls").append(
    pick("metric", "Measure", measures.map((item) => [item.name, item.head])),
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
const OKABE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
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

