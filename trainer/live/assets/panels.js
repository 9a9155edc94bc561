// Panels of runs: keys of metrics.jsonl ("x/" is all of "x/...", "@" validation.jsonl's) to series.
"use strict";

function valuesOf(run, key, onlyOneCutOff) {
  if (key === "@") {
    const names = Object.keys(run.validation).filter((name) => /^(recall|ndcg)@/.test(name) && (!onlyOneCutOff || name.endsWith("@" + cutOff(run))));
    return names.map((name) => [name, run.validation.step, run.validation[name]]);
  }
  const names = key.endsWith("/") ? Object.keys(run.metrics).filter((name) => name.startsWith(key)) : [key];
  return names.filter((name) => name in run.metrics).map((name) => [name.slice(name.indexOf("/") + 1), run.metrics.step, run.metrics[name]]);
}

// The cut-off nearest to 20.
function cutOff(run) {
  const found = Object.keys(run.validation).filter((name) => name.startsWith("recall@")).map((name) => Number(name.slice(7)));
  return found.reduce((best, k) => (Math.abs(k - 20) < Math.abs(best - 20) ? k : best), found[0]);
}

// One run: a colour a key. Several runs: a colour a run, a dash a key.
function panelSeries(panel, runs) {
  const found = runs.flatMap((run, number) =>
    panel.keys.flatMap((key) => valuesOf(run, key, runs.length > 1)).map(([key, x, y]) => ({ run, number, key, x, y })));
  const keys = [...new Set(found.map((one) => one.key))];
  return found.map(({ run, number, key, x, y }) => {
    const at = keys.indexOf(key), label = key.replaceAll("_", " ");
    if (runs.length === 1) return { name: label, x, y, color: color(at) };
    return { name: keys.length > 1 ? `${run.name} ${label}` : run.name, x, y, color: color(number), dash: DASHES[at % DASHES.length] };
  });
}

function drawPanel(card, panel, runs) {
  const marks = runs.length === 1 ? runs[0].starts.slice(1).map((start) => start.step) : [];
  drawChart(card, { ...panel, series: panelSeries(panel, runs), marks });
}

// Rows of the panels that have values.
function filledRows(rows, runs) {
  const filled = rows.map((row) => ({ title: row.title, panels: row.panels.filter((panel) => panelSeries(panel, runs).length) }));
  return filled.filter((row) => row.panels.length);
}
