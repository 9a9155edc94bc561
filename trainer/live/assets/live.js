// The live page: reads /data.json every two seconds and draws the panels anew.
"use strict";
const cards = new Map();

function card(id, parent, className) {
  if (!cards.has(id)) { cards.set(id, element("div", className)); parent.append(cards.get(id)); }
  return cards.get(id);
}

function numbers(run) {
  const now = run.now;
  const parts = [
    ["Progress", now.total_steps ? withUnit(now.step / now.total_steps, "share") : "–", `step ${now.step.toLocaleString("en")}${now.total_steps ? " of " + now.total_steps.toLocaleString("en") : ""}`],
    ["Time left", now.phase === "finished" ? "none" : now.seconds_left === null ? "–" : duration(now.seconds_left), now.phase === "finished" ? "the run is at its end" : "evaluations come on top"],
    ["Training loss", now.loss === null ? "–" : shortNumber(now.loss), "mean of all ranks"],
    ["Throughput", now.examples_per_second === null ? "–" : shortNumber(now.examples_per_second), "rows a second"],
    ["Restarts", String(run.starts.length - 1), `${run.starts.at(-1).world_size} ${run.starts.at(-1).world_size === 1 ? "rank" : "ranks"} ${now.is_alive ? "now" : "at last"}`],
    ["Checkpoint age", now.checkpoint_age_seconds === null ? "–" : duration(now.checkpoint_age_seconds), now.phase === "finished" ? "of the newest" : "a failure would lose this"],
  ];
  return parts.map(([title, value, note]) => {
    const made = element("div", "card number");
    made.append(element("h3", "", title), element("b", "", value), element("span", "", note));
    return made;
  });
}

// What a run is at, and why it failed. Of one that was killed nobody says more than that it is silent.
function said(now) {
  if (now.phase === "stopped") return "stopped, no news for " + duration(now.silent_seconds);
  return now.cause ? `${now.phase}: ${now.cause}` : now.shown_phase;
}

function draw(data) {
  const run = data.runs[0];
  document.getElementById("run").textContent = run.name;
  const state = document.getElementById("state");
  const dot = element("span", "dot " + (run.now.is_alive ? "alive" : run.now.phase));
  state.replaceChildren(dot, element("b", "", said(run.now)), document.createTextNode(`  preset ${run.preset}, data ${run.data}`));
  document.getElementById("numbers").replaceChildren(...numbers(run));
  const main = document.getElementById("panels");
  for (const row of filledRows(data.rows, [run])) {
    const section = card("row " + row.title, main, "");
    if (!section.children.length) section.append(element("h2", "", row.title), element("div", "grid"));
    for (const panel of row.panels) {
      const place = card("panel " + panel.title, section.lastChild, "card");
      if (!place.matches(":hover")) drawPanel(place, panel, [run]);
    }
  }
}

async function refresh() {
  try {
    const answer = await fetch("data.json");
    const data = await answer.json();
    if (answer.ok) draw(data);
    else document.getElementById("state").textContent = data.error;
    document.body.dataset.drawn = "yes";
  } catch (error) {
    document.getElementById("state").textContent = "tandem dashboard has ended";
  }
  setTimeout(refresh, 2000);
}
refresh();
