// Charts of the pages, drawn by ECharts in the page's own colours, light or dark.
// A chart: {kind: "lines" (or "bars", "dots"), title, help, unit, xLabel, log, logX, fromZero, series, levels, marks}
//   series: [{name, x, y, low, high, color, dash, points}]; low and high: ends of an interval
//   bars:   series of one {names, y, low, high, best}; levels: [{name, y}] straight lines; marks: [x]
"use strict";
const FROM_ZERO = ["s", "rows/s", "steps/s", "bytes", "share"]; // twice as high is twice as much
const DASHES = ["solid", [7, 4], [2, 3], [9, 3, 2, 3], [4, 2], [1, 3]];
const COLORS = 8;
const STEPS = {
  bytes: [[1, "B"], [1024, "KiB"], [1024 ** 2, "MiB"], [1024 ** 3, "GiB"], [1024 ** 4, "TiB"]],
  s: [[1e-6, "µs"], [1e-3, "ms"], [1, "s"], [60, "min"], [3600, "h"]],
  share: [[0.01, "%"]],
};
const drawn = new Map(); // card -> what draws it anew

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// 1234567 -> "1.23M"
function shortNumber(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return +(value / 1e9).toPrecision(3) + "G";
  if (size >= 1e6) return +(value / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return +(value / 1e3).toPrecision(3) + "k";
  if (size > 0 && size < 1e-3) return value.toExponential(1).replace("e-", "e−");
  const four = +value.toPrecision(4);
  return size >= 1e3 ? four.toLocaleString("en-US") : String(four);
}

function duration(seconds) {
  if (seconds < 1) return shortNumber(seconds * 1000) + " ms";
  if (seconds < 100) return +seconds.toPrecision(3) + " s";
  const whole = Math.round(seconds), hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  if (hours >= 48) return Math.floor(hours / 24) + " d " + (hours % 24) + " h";
  if (hours) return `${hours} h ${minutes} min`;
  return minutes >= 10 ? `${minutes} min` : `${minutes} min ${whole % 60} s`;
}

// The unit that all values of a chart are shown in: what one of it is, and its name.
function shownUnit(unit, most) {
  const fitting = (STEPS[unit] || []).filter(([size], index) => index === 0 || most >= size);
  const [size, name] = fitting.at(-1) || [1, unit];
  return { size, name };
}

function withUnit(value, unit) {
  if (unit === "s") return duration(value);
  const { size, name } = shownUnit(unit, Math.abs(value));
  return shortNumber(value / size) + (name && name !== "steps" ? " " + name : "");
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const color = (index) => index % COLORS;
const shade = (given) => css(typeof given === "number" ? `--c${given % COLORS}` : given || "--c0");
const number = (value) => typeof value === "number" && Number.isFinite(value);

// Title, help, drawing and legend in a card; once more where its data, colours or width change.
function drawChart(card, spec) {
  const measured = spec.series.filter((one) => one.y.some((value) => number(value) && (!spec.log || value > 0)));
  const all = measured.flatMap((one) => [one.y, one.low || [], one.high || []].flat()).concat((spec.levels || []).map((level) => level.y)).filter(number);
  const unit = shownUnit(spec.unit, Math.max(0, ...all.map(Math.abs)));
  if (!drawn.has(card)) {
    card.replaceChildren(element("h3"), element("p", "", spec.help), element("div", "drawing"), element("div", "legend"));
    new ResizeObserver(() => drawn.get(card).resize()).observe(card);
  }
  const [title, , place, legend] = card.children;
  title.textContent = spec.title + (unit.name ? `, ${unit.name}` : "");
  const before = drawn.get(card);
  const chart = { spec, measured, unit, all, on: before && before.on, resize: () => resize(card, chart), draw: () => draw(place, chart) };
  drawn.set(card, chart);
  if (!measured.length) { place.textContent = "No values yet."; return; }
  if (!before || !before.measured.length) place.replaceChildren();
  place.style.height = spec.kind === "bars" ? `${34 + 30 * measured[0].y.length + ROW * Math.max(0, ...inRows(spec.levels || [], Math.max(...all)).map((level) => level.row))}px` : "230px";
  legend.replaceChildren(...entries(chart));
  chart.draw();
}

function resize(card, chart) {
  if (!card.clientWidth || !chart.measured.length) return;
  if (chart.on) chart.on.resize();
  else chart.draw();
}

function draw(place, chart) {
  if (!place.clientWidth) return; // folded away: when it is opened
  chart.on = chart.on || echarts.init(place, null, { renderer: "svg" });
  chart.on.setOption({ ...common(chart), ...(chart.spec.kind === "bars" ? bars(chart) : lines(chart)) }, true);
  place.querySelector("svg").setAttribute("aria-label", chart.spec.title);
}

function common({ spec, unit, measured }) {
  const ink = { color: css("--ink"), fontSize: 12 };
  return {
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
    tooltip: {
      trigger: spec.kind ? "item" : "axis", confine: true, backgroundColor: css("--paper"), borderColor: css("--line"), textStyle: ink,
      formatter: (found) => tip([found].flat(), spec, unit, measured),
    },
  };
}

// What stands beside the pointer: as nodes, since names are other people's words.
function tip(found, spec, unit, measured) {
  const box = element("div");
  const shown = (value) => `${shortNumber(value)}${unit.name ? " " + unit.name : ""}`;
  const at = spec.xNames ? spec.xNames[found[0].value[0]] : shortNumber(found[0].value[0]);
  box.append(element("div", "", spec.kind === "bars" ? found[0].name : `${spec.xLabel || "step"} ${at}`));
  for (const one of found) {
    if (one.seriesType === "custom") continue;
    const line = element("div"), from = measured[one.seriesIndex];
    const value = spec.kind === "bars" ? one.value : one.value[1];
    line.append(element("span", "", one.seriesName ? one.seriesName + "  " : ""), element("b", "", shown(value)));
    line.firstChild.style.color = one.color;
    if (from && from.low) line.append(element("span", "", ` (${shown(from.low[one.dataIndex] / unit.size)} to ${shown(from.high[one.dataIndex] / unit.size)})`));
    box.append(line);
  }
  return box;
}

function axis(log, low, high, more) {
  const soft = { color: css("--soft"), fontSize: 11.5, hideOverlap: true, formatter: shortNumber };
  return {
    type: log && low > 0 && high / low > 10 ? "log" : "value", axisLabel: soft, nameTextStyle: { color: css("--soft"), fontSize: 12 },
    axisLine: { show: false, lineStyle: { color: css("--line") } }, axisTick: { show: false }, splitLine: { lineStyle: { color: css("--grid") } },
    ...more,
  };
}

// Amounts and values far from one another begin at 0; constants are not magnified into noise.
function ends({ spec, all, unit }) {
  if (spec.log) return {};
  const low = Math.min(...all) / unit.size, high = Math.max(...all) / unit.size;
  if (high === 0 && low === 0) return { min: 0, max: 1 };
  if (low >= 0 && (low < high / 2 || spec.fromZero || FROM_ZERO.includes(spec.unit))) return { min: 0 };
  if (high - low > Math.abs(high) * 0.02) return { scale: true };
  return { min: +(low - Math.abs(low) * 0.02).toPrecision(2), max: +(high + Math.abs(high) * 0.02).toPrecision(2) };
}

function lines(chart) {
  const { spec, measured, unit, all } = chart;
  const xs = measured.flatMap((one) => one.x), first = Math.min(...xs), last = Math.max(...xs);
  const edge = spec.xNames ? { type: "category", data: spec.xNames } : { min: first < last / 3 && !spec.logX && first >= 0 ? 0 : first, max: last };
  const x = axis(spec.logX, first, last, { ...edge, name: spec.xLabel || "step", nameLocation: "middle", nameGap: 24, splitLine: { show: false }, axisLine: { show: true, lineStyle: { color: css("--line") } } });
  if (x.type === "log") { x.min = 10 ** Math.floor(Math.log10(first)); x.max = 10 ** Math.ceil(Math.log10(last)); }
  if (spec.xNames) x.axisLabel = { ...x.axisLabel, formatter: undefined, interval: 0 };
  else Object.assign(x.axisLabel, { showMaxLabel: x.type === "log", showMinLabel: x.type === "log" || x.min === 0 });
  if (spec.whole) x.minInterval = 1;
  return {
    grid: { left: 6, right: 14, top: 10, bottom: 24, outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
    xAxis: x,
    yAxis: axis(spec.log, Math.min(...all), Math.max(...all), { ...ends(chart), splitNumber: 4 }),
    series: [...measured.map((one) => line(one, spec, unit, measured)), ...measured.filter((one) => one.low).map((one) => whiskers(one, unit))],
  };
}

function line(one, spec, unit, measured) {
  const dots = spec.kind === "dots" || one.points === "only";
  const points = one.x.flatMap((at, index) => (number(one.y[index]) && (!spec.log || one.y[index] > 0) ? [[at, one.y[index] / unit.size]] : []));
  const made = {
    type: dots ? "scatter" : "line", name: one.name || "", data: points, color: shade(one.color), symbol: "circle",
    symbolSize: one.points === "only" ? 3.5 : dots ? 9 : 5, showSymbol: Boolean(one.points) || points.length < 25,
    lineStyle: { width: 2, type: one.dash || "solid" }, itemStyle: { opacity: one.points === "only" ? 0.4 : 1 },
  };
  const level = ({ name, y }, index) => ({ yAxis: y / unit.size, label: { formatter: name, position: index % 2 ? "insideEndTop" : "insideStartTop", color: css("--soft"), backgroundColor: css("--card"), padding: [1, 3] }, lineStyle: { color: css("--soft"), type: [5, 4] } });
  const mark = (at) => ({ xAxis: at, label: { show: false }, lineStyle: { color: css("--c1"), type: [2, 3] } });
  if (one === measured[0]) made.markLine = { silent: true, symbol: "none", data: [...[...(spec.levels || [])].sort((a, b) => b.y - a.y).map(level), ...(spec.marks || []).map(mark)] };
  return made;
}

// Intervals, upright at their points or flat on their bars.
function whiskers(one, unit, flat) {
  const at = (index) => (flat ? index : one.x[index]);
  return {
    type: "custom", silent: true, z: 5, data: one.y.map((_, index) => [at(index), one.low[index] / unit.size, one.high[index] / unit.size]),
    encode: flat ? { y: 0, x: [1, 2] } : { x: 0, y: [1, 2] },
    renderItem: (_, api) => {
      const point = (index) => (flat ? api.coord([api.value(index), api.value(0)]) : api.coord([api.value(0), api.value(index)]));
      const [from, to] = [point(1), point(2)], side = flat ? [0, 4] : [4, 0];
      const stroke = { stroke: css(flat ? "--ink" : `--c${one.color || 0}`), lineWidth: 1.3, fill: null };
      const piece = (a, b) => ({ type: "line", shape: { x1: a[0], y1: a[1], x2: b[0], y2: b[1] }, style: stroke });
      const end = (middle) => piece([middle[0] - side[0], middle[1] - side[1]], [middle[0] + side[0], middle[1] + side[1]]);
      return { type: "group", children: [piece(from, to), end(from), end(to)] };
    },
  };
}

// Rows for the names of levels, one above the other where they would lie on each other.
const ROW = 14;
function inRows(levels, most) {
  const placed = [];
  for (const level of [...levels].sort((a, b) => a.y - b.y)) {
    const taken = placed.filter((other) => level.y - other.y < most * 0.035 * (level.name.length + other.name.length) / 2).map((other) => other.row);
    let row = 0;
    while (taken.includes(row)) row += 1;
    placed.push({ ...level, row });
  }
  return placed;
}

function bars(chart) {
  const { spec, measured, unit, all } = chart, [one] = measured;
  const label = (index) => (spec.unit ? shortNumber(one.y[index] / unit.size) : one.y[index].toFixed(4));
  const tops = one.y.map((value, index) => (one.high ? one.high[index] : value) / unit.size);
  const placed = inRows(spec.levels || [], Math.max(...all));
  const levels = placed.map(({ name, y, row }) => ({ xAxis: y / unit.size, label: { formatter: name, position: "start", distance: 4 + ROW * row, color: css("--soft") }, lineStyle: { color: css("--soft"), type: [5, 4] } }));
  const above = 20 + ROW * Math.max(0, ...placed.map((level) => level.row));
  const text = { show: true, position: "right", distance: 4, color: css("--ink"), backgroundColor: css("--card"), padding: [1, 2], formatter: ({ dataIndex }) => label(dataIndex) };
  return {
    grid: { left: 6, right: 54, top: levels.length ? above : 4, bottom: 4, outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
    xAxis: axis(false, 0, 1, { min: Math.min(0, ...all) / unit.size, splitNumber: 4 }),
    yAxis: axis(false, 0, 1, { type: "category", inverse: true, data: one.names, splitLine: { show: false }, axisLabel: { color: css("--ink"), fontSize: 12, width: 170, overflow: "truncate" } }),
    series: [
      {
        type: "bar", barMaxWidth: 16, name: one.name || "", color: shade(0),
        data: one.y.map((value, index) => ({ value: value / unit.size, itemStyle: { color: shade(index === one.best ? 2 : 0), opacity: one.best === undefined || index === one.best ? 1 : 0.75 } })),
        markLine: { silent: true, symbol: "none", data: levels },
      },
      ...(one.low ? [whiskers(one, unit, true)] : []),
      { type: "scatter", silent: true, z: 10, symbolSize: 0, data: tops.map((top, index) => [top, index]), label: text },
    ],
  };
}

function entries({ spec, measured }) {
  const named = measured.filter((one) => one.name);
  if (spec.kind === "bars" || named.length < 2) return [];
  return named.map((one) => {
    const entry = element("span"), sign = element("i");
    sign.style.borderTopColor = shade(one.color);
    if (one.dash && one.dash !== "solid") sign.style.borderTopStyle = one.dash[0] < 3 ? "dotted" : "dashed";
    if (one.points === "only" || spec.kind === "dots") sign.className = "dot";
    sign.style.background = sign.className ? shade(one.color) : "";
    entry.append(sign, document.createTextNode(one.name));
    return entry;
  });
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const [card, { spec }] of drawn) drawChart(card, spec); });
