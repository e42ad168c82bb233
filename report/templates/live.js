"use strict";
// Asks the server how the runs stand, and shows it: the table is filled anew, the figure keeps zoom and legend.

const PERIOD = 5000; // milliseconds

function element(name, text, more = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(more)) made.setAttribute(key, value);
  return made;
}

function tableRow(found, cells) {
  const made = element("tr", "", { role: "row" });
  cells.forEach((text, place) => {
    const column = found.columns[place];
    const looks = [found.numbers.includes(column) ? "number" : "", column === "state" ? text : "", text ? "" : "empty"];
    made.append(element("td", text, { role: "cell", "data-column": column, class: looks.join(" ").trim() }));
  });
  return made;
}

function fill(found) {
  const heads = found.columns.map((column) => element("th", column, {
    scope: "col", role: "columnheader", class: found.numbers.includes(column) ? "number" : "",
  }));
  const head = element("tr", "", { role: "row" });
  head.append(...heads);
  document.querySelector("thead").replaceChildren(head);
  document.querySelector("tbody").replaceChildren(...found.rows.map((cells) => tableRow(found, cells)));
  document.getElementById("notes").replaceChildren(...found.notes.map((note) => element("li", note)));
  document.getElementById("drawn").textContent = found.drawn;
  say(`as of ${new Date().toLocaleTimeString()}, renewed every ${PERIOD / 1000} s`, false);
}

function say(text, isAlarm) {
  const said = document.getElementById("said");
  said.textContent = text;
  said.className = isAlarm ? "alarm" : "";
}

function redraw(figure) {
  const [plot] = plots;
  plot.spec = figure;
  plot.names = figure.data.map((trace) => trace.name || "");
  return plot.draw();
}

let answered = new Date();
async function follow() {
  if (document.hidden) return;
  try {
    const answer = await fetch("runs.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(await answer.text());
    const found = await answer.json();
    answered = new Date();
    fill(found);
    await redraw(found.figure);
  } catch (error) {
    say(`no answer since ${answered.toLocaleTimeString()}: ${error.message}`, true);
  }
}

fill(REPORT);
setInterval(follow, PERIOD);
document.addEventListener("visibilitychange", follow);
