// Pages that are read: their charts, and the panels of their runs where they have some.
"use strict";
for (const card of document.querySelectorAll("[data-chart]")) drawChart(card, CHARTS[Number(card.dataset.chart)]);
const folded = document.getElementById("panels");
if (folded) {
  const steady = [];
  for (const row of filledRows(DATA.rows, DATA.runs)) {
    const grid = element("div", "grid");
    for (const panel of row.panels.flatMap((each) => ofOneKind(each, DATA.runs))) {
      const said = steadyValue(panel, panel.runs);
      if (said !== null) { steady.push([panel, said]); continue; }
      const card = element("div", "card");
      grid.append(card);
      drawPanel(card, panel, panel.runs);
    }
    if (grid.children.length) folded.append(element("h2", "", row.title), grid);
  }
  if (steady.length) {
    const table = element("table");
    for (const [panel, said] of steady) {
      const line = element("tr");
      line.append(element("td", "name", panel.title), element("td", "", said), element("td", "soft", panel.help));
      table.append(line);
    }
    const card = element("div", "card wide");
    card.append(table);
    folded.append(element("h2", "", "Did not change"), card);
  }
}
document.body.dataset.drawn = "yes";
