// Charts and map, by Plotly: its script lies in the page compressed, and runs once one of them comes near.
const dashes = { solid: "solid", dash: "dash", dot: "dot" };
let library = null;

function plotly() {
  library ??= unzipped(byId("plotly").textContent).text().then((text) => {
    const script = document.createElement("script");
    script.textContent = text;
    document.head.append(script);
    return window.Plotly;
  });
  return library;
}

const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// The style sheet's colours as they are now: light-dark() is resolved by asking an element.
function colours() {
  const probe = document.body.appendChild(node("span", { hidden: "" }));
  const resolve = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const found = { ink: resolve("--ink"), soft: resolve("--soft"), rule: resolve("--rule"), paper: resolve("--paper"), lines: [] };
  for (let at = 0; at < 10; at += 1) found.lines.push(resolve(`--c${at}`));
  probe.remove();
  return found;
}

function axis(palette, title, more = {}) {
  return {
    title: { text: title, font: { size: 12, color: palette.soft } }, gridcolor: palette.rule, linecolor: palette.rule,
    zerolinecolor: palette.rule, tickfont: { size: 11, color: palette.soft }, automargin: true, ...more,
  };
}

function layoutOf(palette, more) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 44, r: 12, t: 10, b: 36 },
    font: { family: colourOf("--sans"), color: palette.ink }, hoverlabel: { font: { size: 12 } }, dragmode: false, ...more,
  };
}

const plain = { displayModeBar: false, responsive: true, scrollZoom: false };

function figure(chart, palette) {
  const bars = chart.kind === "bars";
  const data = chart.series.map((one) => {
    const colour = palette.lines[one.colour % palette.lines.length];
    return {
      name: one.name, x: one.x, y: one.y, type: bars ? "bar" : "scatter", mode: one.x.length > 30 ? "lines" : "lines+markers",
      line: { color: colour, width: 2, dash: dashes[one.dash] }, marker: { color: colour, size: 6 }, connectgaps: false,
      hovertemplate: "%{y}<extra>%{fullData.name}</extra>",
    };
  });
  const all = chart.series.flatMap((one) => one.x);
  const range = [Math.min(...all), Math.max(...all)];
  const middle = (range[0] + range[1]) / 2;
  const shapes = chart.marks.map((mark) => ({
    type: "line", x0: mark.x, x1: mark.x, yref: "paper", y0: 0, y1: 1, line: { color: palette.soft, width: 1, dash: "dot" },
  }));
  const names = chart.marks.map((mark, at) => ({
    x: mark.x, yref: "paper", y: 1 - (at % 4) * 0.09, text: mark.label.replaceAll("&", "&amp;").replaceAll("<", "&lt;"),
    showarrow: false, bgcolor: palette.paper, xanchor: mark.x > middle ? "right" : "left", xshift: mark.x > middle ? -3 : 3, font: { size: 10, color: palette.soft },
  }));
  const sparse = chart.round || chart.x === "epoch";
  const whole = sparse ? { dtick: range[1] - range[0] > 12 ? null : 1, tickformat: "d" } : { range };
  const layout = layoutOf(palette, {
    xaxis: axis(palette, chart.x, whole), yaxis: axis(palette, chart.y, { rangemode: bars ? "tozero" : "normal" }),
    barmode: "stack", shapes, annotations: names, hovermode: "x unified", showlegend: data.length > 1,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11 }, itemwidth: 30 },
  });
  return [data, layout];
}

// Draw into every element that is in sight, again when the colours change.
class Charts {
  constructor() {
    this.drawn = new Map();
    this.watch = new IntersectionObserver((seen) => seen.filter((one) => one.isIntersecting).forEach((one) => this.draw(one.target)), { rootMargin: "300px" });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.again());
  }

  // `make(palette)` gives Plotly's data and layout; `ready(element)` is called once it is there.
  add(element, make, ready = () => {}) {
    this.drawn.set(element, { make, ready, there: false });
    this.watch.observe(element);
  }

  async draw(element) {
    this.watch.unobserve(element);
    const one = this.drawn.get(element);
    const Plotly = await plotly();
    await Plotly.react(element, ...one.make(colours()), plain);
    if (!one.there) one.ready(element);
    one.there = true;
  }

  again() {
    for (const [element, one] of this.drawn) if (one.there) this.draw(element);
  }

  forget(element) {
    this.watch.unobserve(element);
    this.drawn.delete(element);
  }
}

function drawCharts(charts, place, list) {
  for (const chart of list) {
    const inside = node("div", { class: "plot", role: "img", "aria-label": `${chart.title}. ${chart.summary}` });
    place.append(node("figure", {}, node("figcaption", {}, chart.title), inside));
    charts.add(inside, (palette) => figure(chart, palette));
  }
}

// The map: hovering or clicking a point tells `told(side, item)`; a click `opens` it.
function drawMap(charts, place, arrays, told, opens) {
  const sides = [["image", "images", 0, "circle"], ["text", "captions", 1, "diamond"]];
  charts.add(
    place,
    (palette) => {
      const data = sides.map(([side, name, colour, symbol]) => {
        const xy = arrays[`map.${side}.xy`];
        const pick = (offset) => Array.from({ length: xy.length / 2 }, (_, at) => xy[2 * at + offset]);
        return {
          name, x: pick(0), y: pick(1), type: "scatter", mode: "markers", hoverinfo: "none",
          marker: { color: palette.lines[colour], size: 5, opacity: 0.6, symbol },
        };
      });
      const bare = { showticklabels: false, zeroline: false, showgrid: false };
      return [data, layoutOf(palette, { xaxis: axis(palette, "", bare), yaxis: axis(palette, "", bare), hovermode: "closest", margin: { l: 8, r: 8, t: 8, b: 8 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom" } })];
    },
    (element) => {
      const item = ({ points: [point] }) => [sides[point.curveNumber][0], arrays[`map.${sides[point.curveNumber][0]}`][point.pointIndex]];
      element.on("plotly_hover", (event) => told(...item(event)));
      element.on("plotly_click", (event) => opens(...item(event)));
    },
  );
}
