// Plots as plain SVG: axes, bands, lines, bars and marks over time.
// Takes: a shape of data. Gives: an element that redraws itself at its own width.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 44, right: 10, top: 8, bottom: 20 };

function draw(parent, tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// Round values that cut [low, high] into about `count` parts.
export function ticks(low, high, count) {
  const span = high - low || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => span / each <= count);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(at);
  return found;
}

function extent(shape) {
  const values = [];
  for (const line of shape.lines ?? []) values.push(...line.points.map((point) => point[1]));
  for (const bar of shape.bars ?? []) values.push(...stack(bar.parts).flatMap((part) => [part.from, part.to]));
  if (shape.band) values.push(...shape.band.filter((value) => value !== null));
  const known = values.filter((value) => value !== null && Number.isFinite(value));
  if (shape.fromZero || !known.length) known.push(0);
  let low = Math.min(...known);
  let high = Math.max(...known);
  const slack = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
  if (!(shape.fromZero && low === 0)) low -= slack;
  if (shape.most !== undefined) return [low, Math.min(high + slack, shape.most)];
  return [low, high + slack];
}

// Positive parts upwards, negative ones downwards.
function stack(parts) {
  let up = 0;
  let down = 0;
  return parts.map(({ value, style }) => {
    const from = value < 0 ? down : up;
    const to = from + value;
    if (value < 0) down = to;
    else up = to;
    return { from, to, style };
  });
}

// `shape`: { times: [first, last], lines: [{ points: [[time, value]], style, dots: [{ changed }] }],
//   bars: [{ time, parts: [{ value, style }] }], width, band: [low, middle, high], marks: [time],
//   fromZero, most, value(number), time(seconds), tell(time) -> text }
export function plot(shape, height) {
  const root = document.createElement("div");
  root.className = "plot";
  const svg = draw(root, "svg", { role: "img", "aria-label": shape.label ?? "", height });
  const readout = document.createElement("div");
  readout.className = "readout legend";
  root.append(readout);
  const showLegend = () => {
    readout.replaceChildren(
      ...(shape.legend ?? []).map(({ text, style }) => {
        const part = document.createElement("span");
        part.className = style;
        part.textContent = text;
        return part;
      }),
    );
  };
  showLegend();
  let paint = null;
  new ResizeObserver(() => {
    const width = root.clientWidth;
    if (width) paint = redraw(svg, shape, width, height);
  }).observe(root);
  root.addEventListener("pointermove", (event) => {
    if (!paint || !shape.tell) return;
    const at = paint.timeAt(event.clientX - svg.getBoundingClientRect().left);
    paint.point(at);
    readout.textContent = shape.tell(at);
  });
  root.addEventListener("pointerleave", () => {
    paint?.point(null);
    showLegend();
  });
  return root;
}

function redraw(svg, shape, width, height) {
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const [first, last] = shape.times;
  const [low, high] = extent(shape);
  const right = width - MARGIN.right;
  const bottom = height - MARGIN.bottom;
  const x = (time) => MARGIN.left + ((time - first) / (last - first || 1)) * (right - MARGIN.left);
  const y = (value) => bottom - ((value - low) / (high - low || 1)) * (bottom - MARGIN.top);
  for (const value of ticks(low, high, 4)) {
    draw(svg, "line", { class: "rule", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) });
    draw(svg, "text", { x: MARGIN.left - 7, y: y(value) + 3.5, "text-anchor": "end" }, shape.value(value));
  }
  const count = Math.max(2, Math.min(6, Math.floor(width / 110)));
  for (let number = 0; number < count; number += 1) {
    const time = first + ((last - first) * number) / (count - 1);
    const anchor = number === 0 ? "start" : number === count - 1 ? "end" : "middle";
    draw(svg, "text", { x: x(time), y: height - 4, "text-anchor": anchor }, shape.time(time));
  }
  if (shape.band) drawBand(svg, shape.band, { y, left: MARGIN.left, right });
  for (const time of shape.marks ?? []) {
    if (time >= first && time <= last) draw(svg, "line", { class: "alarm", x1: x(time), x2: x(time), y1: MARGIN.top, y2: bottom });
  }
  for (const bar of shape.bars ?? []) drawBar(svg, bar, shape.width, { x, y });
  for (const line of shape.lines ?? []) drawLine(svg, line, { x, y });
  const cursor = draw(svg, "line", { class: "cursor", y1: MARGIN.top, y2: bottom, visibility: "hidden" });
  return {
    timeAt: (place) => Math.min(last, Math.max(first, first + ((place - MARGIN.left) / (right - MARGIN.left)) * (last - first))),
    point(time) {
      cursor.setAttribute("visibility", time === null ? "hidden" : "visible");
      if (time === null) return;
      cursor.setAttribute("x1", x(time));
      cursor.setAttribute("x2", x(time));
    },
  };
}

function drawBand(svg, [low, middle, high], { y, left, right }) {
  if (low !== null && high !== null) {
    draw(svg, "rect", { class: "band", x: left, y: y(high), width: right - left, height: Math.max(1, y(low) - y(high)) });
  }
  if (middle !== null) draw(svg, "line", { class: "middle", x1: left, x2: right, y1: y(middle), y2: y(middle) });
}

function drawBar(svg, bar, seconds, { x, y }) {
  const left = x(bar.time);
  const width = Math.max(1, x(bar.time + seconds) - left - 1.5);
  for (const part of stack(bar.parts)) {
    const top = y(Math.max(part.from, part.to));
    const height = Math.abs(y(part.to) - y(part.from));
    if (height > 0) draw(svg, "rect", { class: `bar ${part.style}`, x: left, y: top, width, height, rx: Math.min(1.5, width / 3) });
  }
}

function drawLine(svg, line, { x, y }) {
  let path = "";
  let pen = "M";
  for (const [time, value] of line.points) {
    if (value === null) {
      pen = "M";
    } else {
      path += `${pen}${x(time).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    }
  }
  if (path) draw(svg, "path", { class: `line ${line.style}`, d: path });
  line.points.forEach(([time, value], index) => {
    const alone = line.points[index - 1]?.[1] == null && line.points[index + 1]?.[1] == null;
    const dot = line.dots?.[index];
    if (value === null || (!dot && !alone)) return;
    const changed = dot?.changed ? " changed" : "";
    draw(svg, "circle", { class: `dot${changed}`, cx: x(time), cy: y(value), r: changed ? 3.5 : 2.25 });
  });
}
