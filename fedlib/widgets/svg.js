// Drawing as text: every helper returns SVG. Colours are classes, so that both modes can restyle.

const short = (x) => +x.toFixed(2);
export const escape = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

export const line = (x1, y1, x2, y2, css) =>
  `<line class="${css}" x1="${short(x1)}" y1="${short(y1)}" x2="${short(x2)}" y2="${short(y2)}"/>`;
export const dotAt = (x, y, r, css) =>
  `<circle class="${css}" cx="${short(x)}" cy="${short(y)}" r="${r}"/>`;
export const path = (points, css, closed = false) =>
  points.length < 2 ? "" : `<path class="${css}" d="M${points.map(([x, y]) => `${short(x)} ${short(y)}`).join("L")}${closed ? "Z" : ""}"/>`;
export const label = (x, y, text, css = "", anchor = "start") =>
  `<text class="${css}" x="${short(x)}" y="${short(y)}" text-anchor="${anchor}">${escape(text)}</text>`;
export function arrow(x1, y1, x2, y2, css) {
  const angle = Math.atan2(y2 - y1, x2 - x1), size = Math.min(9, Math.hypot(x2 - x1, y2 - y1));
  const wing = (turn) => [x2 - size * Math.cos(angle + turn), y2 - size * Math.sin(angle + turn)];
  return line(x1, y1, x2, y2, css) + path([wing(0.4), [x2, y2], wing(-0.4)], css);
}

// Two boxes side by side, or one above the other where that is too narrow: [x, y, width, height].
export function panels(width, { left = 0.5, height = 300, stacked = 250 } = {}) {
  if (width >= 560) {
    const split = Math.round(width * left);
    return { size: [width, height], boxes: [[0, 0, split, height], [split, 0, width - split, height]] };
  }
  return { size: [width, height + stacked], boxes: [[0, 0, width, height], [0, height, width, stacked]] };
}

const decade = (e) => (e >= -2 && e <= 3 ? String(10 ** e) : `10${String(e).replace(/[-\d]/g, (c) => c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])}`);

function ticks(low, high, log, room) {
  if (log) {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    const every = Math.max(1, Math.ceil((last - first) / Math.max(1, room)));
    return Array.from({ length: last - first + 1 }, (_, i) => first + i)
      .filter((e) => (e - last) % every === 0).map((e) => [10 ** e, decade(e)]);
  }
  const rough = (high - low) / Math.max(1, room), power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++)
    found.push([i * step, (i * step || 0).toFixed(digits)]);
  return found;
}

// Axes in a box. X and Y turn values into places; `curve` draws values, cut off at the frame.
export function axes([left, top, width, height], { x, y, xlabel, ylabel, xlog, ylog, square, xticks, yticks }) {
  const room = { l: 50, r: 12, t: 26, b: 40 };
  let [w, h] = [width - room.l - room.r, height - room.t - room.b];
  if (square) {  // as many pixels a unit in both directions
    const unit = Math.min(w / (x[1] - x[0]), h / (y[1] - y[0]));
    [w, h] = [unit * (x[1] - x[0]), unit * (y[1] - y[0])];
  }
  const l = left + room.l + (square ? Math.max(0, (width - room.l - room.r - w) / 2) : 0), t = top + room.t;
  const to = (log) => (log ? Math.log10 : (value) => value);
  const place = (value, [low, high], log) => {
    const f = to(log);
    return (f(log ? Math.max(value, 1e-300) : value) - f(low)) / (f(high) - f(low));
  };
  const X = (value) => l + w * place(value, x, xlog);
  const Y = (value) => t + h * (1 - place(value, y, ylog));
  const inside = (value, [low, high]) => value >= low && value <= high;
  let frame = `<rect class="frame" x="${short(l)}" y="${short(t)}" width="${short(w)}" height="${short(h)}"/>`;
  for (const [value, text] of xticks ?? ticks(...x, xlog, w / 70))
    frame += line(X(value), t + h, X(value), t + h + 4, "tick") + label(X(value), t + h + 17, text, "small", "middle");
  for (const [value, text] of yticks ?? ticks(...y, ylog, h / 45))
    frame += line(l - 4, Y(value), l, Y(value), "tick") + label(l - 7, Y(value) + 4, text, "small", "end");
  frame += label(l + w / 2, t + h + 34, xlabel, "", "middle") + label(l - 42 + 6, t - 10, ylabel);
  // Whatever is drawn by `clip` ends at the frame; far points are brought nearer, for short numbers.
  const clip = (drawn) => `<svg x="${short(l - 2)}" y="${short(t - 2)}" width="${short(w + 4)}" height="${short(h + 4)}" viewBox="${short(l - 2)} ${short(t - 2)} ${short(w + 4)} ${short(h + 4)}">${drawn}</svg>`;
  const near = (value) => Math.min(Math.max(value, t - 3 * h), t + 4 * h);
  const curve = (xs, ys, css) => clip(path(
    xs.map((value, i) => [value, ys[i]]).filter(([a, b]) => !Number.isNaN(b) && inside(a, x))
      .map(([a, b]) => [X(a), near(Y(b))]), css));
  return { X, Y, frame, clip, curve, box: [l, t, w, h] };
}

// Points of space on the page: seen from the front, a little from the side and from above.
export function scene([left, top, width, height], turn, reach = 1.15) {
  const a = (Math.PI / 180) * turn, rise = 0.5;
  const unit = Math.min(width / (2 * reach + 0.1), height / (2 * reach));
  return ([x, y, z]) => {
    const u = Math.cos(a) * x - Math.sin(a) * y, v = Math.sin(a) * x + Math.cos(a) * y;
    return [left + width / 2 + unit * u, top + height / 2 + 8 + unit * (rise * v - Math.cos(Math.asin(rise)) * z)];
  };
}

// A disc in space, spanned by two orthonormal vectors.
export const disc = (see, [p, q], css, radius = 1) => path(
  Array.from({ length: 73 }, (_, i) => {
    const c = radius * Math.cos((2 * Math.PI * i) / 72), s = radius * Math.sin((2 * Math.PI * i) / 72);
    return see(p.map((value, j) => c * value + s * q[j]));
  }), css, true);
