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
      download(id, () => [charts[id].heads, ...charts[id].lines]), charts[id].numbers));
  }
  const mine = Object.assign(charts[id], {heads, lines}), turn = ++mine.turn;
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

function extent(item, values) { // in percent: [low, high] of an axis, all of it where it matters
  if (item.whole) return [0, 100];
  const low = Math.min(...values), high = Math.max(...values), points = item.name === "acc_loss";
  const step = points && high - low < 20 ? 2 : 5;
  return [Math.max(points ? -100 : 0, step * Math.floor((low - 0.5) / step)),
    Math.min(100, step * Math.ceil((high + 0.5) / step))];
}
const scaled = (item, [low]) => `${item.head} (${item.name === "acc_loss" ? "points" : "%"})` +
  (low > 0 ? `; the axis begins at ${low}` : "");

// Names beside points, none over another: the first of these places that is free.

const PLACES = [[1, -1], [1, 1], [-1, -1], [-1, 1], [1, 0], [-1, 0], [1, -2.6], [1, 2.6],
  [-1, -2.6], [-1, 2.6]];
const pen = document.createElement("canvas").getContext("2d");

function labelled(means, at, [width, height]) { // at: of a point its [x, y] in pixels
  pen.font = "12px system-ui, sans-serif";
  const boxes = means.map((point) => at(point)).map(([x, y]) => [x - 7, y - 7, x + 7, y + 7]);
  const free = (box) => box[0] >= 0 && box[1] >= 0 && box[2] <= width && box[3] <= height
    && boxes.every((other) => box[0] >= other[2] || box[2] <= other[0] || box[1] >= other[3]
      || box[3] <= other[1]);
  return means.flatMap((point) => {
    const [x, y] = at(point), wide = pen.measureText(point.label).width + 4;
    for (const [side, step] of PLACES) {
      const dx = 9 * side, dy = 12 * step, left = side > 0 ? x + dx : x + dx - wide;
      const box = [left, y + dy - 8, left + wide, y + dy + 8];
      if (!free(box)) continue;
      boxes.push(box);
      return [{data: {values: [point]}, mark: {type: "text", dx, dy, fontSize: 12,
        align: side > 0 ? "left" : "right", baseline: "middle"},
      encoding: {text: {field: "label"}}}];
    }
    return []; // its name stands below the pointer and among the numbers
  });
}

function tradeoff(part) {
  const name = shown.metric === "acc_loss" ? "asr" : shown.metric, item = measure(name);
  const both = chosen().filter((point) => point[`${name}_counted`] !== null
    && point.acc_loss_counted !== null).map((point) => ({attack: named("attack", point.attack),
      defense: point.defense, label: named("defense", point.defense) + signed(point.defense),
      x: 100 * point.acc_loss_counted, y: 100 * point[`${name}_counted`],
      kind: references.has(point.defense) ? "reference"
        : point.oracle || point.reached ? "barred" : ""}));
  const averages = defenses.map((defense) => {
    const own = both.filter((point) => point.defense === defense);
    return own.length && {defense, n: own.length, kind: own[0].kind, label: marked(defense),
      x: mean(own.map((point) => point.x)), y: mean(own.map((point) => point.y))};
  }).filter(Boolean);
  const loss = (point) => [point.x, -item.better * point.y];
  const beats = (a, b) => loss(a).every((value, i) => value <= loss(b)[i])
    && loss(a).some((value, i) => value < loss(b)[i]);
  const competes = (point) => !point.kind && !tooLossy(point.x / 100);
  for (const point of averages) point.front = competes(point)
    && !averages.some((rival) => competes(rival) && beats(rival, point));
  const front = averages.filter((point) => point.front);
  const wide = part.body.clientWidth, size = [wide - 66, wide < 600 ? 300 : 340];
  const [left, right] = extent(measure("acc_loss"), both.map((point) => point.x));
  const [low, high] = extent(item, both.map((point) => point.y));
  const at = ({x, y}) => [size[0] * (x - left) / (right - left),
    size[1] * (high - y) / (high - low)];
  const priority = (point) => point.kind === "reference" ? 2 : point.front ? 1 : 0;
  const texts = labelled([...averages].sort((a, b) => priority(b) - priority(a)), at, size);
  const round = (point) => ({...point, xs: one(point.x), ys: one(point.y)});
  const x = quantity("x", "ACC loss (points)", {scale: {domain: [left, right], nice: false},
    axis: {tickCount: Math.floor(size[0] / 80)}});
  const y = quantity("y", scaled(item, [low]), {scale: {domain: [low, high], nice: false},
    axis: {tickCount: 6}});
  const strong = {test: "datum.front", value: css("--mark")};
  const plain = {test: "datum.kind === 'reference'", value: css("--ink")};
  const hollow = {test: "datum.kind !== ''", value: "transparent"};
  chart(part, "tradeoff", {
    description: `${item.head} against ACC loss; the front: ` +
      front.map((point) => point.label).join(", "),
    width: size[0], height: size[1], encoding: {x, y}, layer: [
      {data: {values: both.map(round)}, mark: {type: "point", filled: true, size: 45},
        encoding: {opacity: {condition: {param: "over", empty: false, value: 1}, value: 0.45},
          color: {condition: {param: "over", empty: false, value: css("--mark")},
            value: css("--mute")},
          tooltip: tipped(["attack", "attack"], ["label", "defense"], ["ys", item.head],
            ["xs", "ACC loss"])}},
      {data: {values: front}, mark: {type: "line", interpolate: item.better < 0 ? "step-after"
        : "step-before", color: css("--mark"), strokeDash: [4, 3], strokeWidth: 1.5}},
      {data: {values: averages.map(round).reverse()}, mark: {type: "point", strokeWidth: 2,
        opacity: 1},
        params: [{name: "over", select: {type: "point", fields: ["defense"], on: "pointerover",
          clear: "pointerout"}}],
        encoding: {
          shape: {condition: {...plain, value: "diamond"}, value: "circle"},
          size: {condition: {...plain, value: 320}, value: 130},
          stroke: {condition: [plain, strong], value: css("--accent")},
          fill: {condition: [hollow, strong], value: css("--accent")},
          tooltip: tipped(["label", "defense"], ["ys", `mean ${item.head}`],
            ["xs", "mean ACC loss"], ["n", "attacks"])}},
      ...texts]},
  ["defense", `mean ${item.head} (%)`, "mean ACC loss (points)", "attacks", "on the front"],
  averages.map((point) => [named("defense", point.defense) + signed(point.defense), one(point.y),
    one(point.x), point.n, point.kind === "reference" ? "reference" : point.front ? "yes" : "no"]));
}

function rates(part) {
  const item = measure(shown.metric), name = item.name;
  const all = chosen(AXES.filter((axis) => axis !== "poison_rate"))
    .filter((point) => ratesOf.get(point.attack).length > 1 && point[name] !== null);
  const found = defenses.filter((defense) => all.some((point) => point.defense === defense));
  const hued = found.filter((defense) => !references.has(defense)).slice(0, OKABE.length);
  const keyed = (defense) => references.has(defense) || hued.includes(defense)
    ? marked(defense) : "others";
  const keys = unique(found.map(keyed));
  const hue = (key) => key === "others" ? css("--mute")
    : OKABE[hued.findIndex((defense) => marked(defense) === key)] ?? css("--ink");
  const hundred = (value) => value === null ? null : 100 * value;
  const values = all.map((point) => ({attack: titled("attack", point.attack),
    defense: named("defense", point.defense) + signed(point.defense),
    line: keyed(point.defense), reference: references.has(point.defense),
    rate: 100 * point.poison_rate, y: 100 * point[name], ys: percent(point[name]),
    low: hundred(point[`${name}_low`]), high: hundred(point[`${name}_high`]), lost: point.untaken,
    about: interval(point, name)}));
  const attacks = data.order.attack.map((attack) => titled("attack", attack))
    .filter((attack) => values.some((value) => value.attack === attack));
  const room = part.body.clientWidth;
  const columns = Math.max(1, Math.min(3, Math.floor(room / 260), attacks.length));
  const at = unique(values.map((value) => value.rate)).sort((a, b) => a - b);
  const x = quantity("rate", "poison rate (%)", {scale: {type: "log", nice: false},
    axis: {values: at, format: "~g", grid: false}});
  const domain = extent(item, values.map((value) => value.y)); // an interval may go beyond
  const y = (field) => quantity(field, scaled(item, domain), {
    scale: {domain, nice: false}, axis: {tickCount: 5, titleLimit: 190}});
  chart(part, "rates", {
    description: `${item.head} over the poison rate, a panel an attack`,
    data: {values}, columns, spacing: 18,
    facet: {field: "attack", type: "nominal", title: null, sort: attacks},
    spec: {width: Math.floor(room / columns) - 66, height: 170,
      encoding: {x, detail: {field: "defense"}, color: {field: "line", type: "nominal",
        title: null, sort: keys, scale: {domain: keys, range: keys.map(hue)},
        legend: {orient: "top", columns: Math.max(2, Math.floor(room / 130))}}},
      layer: [
        {mark: {type: "rule", opacity: 0.55, clip: true},
          encoding: {y: y("low"), y2: {field: "high"}}},
        {mark: {type: "line", point: {size: 50, filled: true}, strokeWidth: 1.6},
          encoding: {y: y("y"), strokeDash: {condition: {test: "datum.reference",
            value: [5, 3]}, value: [1, 0]}, tooltip: tipped(
            ["attack", "attack"], ["defense", "defense"], ["rate", "poison rate (%)"],
            ["ys", item.head], ["about", "interval"])}},
        {mark: {type: "point", filled: true, opacity: 1},
          encoding: {y: y("y"), color: {value: css("--page")},
            size: {condition: {test: "datum.lost", value: 16}, value: 0}}}]}},
  ["attack", "defense", "poison rate (%)", `${item.head} (%)`, "interval"],
  values.map((value) => [value.attack, value.defense, value.rate, value.ys, value.about]));
}

function ranking(part) {
  const item = measure(shown.metric);
  const found = data.ranks.find((about) => about.measure === item.name
    && about.dataset === shown.dataset);
  part.body.hidden = !found.rank;
  if (!found.rank) {
    part.words.textContent = `There are no ranks here: ${found.why}.`;
    return;
  }
  const listed = (labels) => labels.map(marked).join(", ");
  const names = found.defenses.map(marked), half = found.difference / 2;
  part.words.textContent = `In each of the ${found.blocks} settings (model, attack, poison rate) ` +
    `of ${shown.dataset} in which all have a value, the defenses are put in order by ` +
    `${item.head}: the best has rank 1. The point is a defense's average rank. Two defenses ` +
    "whose bars do not overlap differ by more than chance (Nemenyi's test at 5 %; each bar is " +
    "one critical difference wide)." + (found.left_out.length
    ? ` Left out, with a value in fewer than half of the settings: ${listed(found.left_out)}.`
    : "") + (found.guessing.length ? ` Last wherever it lost more than ` +
    `${100 * data.max_acc_loss} points of ACC: ${listed(found.guessing)}.` : "");
  const values = found.defenses.map((label, i) => ({defense: marked(label), label, rank:
    found.rank[i], low: found.rank[i] - half, high: found.rank[i] + half,
    text: found.rank[i].toFixed(2)}));
  const tooltip = tipped(["label", "defense"], ["text", "average rank"]);
  const y = {field: "defense", type: "nominal", sort: names, title: null};
  chart(part, "ranks", {
    description: `Average ranks by ${item.head}, best first: ${names.join(", ")}`,
    data: {values}, width: "container", height: 26 * values.length,
    encoding: {y, tooltip}, layer: [
      {mark: {type: "rule", strokeWidth: 7, opacity: 0.3, color: css("--accent")}, encoding: {
        x: quantity("low", "average rank", {scale: {zero: false, nice: false},
          axis: {values: values.map((_, i) => i + 1), format: "d"}}), x2: {field: "high"}}},
      {mark: {type: "point", filled: true, size: 80, opacity: 1, color: css("--accent")},
        encoding: {x: quantity("rank", "average rank")}},
      {mark: {type: "text", dy: -10, fontSize: 11},
        encoding: {x: quantity("rank", "average rank"), text: {field: "text"}}}]},
  ["defense", "average rank"],
  values.map((value) => [named("defense", value.label), value.text]));
}

function costs(part) {
  const values = data.costs.cells.filter((line) => wanted("defense", line.defense))
    .map((line) => ({...line, defense: marked(line.defense), label: named("defense", line.defense),
      zero: 0, device: line.device ?? "not recorded",
      each: time(line.mean), sum: time(line.total)}));
  const several = unique(values.map((value) => value.device)).length > 1;
  chart(part, "costs", {
    description: "Mean time of a defense",
    data: {values}, width: "container", height: 22 * values.length, layer: [
      {mark: {type: "bar", color: css("--accent"), cornerRadiusEnd: 2}},
      {mark: {type: "tick", thickness: 3, color: css("--accent")}, // what took no time has a stub
        encoding: {x: {field: "zero", type: "quantitative"}}}, {
      mark: {type: "text", align: "left", dx: 4, fontSize: 11}, encoding: {text: {field: "each"},
        color: {value: css("--ink")}}}],
    encoding: {
      y: {field: "defense", type: "nominal", title: null,
        sort: {field: "mean", op: "max", order: "descending"}},
      x: quantity("mean", "mean seconds of a defense", {axis: {tickCount: 8},
        scale: {domainMax: 1.2 * Math.max(...values.map((line) => line.mean ?? 0)) || 1}}),
      ...(several ? {yOffset: {field: "device"}, color: {field: "device", title: null,
        scale: {range: OKABE.slice(0, 6)}, legend: {orient: "top"}}} : {}),
      tooltip: tipped(["label", "defense"], ["device", "device"], ["each", "mean"],
        ["sum", "total"], ["cells", "cells"])}},
  ["defense", "device", "cells", "mean", "total"],
  values.map((value) => [value.label, value.device, value.cells, value.each, value.sum]));
}

