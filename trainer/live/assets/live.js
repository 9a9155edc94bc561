// The live page: reads /data.json every two seconds and draws the panels anew.
"use strict";
const cards = new Map();

function card(id, parent, className) {
  if (!cards.has(id)) { cards.set(id, element("div", className)); parent.append(cards.get(id)); }
  return cards.get(id);
}

// Of a run that is trained on validation too: what its model had when it was tried.
function tried(choice) {
  const value = choice.models.find((model) => model.name === choice.chosen).value, popular = choice.baselines.popularity;
  const beside = popular ? `${(value / popular).toFixed(2)} × popularity (${popular.toFixed(4)})` : "on validation";
  return [`${choice.metric} when tried`, value.toFixed(4), beside];
}

// The best of the watched metric so far, beside the popularity ranking's.
function quality(run) {
  const metric = run.config.evaluation.metric, values = (run.validation[metric] || []).filter(number);
  const watched = run.config.evaluation.every_epochs || run.config.data.windows;
  if (!values.length && run.choice && !watched) return tried(run.choice);
  if (!values.length) return [metric, "–", watched ? "not evaluated yet" : "not evaluated while it trains"];
  const best = Math.max(...values), known = (run.validation["popularity/" + metric] || []).filter(number);
  const latest = values.at(-1) < best ? `, now ${values.at(-1).toFixed(4)}` : "";
  const beside = known.length ? `${(best / known.at(-1)).toFixed(2)} × popularity (${known.at(-1).toFixed(4)})` : "validation";
  return [`Best ${metric}`, best.toFixed(4), beside + latest];
}

function numbers(run) {
  const now = run.now;
  const of = now.total ? `${now.shown_phase}` : `step ${now.step.toLocaleString("en")}${now.total_steps ? " of " + now.total_steps.toLocaleString("en") : ""}`;
  const parts = [
    quality(run),
    ["Progress", now.total_steps ? `${(100 * now.step / now.total_steps).toFixed(1)} %` : "–", now.phase === "finished" && now.step < now.total_steps ? of + ", ended early" : of],
    ["Time left", now.phase === "finished" ? "none" : now.seconds_left === null ? "–" : duration(now.seconds_left), now.phase === "finished" ? "the run is at its end" : "evaluations come on top"],
    ["Training loss", now.loss === null ? "–" : shortNumber(now.loss), "mean over rows, all ranks"],
    ["Throughput", now.examples_per_second === null ? "–" : shortNumber(now.examples_per_second), "rows/s"],
    ["Restarts", String(run.starts.length - 1), `${run.starts.at(-1).world_size} ${run.starts.at(-1).world_size === 1 ? "rank" : "ranks"} ${now.is_alive ? "now" : "at last"}`],
    ["Checkpoint age", now.checkpoint_age_seconds === null ? "–" : duration(now.checkpoint_age_seconds), now.is_alive ? "a failure would lose this" : "of the newest"],
  ];
  return parts.map(([title, value, note]) => {
    const made = element("div", "card number");
    made.append(element("h3", "", title), element("b", "", value), element("span", "", note));
    return made;
  });
}

function troubles(run) {
  return run.troubles.map((trouble) => {
    const line = element("div", "trouble " + (trouble.critical ? "critical" : ""));
    line.append(element("b", "", trouble.words), element("span", "", `${trouble.name}: docs/runbooks/alerts.md`));
    return line;
  });
}

// What a run is at, and why it failed. Of one that was killed nobody says more than that it is silent.
function said(now) {
  if (now.phase === "stopped") return "stopped, no news for " + duration(now.silent_seconds);
  return now.cause ? `${now.phase}: ${now.cause}` : now.shown_phase;
}

function show(data) {
  const run = data.runs[0];
  document.title = run.name;
  document.getElementById("run").textContent = run.name;
  const state = document.getElementById("state");
  const dot = element("span", "dot " + (run.now.is_alive ? "alive" : run.now.phase));
  const where = element("span", "", run.data.split("/").filter(Boolean).at(-1) || run.data);
  where.title = run.data; // where it is: a path is longer than a line
  state.replaceChildren(dot, element("b", "", said(run.now)), document.createTextNode(`  preset ${run.preset}, data `), where);
  document.getElementById("troubles").replaceChildren(...troubles(run));
  document.getElementById("numbers").replaceChildren(...numbers(run));
  const main = document.getElementById("panels");
  for (const row of filledRows(data.rows, [run])) {
    if (row.panels.every((panel) => steadyValue(panel, [run]) !== null)) continue;
    const section = card("row " + row.title, main, "");
    if (!section.children.length) section.append(element("h2", "", row.title), element("div", "grid"));
    for (const panel of row.panels) {
      if (steadyValue(panel, [run]) !== null) continue; // nothing to be seen, so far
      const place = card("panel " + panel.title, section.lastChild, "card");
      if (!place.matches(":hover")) drawPanel(place, panel, [run]);
    }
  }
}

function wait(name) {
  document.getElementById("run").textContent = name;
  document.getElementById("state").textContent = "waiting for it to start: its workers are not up yet";
}

async function refresh() {
  const state = document.getElementById("state");
  let data;
  try {
    const answer = await fetch("data.json");
    data = await answer.json();
  } catch (error) {
    state.textContent = "tandem dashboard has ended";
  }
  if (data && data.error) state.textContent = data.error;
  else if (data && data.waiting) wait(data.waiting);
  else if (data) show(data);
  document.body.dataset.drawn = "yes";
  setTimeout(refresh, 2000);
}
refresh();
