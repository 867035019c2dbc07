"use strict";
(() => {
const SECONDS = 3, AT_WORK = 12;
const byId = (id) => document.getElementById(id);
const AXES = ["dataset", "model", "poison_rate", "target", "clean_budget"];
const WORDS = {dataset: "Data set", model: "Model", poison_rate: "Poison rate",
  target: "Target class", clean_budget: "Clean budget", attack: "Attack", defense: "Defense",
  seed: "Seed"};
const BAD = ["failed", "timeout", "blocked", "diverged"];

// Every text of the store enters as a text node, never as markup.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined)
      node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

const scroll = (name, ...inside) => make("div", {class: "scroll", tabindex: 0, role: "region",
  "aria-label": name}, ...inside);
const head = (text, more = {}) => make("th", {scope: "col", class: "text", ...more}, text);
const share = (value) => `${+(100 * value).toPrecision(6)} %`;
const percent = (value) => value === null || value === undefined ? "–" : (100 * value).toFixed(1);
const count = (value) => value.toLocaleString("en");
const HIGHEST = "highest of each attack";
const word = (axis, value) => value === null || value === undefined ? "–"
  : value === HIGHEST ? value
  : axis === "poison_rate" || (axis === "clean_budget" && value > 0 && value < 1) ? share(value)
  : axis === "clean_budget" && value === 0 ? "none" : String(value);
const clock = (iso) => iso ? new Date(iso).toLocaleString("en-GB",
  {dateStyle: "medium", timeStyle: "short"}) : "–";
const span = (seconds) => seconds < 0.1 ? "< 0.1 s" : seconds < 90 ? `${+seconds.toPrecision(2)} s`
  : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
const unique = (values) => [...new Set(values)];
const path = (...names) => `/${names.map(encodeURIComponent).join("/")}`;

function bar(said, wide = false) {
  const line = make("div", {class: wide ? "progress wide" : "progress", role: "img",
    "aria-label": `${said.done} of ${said.total} cells done, ${said.failed} failed`});
  for (const part of ["done", "failed"]) {
    const piece = make("span", {class: part});
    piece.style.width = `${said.total ? 100 * said[part] / said.total : 0}%`;
    line.append(piece);
  }
  return line;
}

function runner(driver) {
  if (!driver) return "nobody runs it";
  return {alive: `run by ${driver.who}`, dead: `was run by ${driver.who}, which has died`,
    silent: `run by ${driver.who}, silent for a while`}[driver.state];
}

const tiles = (...pairs) => make("dl", {class: "tiles"}, ...pairs.map(([name, value]) =>
  make("div", {}, make("dt", {}, name), make("dd", {}, value))));

// All sweeps.

function sweeps(data) {
  title("Sweeps", `store ${data.store}`);
  if (!data.sweeps.length) return [make("p", {}, "This store has no sweep yet. A sweep appears " +
    "here when it is run with this store.")];
  return [scroll("All sweeps", make("table", {class: "list"},
    make("thead", {}, make("tr", {}, head("Sweep"), head("Progress"), head("Done"), head("Failed"),
      head("Left"), head("Last change", {class: "text optional"}),
      head("Who runs it", {class: "text optional"}))),
    make("tbody", {}, ...data.sweeps.map((said) => make("tr", {},
      make("th", {scope: "row"}, make("a", {href: path("sweep", said.sweep)}, said.sweep)),
      make("td", {class: "bar"}, bar(said)),
      make("td", {}, `${count(said.done)} of ${count(said.total)}`),
      make("td", {class: said.failed ? "state bad" : ""}, count(said.failed)),
      make("td", {}, count(said.left)),
      make("td", {class: "text optional"}, clock(said.last_activity)),
      make("td", {class: "who optional"}, runner(said.driver)))))))];
}

// One sweep.

const chosen = {};

function cells(data) {
  const names = Object.keys(data.columns);
  return data.columns.key.map((_, i) => Object.fromEntries(names.map((name) =>
    [name, data.columns[name][i]])));
}

// An attack without a target of its own (`none`, all-to-all) has target 0 in all of its cells.
function targetless(all) {
  const aimed = new Set(all.filter((cell) => cell.target !== 0).map((cell) => cell.attack));
  return aimed.size ? unique(all.map((cell) => cell.attack)).filter((name) => !aimed.has(name)) : [];
}

function choices(all, again) {
  const form = make("form", {class: "choices", "aria-label": "Which cells are shown"});
  const free = targetless(all);
  for (const axis of AXES) {
    const values = unique((axis === "target" ? all.filter((cell) => !free.includes(cell.attack))
      : all).map((cell) => cell[axis]));
    // Rate 0 is the attack `none`, budget 0 a defense without clean images: beside every other.
    const real = values.filter((value) => value !== 0 || axis === "target" || values.length === 1);
    real.sort((a, b) => typeof a === "number" && typeof b === "number" ? a - b : 0);
    if (axis === "poison_rate" && real.length > 1) real.push(HIGHEST);
    if (!real.includes(chosen[axis])) chosen[axis] = real.at(-1);
    if (real.length < 2) continue;
    const pick = make("select", {name: axis, onchange: (event) => {
      chosen[axis] = real[event.target.selectedIndex];
      again();
    }}, ...real.map((value) => make("option", {selected: value === chosen[axis]},
      word(axis, value))));
    form.append(make("label", {}, WORDS[axis], pick));
  }
  return form.children.length ? form : null;
}

function highest(all) {
  const rates = new Map();
  for (const {attack, poison_rate: rate} of all)
    rates.set(attack, Math.max(rate, rates.get(attack) ?? 0));
  return rates;
}
const here = (cell, rates, free) => AXES.every((axis) => cell[axis] === chosen[axis]
  || (cell[axis] === 0 && (axis !== "target" || free.includes(cell.attack)))
  || (chosen[axis] === HIGHEST && cell[axis] === rates.get(cell.attack)));
const mean = (values) => values.length
  ? values.reduce((sum, value) => sum + value, 0) / values.length : null;

function square(sweep, data, attack, defense, group) {
  const [first] = group;
  if (!first) return make("td", {class: "none"}, "–");
  const ended = group.filter((cell) => cell.state === "ok");
  const [acc, asr] = ["acc", "asr"].map((name) => mean(ended.map((cell) => cell[name])
    .filter((value) => value !== null)));
  const states = unique(group.map((cell) => cell.state));
  const bad = group.find((cell) => BAD.includes(cell.state));
  const running = group.find((cell) => cell.state === "running");
  const shown = bad ?? running ?? ended[0] ?? first;
  const state = states.length === 1 && states[0] === "ok" ? ""
    : states.map((name) => `${group.filter((cell) => cell.state === name).length} `
      + name.replace("_", " ")).join(", ");
  const level = asr === null ? "" : `level${Math.min(4, Math.floor(asr * 5))}`;
  const marks = [ended.length ? level : bad ? "bad" : running ? "" : "waiting",
    running ? "running" : "", bad && ended.length ? "partly" : ""].filter(Boolean).join(" ");
  const words = group.length === 1 ? shown.state.replace("_", " ") : state;
  const text = ended.length ? asr === null ? percent(acc) : percent(asr) : words;
  const under = ended.length ? [asr === null ? "" : percent(acc),
    ended.length < group.length ? `${ended.length}/${group.length}` : ""].filter(Boolean)
    .join(" · ") : "";
  const told = `${attack} against ${defense}: ${ended.length ? `ASR ${percent(asr)}, `
    + `${data.heads.acc} ${percent(acc)}, ` : ""}${state || `${ended.length} ok`}`;
  return make("td", {class: marks}, make("a", {href: path("sweep", sweep, shown.key),
    "data-key": first.key, title: told, "aria-label": told}, text,
    under ? make("span", {class: "of"}, under) : null));
}

function matrix(sweep, data, all) {
  const [rates, free] = [highest(all), targetless(all)];
  const shown = all.filter((cell) => here(cell, rates, free));
  const label = (kind, name) => data.titles[kind]?.[name] ?? String(name);
  const row = (attack) => label("attack", attack) + (chosen.poison_rate === HIGHEST
    && rates.get(attack) ? ` ${share(rates.get(attack))}` : "");
  const [attacks, defenses] = ["attack", "defense"].map((kind) => {
    const there = unique(shown.map((cell) => cell[kind]));
    const order = data.order[kind] ?? [];
    return [...order.filter((name) => there.includes(name)),
      ...there.filter((name) => !order.includes(name))];
  });
  const groups = new Map();
  for (const cell of shown) {
    const place = JSON.stringify([cell.attack, cell.defense]);
    groups.set(place, [...groups.get(place) ?? [], cell]);
  }
  return make("section", {"aria-labelledby": "matrix-title"},
    make("h2", {id: "matrix-title"}, "Attacks against defenses"),
    make("p", {class: "note"}, "The large number is ASR, the share of triggered images that reach " +
      `the attack's target, in percent. Below it is ${data.heads.acc}, in percent, and how many ` +
      "seeds have ended, if not all have. Red means a high ASR, a dashed border that a seed " +
      "failed, a frame that a cell is at work. Click a cell for its record."),
    scroll("Matrix", make("table", {class: "matrix"},
      make("thead", {}, make("tr", {}, head("attack"), ...defenses.map((name) =>
        make("th", {scope: "col", title: name}, make("span", {}, label("defense", name)))))),
      make("tbody", {}, ...attacks.map((attack) => make("tr", {},
        make("th", {scope: "row", title: attack}, row(attack)),
        ...defenses.map((defense) => square(sweep, data, row(attack),
          label("defense", defense), groups.get(JSON.stringify([attack, defense])) ?? []))))))));
}

function sweepPage(data, again) {
  title(data.sweep, null, make("a", {href: "/"}, "All sweeps"));
  const all = cells(data);
  const working = Object.values(data.at_work);
  const kinds = Object.entries(data.cells);
  return [
    tiles(["cells done", `${count(data.done)} of ${count(data.total)}`],
      ["failed", count(data.failed)], ["left", count(data.left)],
      ["last change", clock(data.last_activity)]),
    bar(data, true),
    make("p", {class: "note"}, `${runner(data.driver)}. `, kinds.map(([kind, counts]) =>
      `${kind}: ${count(counts.done)} done, ${count(counts.failed)} failed, `
      + `${count(counts.left)} left`).join("; ")),
    make("p", {class: "links"},
      make("a", {href: path("report", data.sweep)}, "The report: tables and figures"),
      make("a", {href: path("rows", data.sweep)}, "All rows as CSV")),
    working.length ? make("section", {"aria-labelledby": "work-title"},
      make("h2", {id: "work-title"}, `At work now: ${working.length}`),
      make("ul", {class: "at-work"}, ...working.slice(0, AT_WORK).map((words) =>
        make("li", {}, words)), working.length > AT_WORK
        ? make("li", {}, `and ${working.length - AT_WORK} more`) : null)) : null,
    choices(all, again),
    all.length ? matrix(data.sweep, data, all) : make("p", {}, "Its cells are not planned yet."),
    data.failures.length ? make("section", {"aria-labelledby": "failures-title"},
      make("h2", {id: "failures-title"}, "Victims that failed"),
      make("ul", {}, ...data.failures.map((one) => make("li", {}, make("a",
        {href: path("sweep", data.sweep, one.key)},
        [one.kind, ...Object.values(one.axes ?? {})].join(" ")), ` ${one.state ?? ""}`)))) : null,
  ];
}

// One cell.

function value(thing) {
  if (thing === null || thing === undefined || thing === "") return "–";
  if (typeof thing === "object") return JSON.stringify(thing, null, 1);
  return String(thing);
}

function facts(name, pairs, more = "") {
  return pairs.length ? make("section", {}, make("h2", {}, name), make("dl", {class: `facts${more}`},
    ...pairs.flatMap(([key, thing]) => [make("dt", {}, key), make("dd", {}, thing)]))) : null;
}

const RATES = /^(acc|asr|ra|leak|cross_acc|tpr|fpr|precision|auroc|f1|der)(_|$)/;

function record(data) {
  const {attack = "?", defense} = data.axes;
  title({defend: `${attack} against ${defense}`, train: `Victim of ${attack}`,
    prepare: `Trigger of ${attack}`}[data.kind] ?? `Work that defenses share against ${attack}`, null, make("a", {href: "/"}, "All sweeps"), " / ",
    make("a", {href: path("sweep", data.sweep)}, data.sweep));
  const left = {...data.facts};
  const take = (test) => Object.keys(left).filter(test).map((name) => {
    const thing = left[name];
    delete left[name];
    return [name, thing];
  }).filter(([, thing]) => thing !== null && thing !== "");
  const bad = BAD.includes(data.state);
  const {error} = left;
  for (const name of ["error", "status", "key", "sweep", ...Object.keys(data.axes)])
    delete left[name];
  const found = new Map(take((name) => RATES.test(name) && typeof left[name] === "number"));
  const metrics = unique([...found.keys()].map((name) => name.replace("_before", "")));
  const times = take((name) => name.endsWith("seconds"))
    .map(([name, thing]) => [name, span(thing)]);
  const rest = take(() => true).map(([name, thing]) => [name, value(thing)]);
  const state = make("span", {class: bad ? "state bad" : "state"},
    data.state.replace("_", " "));
  const log = make("section", {}, make("h2", {}, "Log"), data.log
    ? make("pre", {class: "log", tabindex: 0, "aria-label": "Log"}, data.log)
    : make("p", {class: "note"}, ["running", "waiting"].includes(data.state)
      ? "What the cell prints appears here when it has ended." : "The cell printed nothing, or an "
      + "older version of the sweeper ran it and kept no log."));
  return [
    make("p", {}, "State: ", state, data.facts.victim ? " · " : null, data.facts.victim ? make("a",
      {href: path("sweep", data.sweep, data.facts.victim)}, "its victim") : null),
    error && !data.log.includes(error.trim()) ? make("section", {}, make("h2", {}, "Error"),
      make("pre", {class: "log", tabindex: 0, "aria-label": "Error"}, error)) : null,
    bad ? log : null,
    facts("Setting", Object.entries(data.axes).map(([axis, thing]) =>
      [WORDS[axis] ?? axis, word(axis, thing)]), " short"),
    data.seeds.length > 1 ? make("nav", {"aria-label": "Other seeds"}, "Seeds:",
      ...data.seeds.map((one) => make("a", {href: path("sweep", data.sweep, one.key),
        "aria-current": one.key === data.key ? "page" : null}, String(one.seed)))) : null,
    metrics.length ? make("section", {}, make("h2", {}, "Metrics, in percent"),
      scroll("Metrics", make("table", {class: "list"}, make("thead", {}, make("tr", {},
        head("Metric"), head("Without a defense"), head("With it"))),
      make("tbody", {}, ...metrics.map((name) => make("tr", {},
        make("th", {scope: "row"}, name.toUpperCase().replace("_", " ")),
        make("td", {}, percent(found.get(`${name}_before`))),
        make("td", {}, percent(found.get(name))))))))) : null,
    facts("Time", times, " short"),
    bad ? null : log,
    facts("Everything else", [["key", data.key], ...rest]),
  ];
}

// The page.

function title(text, note, ...above) {
  document.title = `${text} · sweeper view`;
  byId("title").textContent = text;
  byId("where").replaceChildren(...(above.length ? above : [note ?? ""]));
}

const names = location.pathname.split("/").filter(Boolean).slice(1).map(decodeURIComponent);
const draw = [sweeps, sweepPage, record][names.length];
let tag = "", last = null;

function show() {
  const focus = document.activeElement?.getAttribute?.("data-key")
    ?? document.activeElement?.getAttribute?.("name");
  const places = [...document.querySelectorAll(".scroll, pre")].map((one) =>
    [one.scrollLeft, one.scrollTop]);
  byId("main").replaceChildren(...draw(last, show).filter(Boolean));
  [...document.querySelectorAll(".scroll, pre")].forEach((one, i) => {
    if (places[i]) [one.scrollLeft, one.scrollTop] = places[i];
  });
  if (focus) byId("main").querySelector(
    `[data-key="${CSS.escape(focus)}"], [name="${CSS.escape(focus)}"]`)?.focus();
}

function tell(text) {
  if (byId("told").textContent !== text) byId("told").textContent = text;
}

async function look() {
  if (!document.hidden || !last) {
    try {
      const answer = await fetch(path("data", ...names), {cache: "no-store",
        headers: tag ? {"If-None-Match": tag} : {}});
      if (answer.status === 200) {
        tag = answer.headers.get("ETag") ?? "";
        last = await answer.json();
        show();
        tell("");
      } else if (answer.status === 304) tell("");
      else tell((await answer.text()).trim());
    } catch {
      tell("`sweeper view` has ended, or this machine cannot reach it: what is shown is old.");
    }
  }
  setTimeout(look, 1000 * SECONDS);
}

// The token stays out of the address bar and of the history.
history.replaceState(null, "", location.pathname);
look();
})();
