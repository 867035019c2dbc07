// What does not change with the choices.

function summary() {
  const bad = rows.filter((row) => !["ok", "not_applicable"].includes(row.status)).length;
  const count = (axis) => unique(points.map((point) => point[axis])).length;
  const attacks = unique(points.filter((point) => point.attack_name !== "none")
    .map((point) => point.attack)).length;
  const spent = data.costs.training + data.costs.cells.reduce((sum, line) => sum + line.total, 0);
  const tiles = {attacks, defenses: defenses.filter((label) => !references.has(label)).length,
    "data sets": count("dataset"), seeds,
    "experiments done": rows.filter((row) => row.status === "ok").length,
    "did not end well": bad, "computing time": time(spent)};
  byId("summary").append(...Object.entries(tiles).map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
  const terms = Object.entries(data.glossary).flatMap(([name, text]) =>
    [make("dt", {}, name), make("dd", {}, text)]);
  byId("words").append(make("details", {}, make("summary", {}, "What the words mean"),
    make("dl", {class: "facts"}, ...terms)));
}

function failures() {
  const bad = rows.filter((row) => row.status !== "ok");
  const {body} = section("failures", "Experiments without a result", bad.length
    ? "By what became of them, and why. To run the sweep again tries once more what failed."
    : "There are none: every experiment ended well.");
  const groups = new Map();
  for (const row of bad) {
    const cause = (row.error ?? "").trim().split("\n").at(-1) || "no cause recorded";
    const name = JSON.stringify([row.status, cause.replace(/\b[0-9a-f]{20}\b/g, "…")]);
    groups.set(name, [...(groups.get(name) ?? []), row]);
  }
  const lines = [...groups].sort((a, b) => b[1].length - a[1].length).map(([name, found]) => {
    const [status, cause] = JSON.parse(name);
    const links = found.slice(0, 50).flatMap((row) => [make("a", {href: `#row-${row.key}`},
      [`${titled("attack", row.attack)} ${word("poison_rate", row.poison_rate)}`,
        titled("defense", row.defense), row.dataset, `seed ${row.seed}`].join(" / ")),
    make("br")]);
    const more = found.length > 50 ? `and ${found.length - 50} more` : "";
    return [data.states[status]?.text ?? status, found.length, cause,
      make("details", {}, make("summary", {}, "Which"), ...links, more)];
  });
  if (bad.length) body.append(table(["what became of them", "how many", "why", "which"], lines,
    "Causes"));
}

function gallery() {
  if (!data.pictures.length && !data.left_out.length) return;
  const {body} = section("gallery", "Triggers", data.pictures.length
    ? "Test samples, the same with the trigger, and the difference, amplified." : "");
  body.append(make("div", {class: "gallery"}, ...data.pictures.map(([name, source]) =>
    make("figure", {}, make("img", {src: source, alt: `${name}: clean, triggered, difference`}),
      make("figcaption", {class: "note"}, name)))),
  ...data.left_out.map((why) => make("p", {class: "note"}, why)));
}

const allRows = () => download("rows", () => [Object.keys(rows[0] ?? {}),
  ...rows.map((row) => Object.values(row))], `All ${rows.length} rows as CSV`);

function provenance() {
  const {body} = section("provenance", "Where the numbers come from", "Code, devices, data and " +
    "settings. The file of all rows has numbers to six digits, measures as shares of one.");
  const facts = Object.entries(data.about).flatMap(([name, values]) =>
    [make("dt", {}, name), make("dd", {}, ...values.flatMap((value) => [value, make("br")]))]);
  body.append(make("dl", {class: "facts"}, ...facts), make("p", {class: "tools"}, allRows()),
    make("details", {}, make("summary", {}, "The sweep file"),
      make("pre", {tabindex: 0}, data.text)));
}

// Everything together.

const parts = []; // what is drawn anew at each choice, and where

function draw() {
  tip(null);
  for (const [redraw, part] of parts) redraw(part);
}

function figures() {
  const add = (redraw, id, title, note) => parts.push([redraw, section(id, title, note)]);
  const lost = points.some((point) => point.untaken);
  const {sign} = data.states.untaken;
  const leftOut = lost && !data.counted ? `, without the victims marked ${sign}` : "";
  const last = `The last line is the mean of its column${leftOut}; in brackets of how many ` +
    "numbers, where other columns have more.";
  const reference = references.size ? " The grey columns are the reference: the attacked model " +
    "without a defense." : "";
  const several = seeds > 1 ? `Mean ± standard deviation over ${seeds} seeds, in percent; in ` +
    `brackets over how many where they are fewer, and how many of them are marked ${sign}.`
    : "In percent, of one seed.";
  const fallen = `lost more than ${100 * data.max_acc_loss} points of ACC`;
  add(paper, "table", "Results", `${several}${reference} Bold: better than every other defense ` +
    `by more than chance. ${last} A number opens all that was recorded: click it, or reach it ` +
    "with the arrow keys and press Enter.");
  add(matrix, "matrix", "At a glance", "The measure and the poison rate chosen above, as a mean " +
    `over seeds: a colour for each number. ${last}`);
  if (measure("acc_loss") && measure("asr")) add(tradeoff, "tradeoff", "What a defense costs",
    `A small point is one attack, a large one a defense's mean over the attacks shown${leftOut}. ` +
    "The best place is where no ACC is lost and the measure is good. The dashed line is the " +
    "front: the defenses that no other equals or beats in both. A diamond is the reference, and " +
    "competes with nobody; hollow circles know more than a defender does, and are not on the " +
    `front, nor is what ${fallen}.`);
  if ([...ratesOf.values()].some((own) => own.length > 1)) add(rates, "rates",
    "From rate to rate", "The mean over seeds at each poison rate, with its 95 % interval; a " +
    "panel for each attack, a colour for each of the first six defenses that pass the filter. " +
    `The dashed line is the reference.${lost ? ` Hollow: with victims marked ${sign}.` : ""}`);
  add(ranking, "ranks", "Ranks over all settings", "");
  const {cells, victims, training, saved} = data.costs;
  add(costs, "costs", "Computing time", `How long a defense takes on one victim. To train the ` +
    `victims, ${victims} in all, took ${time(training)}. Each was trained once for all its ` +
    `defenses: a training for each of the ${cells.reduce((n, line) => n + line.cells, 0)} ` +
    `experiments would have taken ${time(saved)} more. Times of different devices are never ` +
    "averaged.");
}

function start() {
  summary();
  if (measures.length) {
    controls();
    figures();
  } else {
    byId("main").append(make("p", {}, "No experiment of this sweep has ended well yet."));
  }
  gallery();
  failures();
  provenance();
  byId("contents").append(allRows());
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
    const link = target.closest?.("td a");
    if (!link?.point) return;
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
