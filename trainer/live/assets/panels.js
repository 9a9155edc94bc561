// Panels of runs: keys of metrics.jsonl ("x/" is all of "x/...", "@" validation.jsonl's) to series.
"use strict";

// Places and values where something was measured.
function measured(columns, name) {
  const found = columns[name].flatMap((value, index) => (value === null ? [] : [[columns.step[index], value]]));
  return [found.map(([x]) => x), found.map(([, y]) => y)];
}

function valuesOf(run, key) {
  const columns = key === "@" ? run.validation : run.metrics;
  let names = key.endsWith("/") ? Object.keys(columns).filter((name) => name.startsWith(key)) : [key];
  if (key === "@") names = Object.keys(columns).filter((name) => /^(recall|ndcg)@/.test(name) && name.endsWith("@" + cutOff(run)));
  return names.filter((name) => name in columns).map((name) => [name.slice(name.indexOf("/") + 1), ...measured(columns, name)]);
}

// The cut-off nearest to 20.
function cutOff(run) {
  const found = Object.keys(run.validation).filter((name) => name.startsWith("recall@")).map((name) => Number(name.slice(7)));
  return found.reduce((best, k) => (Math.abs(k - 20) < Math.abs(best - 20) ? k : best), found[0]);
}

// One run: a colour a key. Several runs: a colour a run, a dash a key.
function panelSeries(panel, runs) {
  const found = runs.flatMap((run) => panel.keys.flatMap((key) => valuesOf(run, key)).map(([key, x, y]) => ({ run, key, x, y })));
  const keys = [...new Set(found.map((one) => one.key))];
  return found.filter((one) => one.y.length).map(({ run, key, x, y }) => {
    const at = keys.indexOf(key), label = key.replaceAll("_", " ");
    if (runs.length === 1 && run.color === undefined) return { name: label, x, y, color: color(at) };
    return { name: keys.length > 1 ? `${run.name} ${label}` : run.name, x, y, color: color(run.color || 0), dash: DASHES[at % DASHES.length] };
  });
}

// Losses of different formulas or temperatures have different scales: a panel a kind.
function ofOneKind(panel, runs) {
  const scale = ({ config }) => `${config.loss.name}, temperature ${config.loss.temperature}`;
  const kinds = [...new Set(runs.map(scale))];
  if (panel.unit !== "nats" || kinds.length < 2) return [{ ...panel, runs }];
  return kinds.map((kind) => ({ ...panel, title: `${panel.title} of ${kind}`, runs: runs.filter((run) => scale(run) === kind) }))
    .filter((each) => panelSeries(each, each.runs).length);
}

// What a panel says in a word, where a chart would show a straight line; null: draw it.
function steadyValue(panel, runs) {
  const series = panelSeries(panel, runs), values = series.flatMap((one) => one.y);
  if (!series.length || panel.keys[0] === "@") return null;
  if (panel.keys[0] === "epochs_trained") return shortNumber(values.at(-1));
  if (panel.keys[0] === "rank_loss/" && runs.every((run) => run.starts.every((start) => start.world_size === 1))) return "one rank";
  const least = Math.min(...values), most = Math.max(...values);
  return most - least <= 1e-6 * Math.max(Math.abs(most), Math.abs(least)) ? withUnit(values.at(-1), panel.unit) : null;
}

function drawPanel(card, panel, runs) {
  const marks = runs.length === 1 ? runs[0].starts.slice(1).map((start) => start.step) : [];
  const levels = panel.keys[0] === "@" && runs.length === 1 ? popularity(runs[0]) : [];
  drawChart(card, { ...panel, series: panelSeries(panel, runs), marks, levels });
}

// The popularity ranking's values of what is drawn of an evaluation.
function popularity(run) {
  return ["recall", "ndcg"].flatMap((name) => {
    const known = (run.validation[`popularity/${name}@${cutOff(run)}`] || []).filter((value) => value !== null);
    return known.length ? [{ name: `${name} of popularity`, y: known.at(-1) }] : [];
  });
}

// Rows of the panels that have values.
function filledRows(rows, runs) {
  const filled = rows.map((row) => ({ title: row.title, panels: row.panels.filter((panel) => panelSeries(panel, runs).length) }));
  return filled.filter((row) => row.panels.length);
}
