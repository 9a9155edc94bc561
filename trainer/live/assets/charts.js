// Charts as plain SVG, nothing from outside.
// drawChart(card, {title, help, unit, xLabel, log, series: [{name, x, y, color, dash, points}], marks: [x]})
"use strict";
const SVG = "http://www.w3.org/2000/svg";
const W = 460, H = 230, LEFT = 62, RIGHT = 14, TOP = 10, BOTTOM = 40;
const FROM_ZERO = ["s", "rows/s", "steps/s", "bytes"]; // amounts: twice as high is twice as much
const DASHES = ["", "7 4", "2 4", "9 3 2 3", "4 2", "1 3"];
const color = (index) => `var(--c${index % 8})`;

function node(name, attributes, parent, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.appendChild(made);
  return made;
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// 1234567 -> "1.23M"; units are written once, in the title.
function shortNumber(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return +(value / 1e9).toPrecision(3) + "G";
  if (size >= 1e6) return +(value / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return +(value / 1e3).toPrecision(3) + "k";
  if (size > 0 && size < 1e-3) return value.toExponential(1).replace("e-", "e−");
  return String(+value.toPrecision(4));
}

function duration(seconds) {
  if (seconds < 1) return shortNumber(seconds * 1000) + " ms";
  if (seconds < 100) return +seconds.toPrecision(3) + " s";
  const whole = Math.round(seconds), hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  if (hours >= 48) return Math.floor(hours / 24) + " d " + (hours % 24) + " h";
  if (hours) return `${hours} h ${minutes} min`;
  return minutes >= 10 ? `${minutes} min` : `${minutes} min ${whole % 60} s`;
}

function withUnit(value, unit) {
  if (unit === "share") return +(value * 100).toPrecision(3) + " %";
  if (unit === "bytes") {
    const steps = ["B", "KiB", "MiB", "GiB", "TiB"];
    let at = 0;
    while (Math.abs(value) >= 1024 && at < 4) { value /= 1024; at += 1; }
    return +value.toPrecision(3) + " " + steps[at];
  }
  if (unit === "s") return duration(value);
  return shortNumber(value) + (unit && unit !== "steps" ? " " + unit : "");
}

function tickLabel(value, unit) {
  if (unit === "share" || unit === "bytes") return value === 0 ? "0" : withUnit(value, unit);
  if (unit === "s") return value === 0 ? "0" : duration(value);
  return shortNumber(value);
}

function niceTicks(low, high, count, base) {
  const rough = (high - low) / count || 1;
  const power = Math.pow(base, Math.floor(Math.log(rough) / Math.log(base)));
  const choices = base === 10 ? [1, 2, 2.5, 5, 10] : [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
  const step = power * choices.find((choice) => choice * power >= rough * 0.999);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) ticks.push(+tick.toPrecision(12));
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) ticks.push(Math.pow(10, power));
  const inside = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  return inside.length >= 2 ? inside : niceTicks(low, high, 4, 10);
}

function scale(values, log, from, to, padded, fromZero) {
  let low = Math.min(...values), high = Math.max(...values);
  const zero = low === 0 && high === 0;
  if (padded && !log) {
    if (low >= 0 && (low < 0.5 * high || fromZero)) low = 0;
    const least = Math.abs(high) * 0.02 || 1; // constants are not magnified into noise
    const room = Math.max((high - low) * 0.06, (least - (high - low)) / 2);
    if (low !== 0) low -= room;
    high += room;
  }
  if (!padded && low === high) { low = log ? low / 2 : low - 1; high = log ? high * 2 : high + 1; } // one point: in the middle
  if (padded && log && low === high) { low /= 2; high *= 2; }
  const map = log ? Math.log10 : (value) => value;
  const span = map(high) - map(low) || 1;
  const place = (value) => from + ((map(value) - map(low)) / span) * (to - from);
  return { low, high, zero, place };
}

function drawChart(card, spec) {
  card.replaceChildren();
  card.append(element("h3", "", spec.title + (spec.unit && !["share", "bytes", "s"].includes(spec.unit) ? ` (${spec.unit})` : "")), element("p", "", spec.help));
  const usable = (y) => y !== null && Number.isFinite(y) && (!spec.log || y > 0);
  const series = spec.series.filter((one) => one.y.some(usable));
  if (!series.length) { card.append(element("p", "", "No values yet.")); return; }
  const svg = node("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": spec.title });
  const x = scale(series.flatMap((one) => one.x), spec.logX, LEFT, W - RIGHT, false);
  const y = scale(series.flatMap((one) => one.y.filter(usable)), spec.log, H - BOTTOM, TOP, true, spec.fromZero || FROM_ZERO.includes(spec.unit));
  drawAxes(svg, spec, x, y);
  for (const mark of spec.marks || []) {
    if (mark >= x.low && mark <= x.high) node("line", { class: "restart", x1: x.place(mark), x2: x.place(mark), y1: TOP, y2: H - BOTTOM }, svg);
  }
  for (const one of series) drawSeries(svg, one, x, y, usable);
  card.append(svg);
  if (series.length > 1 || spec.alwaysLegend) card.append(legend(series));
  follow(card, svg, spec, series, x, y, usable);
}

function drawAxes(svg, spec, x, y) {
  const ticks = y.zero ? [0] : spec.log ? logTicks(y.low, y.high) : niceTicks(y.low, y.high, 5, spec.unit === "bytes" ? 1024 : 10);
  for (const tick of spec.whole ? ticks.filter(Number.isInteger) : ticks) {
    node("line", { class: "grid-line", x1: LEFT, x2: W - RIGHT, y1: y.place(tick), y2: y.place(tick) }, svg);
    node("text", { x: LEFT - 7, y: y.place(tick) + 4, "text-anchor": "end" }, svg, tickLabel(tick, spec.unit));
  }
  node("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: H - BOTTOM, y2: H - BOTTOM }, svg);
  const across = spec.xTicks || (spec.logX ? logTicks(x.low, x.high) : niceTicks(x.low, x.high, 6, 10));
  for (const tick of across.some(Number.isInteger) ? across.filter(Number.isInteger) : across) {
    const label = spec.xNames ? spec.xNames[tick] : shortNumber(tick);
    const anchor = label.length < 6 ? "middle" : tick === across[0] ? "start" : tick === across.at(-1) ? "end" : "middle";
    node("text", { x: x.place(tick), y: H - BOTTOM + 17, "text-anchor": anchor }, svg, label);
  }
  node("text", { x: (LEFT + W - RIGHT) / 2, y: H - 4, "text-anchor": "middle" }, svg, spec.xLabel || "step");
}

function drawSeries(svg, one, x, y, usable) {
  const style = `stroke: ${one.color}`;
  if (one.points !== "only") {
    let path = "", pen = "M";
    one.x.forEach((at, index) => {
      if (!usable(one.y[index])) { pen = "M"; return; }
      path += `${pen}${x.place(at).toFixed(1)} ${y.place(one.y[index]).toFixed(1)}`;
      pen = "L";
    });
    node("path", { class: "series", d: path, style, "stroke-dasharray": one.dash || "" }, svg);
  }
  if (one.points || one.x.length < 13) {
    const radius = one.points === "only" ? 1.5 : 2.6;
    one.x.forEach((at, index) => {
      if (usable(one.y[index])) node("circle", { cx: x.place(at), cy: y.place(one.y[index]), r: radius, style: `fill: ${one.color}`, opacity: one.points === "only" ? 0.35 : 1 }, svg);
    });
  }
}

function legend(series) {
  const list = element("div", "legend");
  for (const one of series.filter((each) => each.name)) {
    const entry = element("span");
    const line = element("i");
    line.style.borderTopColor = one.color;
    if (one.dash) line.style.borderTopStyle = one.dash.startsWith("2") || one.dash.startsWith("1") ? "dotted" : "dashed";
    if (one.points === "only") line.style.borderTopStyle = "dotted";
    entry.append(line, document.createTextNode(one.name));
    list.append(entry);
  }
  return list;
}

// The values nearest to the pointer, beside it.
function follow(card, svg, spec, series, x, y, usable) {
  const tip = element("div", "tip");
  const cursor = node("line", { class: "cursor", y1: TOP, y2: H - BOTTOM, visibility: "hidden" }, svg);
  card.append(tip);
  svg.addEventListener("pointerleave", () => { tip.style.display = "none"; cursor.setAttribute("visibility", "hidden"); });
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * W;
    const lines = series.filter((one) => one.points !== "only");
    if (!lines.length || at < LEFT - 8) return;
    const distance = (one, index) => Math.abs(x.place(one.x[index]) - at);
    const nearest = (one) => one.x.reduce((best, _, index) => (distance(one, index) < distance(one, best) ? index : best), 0);
    const first = lines[0], place = first.x[nearest(first)];
    cursor.setAttribute("x1", x.place(place)); cursor.setAttribute("x2", x.place(place)); cursor.setAttribute("visibility", "visible");
    tip.replaceChildren(element("div", "", `${spec.xLabel || "step"} ${spec.xNames ? spec.xNames[place] : shortNumber(place)}`));
    for (const one of lines) {
      const value = one.y[nearest(one)];
      if (!usable(value) || !one.name) continue;
      const line = element("div");
      const name = element("span", "", one.name + "  ");
      name.style.color = one.color;
      line.append(name, element("b", "", withUnit(value, spec.unit)));
      tip.append(line);
    }
    tip.style.display = "block";
    const left = event.clientX - card.getBoundingClientRect().left;
    tip.style.left = left > card.clientWidth / 2 ? `${left - tip.offsetWidth - 14}px` : `${left + 14}px`;
    tip.style.top = `${event.clientY - card.getBoundingClientRect().top + 10}px`;
  });
}
