"use strict";
// Plots the figures that figures.interactive() describes, and wires the buttons.

const REPORT = JSON.parse(document.getElementById("report-data").textContent);
const DARK = matchMedia("(prefers-color-scheme: dark)");
const COARSE = matchMedia("(pointer: coarse)");
const root = document.documentElement;

const theme = () => root.dataset.theme || (DARK.matches ? "dark" : "light");
const variable = (name) => getComputedStyle(root).getPropertyValue(name).trim();

function button(text, pressed, onClick) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  if (pressed !== null) made.setAttribute("aria-pressed", String(pressed));
  made.addEventListener("click", () => onClick(made));
  return made;
}

function group(label, buttons) {
  const made = document.createElement("div");
  made.className = "choice";
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", label);
  made.append(...buttons);
  return made;
}

// A title or an entry of a legend, in lines that fit: plotly cuts what does not.
const LETTER = 7; // pixels
function wrapped(text, pixels) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (longer.length * LETTER <= pixels || !lines.at(-1)) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines.join("<br>");
}

const flip = (pressable) => {
  const pressed = pressable.getAttribute("aria-pressed") !== "true";
  pressable.setAttribute("aria-pressed", String(pressed));
  return pressed;
};

class Plot {
  constructor(spec, element) {
    this.spec = spec;
    this.canvas = element.querySelector(".canvas");
    this.choice = 0;
    this.names = spec.data.map((trace) => trace.name || "");
    this.log = { x: spec.layout.xaxis.type === "log", y: spec.layout.yaxis.type === "log" };
    this.ticks = { x: {}, y: {} };
    this.dragging = !COARSE.matches; // a finger that scrolls the page must not zoom
    this.fill(element.querySelector(".controls"));
  }

  fill(controls) {
    if (this.spec.x.length > 1) {
      const choices = this.spec.x.map(({ label }, place) => button(label, place === 0, (pressed) => {
        for (const each of choices) each.setAttribute("aria-pressed", String(each === pressed));
        this.choice = place;
        this.draw();
      }));
      controls.append(group("x axis", choices));
    }
    const scales = [];
    for (const side of ["x", "y"]) {
      if (this.spec.layout[`${side}axis`].type === "category") continue;
      scales.push(button(`log ${side}`, this.log[side], (pressed) => {
        this.log[side] = flip(pressed);
        this.ticks[side] = {}; // those of the other scale may mean thousands on this one
        this.draw();
      }));
    }
    controls.append(group("scales", scales));
    const drag = button("zoom", false, (pressed) => {
      this.dragging = flip(pressed);
      this.draw();
    });
    drag.className = "touch";
    controls.append(drag, button("reset", null, () => {
      Plotly.relayout(this.canvas, { "xaxis.autorange": true, "yaxis.autorange": true });
    }));
  }

  paint() {
    const palette = REPORT.palette[theme()];
    for (const trace of this.spec.data) {
      const colour = palette[trace.meta.slot % palette.length];
      if (trace.meta.part === "band") trace.fillcolor = `${colour}30`;
      else trace.marker = { ...trace.marker, color: colour };
      if (trace.meta.part === "line") trace.line = { ...trace.line, color: colour };
      if (trace.error_y) trace.error_y = { ...trace.error_y, color: trace.type === "bar" ? variable("--text") : colour };
    }
  }

  layout() {
    const [text, quiet, edge] = ["--text", "--quiet", "--edge"].map(variable);
    const axis = (side, title) => {
      const given = this.spec.layout[`${side}axis`];
      const made = { gridcolor: edge, linecolor: quiet, tickcolor: quiet, zeroline: false, automargin: true, ...given };
      if (given.type === "category") return { ...made, fixedrange: !this.dragging, title: { ...title, standoff: 8 } };
      made.type = this.log[side] ? "log" : "linear";
      Object.assign(made, { exponentformat: "SI" }, this.ticks[side]);
      made.uirevision = `${this.choice} ${made.type}`; // a zoom survives all but these
      return { ...made, ticks: "outside", fixedrange: !this.dragging, title: { ...title, standoff: 8 } };
    };
    const shapes = (this.spec.layout.shapes || []).map((shape) => ({
      ...shape, line: { ...shape.line, color: quiet }, label: { ...shape.label, font: { color: quiet, size: 12 } },
    }));
    const { label } = this.spec.x[this.choice];
    const escaped = (words) => words.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
    const title = (words, pixels) => ({ text: wrapped(words, pixels), font: { size: 12.5 } });
    return {
      ...this.spec.layout,
      shapes,
      xaxis: axis("x", title(escaped(label), this.canvas.clientWidth - 80)),
      yaxis: axis("y", title(this.spec.layout.yaxis.title.text, this.canvas.clientHeight - 110)),
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: text },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 12, r: 26, t: 12, b: 12 },
      bargap: Math.max(0.4, 1 - 0.2 * (this.spec.layout.xaxis.categoryarray || []).length), // few bars are no walls
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" },
      hoverlabel: { bgcolor: variable("--card"), bordercolor: quiet, font: { color: text } },
      dragmode: this.dragging ? "zoom" : false,
      hovermode: "closest",
      uirevision: "kept", // arms hidden through the legend stay hidden
    };
  }

  isSmall(side) { // has parts of one, such as learning rates, which read badly in thousandths
    const values = side === "x" ? this.spec.x[this.choice].values : this.spec.data.map((trace) => trace.y);
    return Math.min(...values.flat().filter((value) => value > 0)) < 1;
  }

  draw() {
    this.paint();
    this.spec.data.forEach((trace, place) => { trace.name = wrapped(this.names[place], this.canvas.clientWidth - 80); });
    this.fitHeight();
    this.spec.data.forEach((trace, place) => { trace.x = this.spec.x[this.choice].values[place]; });
    const buttons = ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"];
    const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: buttons, displayModeBar: false };
    const drawn = Plotly.react(this.canvas, this.spec.data, this.layout(), config);
    if (!this.canvas.dataset.drawn) this.canvas.on("plotly_relayout", () => this.fitTicks());
    this.canvas.dataset.drawn = "yes";
    return drawn.then(() => this.fitTicks());
  }

  // What a log axis labels follows from the powers of ten it shows: powers alone; 1, 2, 5 of each; or plain numbers.
  fitTicks() {
    const changes = {};
    for (const side of ["x", "y"]) {
      const [low, high] = this.canvas.layout[`${side}axis`].range;
      const fit = { dtick: null, nticks: this.log[side] ? 4 : 0, tickformat: "", exponentformat: "SI" };
      if (this.log[side] && high - low > 2.5) fit.exponentformat = "power";
      else if (this.log[side]) {
        fit.dtick = high - low > 0.8 ? "D2" : null;
        fit.tickformat = this.isSmall(side) ? "~g" : "~s";
      }
      for (const [key, value] of Object.entries(fit)) {
        if ((this.ticks[side][key] ?? null) !== value) changes[`${side}axis.${key}`] = value;
      }
      this.ticks[side] = fit;
    }
    return Object.keys(changes).length ? Plotly.relayout(this.canvas, changes) : null;
  }

  // A legend of several rows must not take its room from the plot.
  fitHeight() {
    let rows = 0;
    let left = 0;
    for (const { name } of this.spec.data.filter((trace) => trace.showlegend)) {
      const lines = name.split("<br>");
      const width = 50 + LETTER * Math.max(...lines.map((line) => line.length));
      if (width > left) [rows, left] = [rows + lines.length, this.canvas.clientWidth - 70];
      left -= width;
    }
    this.canvas.style.height = "";
    this.canvas.style.height = `${this.canvas.clientHeight + 22 * Math.max(rows - 1, 0)}px`;
  }

  show(arm, shown) {
    const places = this.spec.data.flatMap((trace, place) => (trace.meta.arm === arm ? [place] : []));
    if (places.length) Plotly.restyle(this.canvas, { visible: shown ? true : "legendonly" }, places);
  }
}

const plots = REPORT.figures.map((spec) => new Plot(spec, document.querySelector(`[data-figure="${spec.name}"]`)));

for (const chip of document.querySelectorAll("[data-arm]")) {
  chip.addEventListener("click", () => {
    const shown = flip(chip);
    for (const plot of plots) plot.show(chip.dataset.arm, shown);
  });
}

// Says of a table that is wider than its place that there is more of it.
const hints = new ResizeObserver((entries) => {
  for (const { target } of entries) target.classList.toggle("overflows", target.scrollWidth > target.clientWidth + 1);
});
for (const each of document.querySelectorAll(".scroll:has(table)")) hints.observe(each);

const toggle = document.getElementById("theme");
function refresh() {
  toggle.textContent = theme() === "dark" ? "☀ light" : "☾ dark";
  return Promise.all(plots.map((plot) => plot.draw()));
}
toggle.addEventListener("click", () => {
  root.dataset.theme = theme() === "dark" ? "light" : "dark";
  refresh();
});
DARK.addEventListener("change", refresh);
let width = innerWidth;
addEventListener("resize", () => { // titles of axes take other lines
  if (innerWidth !== width) refresh();
  width = innerWidth;
});
refresh().then(() => { root.dataset.drawn = String(plots.length); });
