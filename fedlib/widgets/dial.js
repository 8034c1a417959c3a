// The dial: how many clients agree on the order of their labels?
import { distance, fedavg, mean, scale, svd, transpose } from "./linalg.js";
import { axes, label, panels } from "./svg.js";
import { panel } from "./panel.js";

const OUTPUTS = 5, STEPS = 600, EVERY = 5;
const cosine = (times) => Array.from({ length: OUTPUTS }, (_, j) => Math.cos((2 * Math.PI * times * j) / OUTPUTS) / Math.sqrt(OUTPUTS));
const COMMON = [cosine(1), cosine(2)];

function compute({ share, local_steps, lr }) {
  const heads = Array.from({ length: OUTPUTS }, (_, turn) =>
    COMMON.map((row) => row.map((_, j) => row[(j - turn + OUTPUTS) % OUTPUTS])));
  // The others' orders are the five cyclic ones, equally often: they cancel in the mean.
  const weights = heads.map((_, turn) => (1 - share) / OUTPUTS + (turn ? 0 : share));
  const [a, b] = [70, 50].map((degrees) => (Math.PI / 180) * degrees);
  const start = scale([[Math.cos(a), 0], [0, Math.cos(b)], [Math.sin(a), 0], [0, Math.sin(b)]], 1 / Math.sqrt(lr));
  const bodies = (steps) => fedavg(heads, start, steps, lr, Math.floor(STEPS / steps), weights).map(([B]) => B);
  const average = mean(heads, weights), sigma = svd(transpose(average)).values;
  const seen = sigma[1] > 1e-12;  // then both directions are
  return {
    one_at: Array.from({ length: STEPS / EVERY + 1 }, (_, i) => EVERY * i),
    one: bodies(1).filter((_, t) => t % EVERY === 0).map((B) => distance(B)),
    several: bodies(local_steps).map((B) => distance(B)),
    sigma, floor: seen ? 0 : distance(start),
  };
}

function draw(found, { share, local_steps }, width) {
  const { size, boxes: [left, right] } = panels(width, { left: 0.66, height: 320, stacked: 190 });
  const plot = axes(left, { x: [0, STEPS], y: [1e-6, 1.5], ylog: true, xlabel: "gradient steps", ylabel: "distance to the true subspace" });
  const at = found.several.map((_, t) => local_steps * t);
  let drawn = plot.frame + plot.curve(found.one_at, found.one, "orange") + plot.curve(at, found.several, "blue");
  if (found.floor) drawn += plot.curve([0, STEPS], [found.floor, found.floor], "grey dots");
  const ends = [["orange", "one step a round", found.one.at(-1)], ["blue", `${local_steps} steps a round`, found.several.at(-1)]]
    .map(([css, name, value]) => [css, name, Math.min(plot.Y(1e-6) - 4, plot.Y(Math.max(value, 1e-7)))]).sort((x, y) => y[2] - x[2]);
  ends[1][2] = Math.min(ends[1][2], ends[0][2] - 18);
  for (const [css, name, y] of ends) drawn += label(plot.X(STEPS) - 5, y - 7, name, `${css} small`, "end");
  const bars = axes(right, { x: [0.4, 2.6], y: [0, 0.8], xlabel: "direction", ylabel: "mean head, σ", xticks: [[1, "1st"], [2, "2nd"]] });
  drawn += bars.frame;
  found.sigma.forEach((value, i) => {
    const x = bars.X(i + 0.7), y = bars.Y(value);
    drawn += `<rect class="ink full" x="${x}" y="${y}" width="${bars.X(i + 1.3) - x}" height="${bars.Y(0) - y}"/>`;
    drawn += label(bars.X(i + 1), y - 6, value.toFixed(3), "small", "middle");
  });
  return [size, drawn];
}

const size = (x) => (x < 1e-3 ? "less than 0.001" : x.toFixed(3));

function say(found, { share, local_steps }) {
  const [one, several] = [found.one.at(-1), found.several.at(-1)];
  const agree = `${Math.round(100 * share)} % of the clients list their labels in the common order; the mean head’s least singular value is ${found.sigma[1].toFixed(3)}.`;
  const end = `After ${STEPS} gradient steps each, one step a round is at distance ${size(one)}, ${local_steps} steps a round at ${size(several)}.`;
  return found.floor ? `${agree} It is zero, so one step can never get below ${found.floor.toFixed(3)}. ${end}` : `${agree} ${end}`;
}

export default panel({
  title: "The dial: how many clients agree on the order of labels?",
  hint: "Press Play to turn the dial from private to shared labels. One curve follows it, the other hardly moves.",
  compute, draw, say, play: "share", seconds: 5,
});
