// The Pareto plot: size against KL divergence as SVG, and the same in words.

const HEIGHT = 340;
const MARGIN = { left: 76, right: 70, top: 16, bottom: 48 };

function svg(tag, attributes, text) {
  const found = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  if (text !== undefined) found.textContent = text;
  return found;
}

// The points that no other one beats in both size and divergence, by size.
export function front(points) {
  return points
    .filter((one) => !points.some((p) => p !== one && p.x <= one.x && p.y <= one.y && (p.x < one.x || p.y < one.y)))
    .sort((a, b) => a.x - b.x);
}

// Fills a figure with the plot of points {name, x: megabytes, y: divergence}; the second axis is logarithmic.
export function pareto(figure, points, reference) {
  figure.hidden = !points.length;
  if (!points.length) return;
  const best = front(points);
  const width = Math.min(680, Math.max(300, figure.clientWidth || 680)); // letters keep their size; 0 in a hidden view
  const across = scale(padded(points.map(({ x }) => x), 0.15), MARGIN.left, width - MARGIN.right);
  const logs = points.map(({ y }) => Math.log10(y));
  const up = scale(padded(logs, 0.15), HEIGHT - MARGIN.bottom, MARGIN.top);
  const at = ({ x, y }) => [across(x), up(Math.log10(y))];
  const text = `Size against KL divergence from ${reference}. ${best
    .map(({ name, x, y }) => `${name}: ${x.toFixed(1)} MB, ${y.toPrecision(3)}`)
    .join("; ")}. Filled: no other type is both smaller and closer to the reference.`;
  const plot = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, role: "img", "aria-label": text });
  const [left, bottom] = [MARGIN.left, HEIGHT - MARGIN.bottom];
  plot.append(
    svg("path", { class: "axis", d: `M${left} ${MARGIN.top}V${bottom}H${width - MARGIN.right}` }),
    svg("text", { x: (left + width - MARGIN.right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, "Size (MB)"),
    svg(
      "text",
      { x: 16, y: bottom / 2, "text-anchor": "middle", transform: `rotate(-90 16 ${bottom / 2})` },
      "KL divergence (log)",
    ),
  );
  for (const value of ticks(across.from, across.to)) {
    plot.append(
      svg("path", { class: "axis", d: `M${across(value)} ${bottom}v5` }),
      svg("text", { x: across(value), y: bottom + 20, "text-anchor": "middle" }, String(value)),
    );
  }
  for (const value of powers(up.from, up.to)) {
    const y = up(Math.log10(value));
    plot.append(
      svg("path", { class: "axis", d: `M${left - 5} ${y}h5` }),
      svg("text", { x: left - 9, y: y + 4, "text-anchor": "end" }, String(value)),
    );
  }
  plot.append(svg("polyline", { class: "front", points: best.map((point) => at(point).join(",")).join(" ") }));
  for (const point of points) {
    const [x, y] = at(point);
    plot.append(
      svg("circle", { class: best.includes(point) ? "best" : "other", cx: x, cy: y, r: 5 }),
      svg("text", { class: "name", x: x + 9, y: y - 7 }, point.name),
    );
  }
  const caption = document.createElement("figcaption");
  caption.textContent = text;
  figure.replaceChildren(plot, caption);
}

function padded(values, share) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const more = (high - low) * share || Math.abs(high) * share || 1;
  return [low - more, high + more];
}

function scale([from, to], start, end) {
  const found = (value) => Math.round(10 * (start + ((value - from) / (to - from)) * (end - start))) / 10;
  return Object.assign(found, { from, to });
}

// Three to seven round values in an interval.
function ticks(from, to) {
  const rough = (to - from) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let value = Math.ceil(from / step) * step; value <= to; value += step) found.push(Number(value.toPrecision(6)));
  return found;
}

// 1, 2 and 5 times the powers of ten between two logarithms.
function powers(from, to) {
  const found = [];
  for (let power = Math.floor(from); power <= to; power += 1) {
    for (const times of [1, 2, 5]) found.push(Number(`${times}e${power}`));
  }
  return found.filter((value) => Math.log10(value) >= from && Math.log10(value) <= to);
}
