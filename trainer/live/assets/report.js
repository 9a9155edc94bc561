// The report: panels of all runs over one another, then what evaluation and checkpoint say.
"use strict";

function section(title, charts) {
  if (!charts.length) return;
  const grid = element("div", "grid");
  const part = element("section");
  part.append(element("h2", "", title), grid);
  document.getElementById("panels").append(part);
  for (const draw of charts) {
    const card = element("div", "card");
    grid.append(card);
    draw(card);
  }
}

const splits = (run) => Object.entries(run.evaluation || {}).filter(([, values]) => values.popularity_groups);

function groupCharts(runs) {
  const names = [...new Set(runs.flatMap((run) => splits(run).flatMap(([split, values]) =>
    Object.keys(values.popularity_groups).filter((name) => name.startsWith("recall@")).map((name) => `${name}|${split}`))))];
  return names.map((both) => (card) => {
    const [name, split] = both.split("|");
    const series = runs.flatMap((run, number) => {
      const values = (run.evaluation || {})[split];
      const recall = values && values.popularity_groups && values.popularity_groups[name];
      return recall ? [{ name: run.name, x: recall.map((_, index) => index), y: recall, color: color(number), points: true }] : [];
    });
    const groups = Math.max(...series.map((one) => one.y.length));
    const xNames = Object.fromEntries([...Array(groups).keys()].map((index) =>
      [index, index === 0 ? "rarest" : index === groups - 1 ? "popular" : String(index + 1)]));
    drawChart(card, { title: `${name} by popularity, ${split}`, help: "Targets in groups that share the training rows evenly, least popular first.", unit: "share", xLabel: "popularity group of the target", xTicks: Object.keys(xNames).map(Number), xNames, series, alwaysLegend: runs.length > 1 });
  });
}

function normChart(card, runs) {
  const missing = runs.filter((run) => typeof run.norms === "string");
  const series = runs.flatMap((run, number) => {
    if (typeof run.norms === "string") return [];
    const line = (name, y, dash) => ({ name: runs.length > 1 ? `${run.name} ${name}` : name, x: run.norms.count, y, color: color(number), dash });
    const dots = runs.length === 1 ? [{ name: "items (a sample)", x: run.norms.dots[0], y: run.norms.dots[1], color: color(5), points: "only" }] : [];
    return [...dots, line("mean", run.norms.mean, ""), ...(runs.length === 1 ? [line("10 % and 90 %", run.norms.low, "2 4"), { ...line("", run.norms.high, "2 4"), name: "" }] : [])];
  });
  const help = missing.map((run) => `${run.name}: ${run.norms}`).join(" ") || "Rows of the item table, from the newest checkpoint.";
  drawChart(card, { title: "Popularity against embedding norm", help, unit: "", xLabel: "training rows of the item", logX: true, series });
}

function startsChart(card, runs) {
  const series = runs.map((run, number) => {
    const last = run.now.step;
    const x = [], y = [];
    run.starts.forEach((start, index) => {
      const end = index + 1 < run.starts.length ? run.starts[index + 1].step : last;
      x.push(start.step, Math.max(end, start.step)); y.push(start.world_size, start.world_size);
    });
    return { name: run.name, x, y, color: color(number) };
  });
  const count = runs.map((run) => `${run.name}: ${run.starts.length - 1}`).join(", ");
  drawChart(card, { title: "Ranks and restarts", help: `Restarts, each from its checkpoint (dashed) — ${count}.`, unit: "", fromZero: true, whole: true, series, alwaysLegend: runs.length > 1, marks: runs.length === 1 ? runs[0].starts.slice(1).map((start) => start.step) : [] });
}

const MORE = {
  Learning: [...groupCharts(DATA.runs), (card) => normChart(card, DATA.runs)],
  Speed: [(card) => startsChart(card, DATA.runs)],
};
for (const row of filledRows(DATA.rows, DATA.runs)) {
  section(row.title, [...row.panels.map((panel) => (card) => drawPanel(card, panel, DATA.runs)), ...(MORE[row.title] || [])]);
}
document.body.dataset.drawn = "yes";
