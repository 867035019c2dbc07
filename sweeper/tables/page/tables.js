// Cells of tables: a number or a sign, and a link to the record.

function stateOf(point, item) { // of one without a value
  if (!point || point.state !== "ok") return point ? point.state : "missing";
  const measured = item.triggered ? point.acc !== null : point.kind === "input filter";
  return point.blind && measured ? "unknown" : "undefined";
}
const interval = (point, name) => point[`${name}_low`] === null ? "no interval"
  : `95 % interval ${percent(point[`${name}_low`])} to ${percent(point[`${name}_high`])}`;
const signs = (marks, seen) => Object.keys(marks).filter((mark) => marks[mark]).map((mark) => {
  seen.add(mark);
  return data.states[mark].sign;
}).join("");
const against = (point) => `${named("attack", point.attack)} against ` +
  named("defense", point.defense) + signed(point.defense);

function entry(point, item, seen, parts) { // `parts`: what stands for a number
  const value = point?.[item.name] ?? null;
  if (value === null) {
    const state = stateOf(point, item), {sign, text} = data.states[state];
    seen.add(state);
    if (!point) return make("td", {class: "state none", title: text}, sign);
    return make("td", {class: "state"}, link(point, item, text, [sign]));
  }
  const marks = signs({partial: point.partial, untaken: point.untaken > 0,
    guessing: item.triggered && tooLossy(point.acc_loss)}, seen);
  return make("td", {}, link(point, item, percent(value) + marks, parts(value, marks)));
}

function link(point, item, text, children) {
  return Object.assign(make("a", {href: `#row-${keys(point)[0]}`, tabindex: -1,
    "aria-label": `${against(point)}: ${item.head} ${text}`}, ...children), {point, item});
}

function means(here, item) { // of each defense: over how many, and the sign of what guesses
  const of = (defense, name) => here.filter((point) => point.defense === defense)
    .map((point) => point[`${name}_counted`]).filter((value) => value !== null);
  const most = Math.max(0, ...defenses.map((defense) => of(defense, item.name).length));
  return (defense, seen) => {
    const values = of(defense, item.name), losses = of(defense, "acc_loss");
    const guessing = item.triggered && losses.length > 0 && tooLossy(mean(losses));
    const few = values.length && values.length < most ? ` (${values.length})` : "";
    return percent(values.length ? mean(values) : null) + few + signs({guessing}, seen);
  };
}

function sorted(axis, here, item) { // the labels of an axis that occur, as the choice asks
  const all = axis === "defense" ? defenses : data.order[axis];
  const found = all.filter((label) => here.some((point) => point[axis] === label));
  const first = (label) => references.has(label) && axis === "defense";
  const ordered = (by) => found.sort((a, b) => first(b) - first(a) || by(a, b));
  if (shown.sort === "file") return found;
  if (shown.sort === "name") {
    return ordered((a, b) => titled(axis, a).localeCompare(titled(axis, b)));
  }
  const own = (label) => here.filter((point) => point[axis] === label);
  const score = Object.fromEntries(found.map((label) => {
    const value = averaged(own(label), item.name);
    const lost = axis === "defense" && item.triggered
      && tooLossy(averaged(own(label), "acc_loss"));
    return [label, value === null || lost ? -Infinity : item.better * value];
  }));
  return ordered((a, b) => score[b] - score[a]);
}

const headed = (defense, attributes, text = marked(defense)) =>
  make("th", {...attributes, title: defense}, text);
const explained = (shownDefenses, seen) => { // the signs on a table, and what each says
  if (shownDefenses.some((defense) => oracles.has(defense))) seen.add("oracle");
  if (shownDefenses.some((defense) => reached.has(defense))) seen.add("reached");
  return [...seen].map((state) =>
    make("span", {}, `${data.states[state].sign} ${data.states[state].text}`));
};
const nothing = () =>
  make("p", {}, "Nothing in the sweep has these names; clear the two search fields.");

function ready(body) { // arrows walk through it; Tab stops at one of its cells
  body.addEventListener("keydown", (event) => walk(event, body));
  body.querySelector("td a")?.setAttribute("tabindex", 0);
  return body;
}

// The paper's table: each attack and rate a line, each defense its measures side by side.

function paper(part) {
  const here = chosen(AXES.filter((axis) => axis !== "poison_rate"));
  const items = unique(["acc", "asr", shown.metric]).map(measure).filter(Boolean);
  const attacks = sorted("attack", here, measure(shown.metric));
  const across = sorted("defense", here, measure(shown.metric));
  if (!attacks.length) return part.body.replaceChildren(nothing());
  const seen = new Set(), spot = (...place) => JSON.stringify(place);
  const cells = new Map(here.map((point) =>
    [spot(point.attack, point.poison_rate, point.defense), point]));
  const own = (attack) => unique(here.filter((point) => point.attack === attack)
    .map((point) => point.poison_rate)).sort((a, b) => a - b);
  const lines = attacks.flatMap((attack) => own(attack).map((rate, i, all) =>
    ({attack, rate, span: i ? 0 : all.length})));
  const rate = (value) => value ? share(value) : "–";
  const number = (point, item) => (value, marks) => {
    const sd = point[`${item.name}_sd`], n = point[`${item.name}_n`];
    const text = percent(value), {sign} = data.states.untaken;
    const some = point.untaken > 0 && point.untaken < n ? `, ${point.untaken}${sign}` : "";
    return [point[`${item.name}_best`] ? make("strong", {}, text) : text,
      sd === null ? "" : make("span", {class: "sd"}, ` ± ${one(100 * sd)}`),
      some || n < seeds ? make("span", {class: "sd"}, ` (${n}${some})`) : "",
      some ? marks.replace(sign, "") : marks];
  };
  const each = (build) => across.flatMap((defense) => items.map((item, i) => {
    const box = build(defense, item);
    if (!i) box.classList.add("first");
    if (references.has(defense)) box.classList.add("reference");
    return box;
  }));
  const foot = new Map(items.map((item) => [item, means(here, item)]));
  const body = make("table", {class: "paper"},
    make("thead", {}, make("tr", {}, make("th", {scope: "col", rowspan: 2, class: "corner"},
      "attack"),
      make("th", {scope: "col", rowspan: 2}, "poison rate"), ...across.map((defense) =>
        headed(defense, {scope: "colgroup", colspan: items.length,
          class: references.has(defense) ? "group reference" : "group"}))),
    make("tr", {}, ...each((defense, item) =>
      make("th", {scope: "col"}, abbreviated(item.head))))),
    make("tbody", {}, ...lines.map((line) => make("tr", {class: line.span ? "first" : null},
      line.span ? make("th", {scope: "rowgroup", rowspan: line.span, title: line.attack},
        titled("attack", line.attack)) : null,
      make("th", {scope: "row"}, rate(line.rate)),
      ...each((defense, item) => {
        const point = cells.get(spot(line.attack, line.rate, defense));
        return entry(point, item, seen, number(point, item));
      })))),
    make("tfoot", {}, make("tr", {}, make("th", {scope: "row", colspan: 2}, "mean"),
      ...each((defense, item) => make("td", {}, foot.get(item)(defense, seen))))));
  part.body.replaceChildren(scrolled("The table", ready(body)),
    make("p", {class: "key"}, ...explained(across, seen)),
    ...data.notes.map((note) => make("p", {class: "note"}, note)),
    make("div", {class: "tools"}, download("table", () => tidy(here, items))));
}

const seeds = unique(rows.map((row) => row.seed)).length;

function tidy(here, items) { // one line a number, fractions as in the rows
  const axes = ["dataset", "model", "attack", "poison_rate", "target", "clean_budget", "defense"];
  const parts = ["", "_sd", "_n", "_low", "_high"];
  return [[...axes, "state", "measure", "mean", "sd", "seeds", "low", "high"],
    ...here.flatMap((point) => items.map((item) => [...axes.map((axis) => point[axis]),
      point.state, item.name, ...parts.map((part) => point[item.name + part])]))];
}

// The matrix: one measure, a colour a number.

function matrix(part) {
  const here = chosen(), item = measure(shown.metric), name = item.name;
  const attacks = sorted("attack", here, item), across = sorted("defense", here, item);
  if (!attacks.length) return part.body.replaceChildren(nothing());
  const cells = new Map(here.map((point) => [`${point.attack}\n${point.defense}`, point]));
  const values = here.map((point) => point[name]).filter((value) => value !== null);
  const whole = item.whole || name === "auroc";
  const low = whole ? 0 : Math.min(...values), high = whole ? 1 : Math.max(...values);
  const tint = (value) => color(high > low ? (value - low) / (high - low) : 0);
  const seen = new Set(), foot = means(here, item);
  const rated = (attack) => shown.poison_rate === OWN && ratesOf.get(attack).length
    ? ` ${share(Math.max(...ratesOf.get(attack)))}` : "";
  const tinted = (point) => {
    const box = entry(point, item, seen, (value, marks) => [percent(value) + marks]);
    if (point && point[name] !== null) {
      const {background, color: ink} = tint(point[name]);
      Object.assign(box.style, {background, color: ink});
    }
    return box;
  };
  const body = make("table", {class: "matrix"},
    make("thead", {}, make("tr", {}, make("th", {scope: "col", class: "text"}, "attack"),
      ...across.map((defense) =>
        headed(defense, {scope: "col"}, make("span", {}, marked(defense)))))),
    make("tbody", {}, ...attacks.map((attack) => make("tr", {},
      make("th", {scope: "row", title: attack}, titled("attack", attack) + rated(attack)),
      ...across.map((defense) => tinted(cells.get(`${attack}\n${defense}`)))))),
    make("tfoot", {}, make("tr", {}, make("th", {scope: "row"}, "mean"),
      ...across.map((defense) => make("td", {}, foot(defense, seen))))));
  const ramp = make("span", {class: "ramp", role: "img", "aria-label": "colour scale"});
  const stops = [0, 0.25, 0.5, 0.75, 1].map((at) => color(at).background);
  ramp.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
  part.body.replaceChildren(scrolled("The matrix", ready(body)), make("p", {class: "key"},
    make("span", {}, `${item.head} in percent: ${percent(low)}`, ramp, percent(high)),
    ...explained(across, seen)));
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
  const {item} = link, value = point[item.name];
  const lines = value === null ? [data.states[stateOf(point, item)].text]
    : [`${item.head} ${percent(value)} %, ${interval(point, item.name)}`,
      `${point[`${item.name}_n`]} of ${point.runs} seed${point.runs > 1 ? "s" : ""}` +
      (point.untaken ? `, ${point.untaken} marked ${data.states.untaken.sign}` : "")];
  lines.push(`the defense took ${time(point.seconds)}, training the victim ` +
    time(point.victim_seconds), `the defense sees: ${point.sees || "nothing"}`);
  byId("tip").replaceChildren(make("b", {}, against(point)),
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

const recorded = (name, value) => value === null ? "–"
  : name.endsWith("seconds") ? time(value) : name.endsWith("_at") ? moment(value) : String(value);

function record() {
  const row = rows.find((row) => location.hash === `#row-${row.key}`);
  const dialog = byId("record");
  if (!row) return dialog.close();
  const found = siblings(row).sort((a, b) => a.seed - b.seed);
  const names = Object.keys(row).filter((name) => found.some((row) =>
    row[name] !== null && row[name] !== ""));
  const same = found.length > 1;
  dialog.replaceChildren(
    make("header", {}, make("h2", {id: "record-title"}, `${named("attack", row.attack)} ` +
      `${word("poison_rate", row.poison_rate)} against ${named("defense", row.defense)}, ` +
      row.dataset),
    make("form", {method: "dialog"}, make("button", {}, "Close"))),
    make("p", {class: "note"}, "All that was recorded" + (same ? ", a column for each seed" : "") +
      ". Measures are shares of one, memory is in megabytes."),
    table(["what", ...found.map((row) => `seed ${row.seed}`)], names.map((name) =>
      [name, ...found.map((row) => recorded(name, row[name]))]), "Record"));
  if (!dialog.open) dialog.showModal();
}

