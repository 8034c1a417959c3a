// A new client with few examples: fit a head on the learned features, or everything from scratch?
import { axes, dotAt, label, panels } from "./svg.js";
import { panel } from "./panel.js";

// Expected risk of least squares with p inputs from n examples: signal out of reach, noise fitted.
function leastSquares(p, signal, noise, n) {
  const unseen = Math.max(0, 1 - n / p) * signal;
  if (noise === 0) return unseen;
  const gap = n >= p ? n - p - 1 : p - n - 1;
  return gap > 0 ? unseen + (noise * Math.min(n, p)) / gap : Infinity;
}

function compute({ num_samples, d, k, noise_std, distance }) {
  const missed = distance ** 2, noise = noise_std ** 2;
  const head = (n, lost) => lost + leastSquares(k, 1 - lost, noise + lost, n);
  const counts = Array.from({ length: 200 }, (_, i) => i + 1);
  const risks = counts.map((n) => [head(n, missed), leastSquares(d, 1, noise, n), head(n, 0)]);
  const [fine_tuned, scratch, oracle] = [0, 1, 2].map((which) => risks.map((row) => row[which]));
  const crossing = counts.find((n) => n > d + 1 && scratch[n - 1] < (1 - 1e-9) * fine_tuned[n - 1]) ?? 0;
  return { counts, fine_tuned, scratch, oracle, crossing };
}

function draw(found, { num_samples: n, d, distance }, width) {
  const plot = axes([0, 0, width, Math.round(Math.min(380, Math.max(300, 0.6 * width)))], { x: [1, 200], y: [0.003, 30], xlog: true, ylog: true, xlabel: "examples n of the new client", ylabel: "expected squared error", xticks: [1, 2, 5, 10, 20, 50, 100, 200].map((v) => [v, v]) });
  let drawn = plot.frame;
  if (distance > 0.06) drawn += plot.curve([1, 200], [distance ** 2, distance ** 2], "grey dots") + label(plot.X(1.1), plot.Y(distance ** 2) - 5, "what the features miss: distance²", "grey small");
  drawn += plot.curve(found.counts, found.oracle, "green dash") + plot.curve(found.counts, found.scratch, "orange") + plot.curve(found.counts, found.fine_tuned, "blue");
  const place = (ys, at) => plot.Y(Math.min(25, Math.max(0.004, ys[at - 1])));
  const ends = [["blue", "fine-tuned head", found.fine_tuned], ["orange", "from scratch", found.scratch], ["green", "true features", found.oracle]]
    .map(([css, name, ys]) => [css, name, place(ys, 200)]).sort((a, b) => b[2] - a[2]);
  for (let i = 1; i < 3; i++) ends[i][2] = Math.min(ends[i][2], ends[i - 1][2] - 16);
  for (const [css, name, y] of ends) drawn += label(plot.X(200) - 5, y - 6, name, `small ${css}`, "end");
  for (const [css, ys] of [["green", found.oracle], ["orange", found.scratch], ["blue", found.fine_tuned]]) {
    const y = ys[n - 1];
    if (Number.isFinite(y) && y < 30) drawn += dotAt(plot.X(n), plot.Y(y), 5, `${css} full`);
  }
  return [[width, plot.box[1] + plot.box[3] + 40], drawn];
}

const figure = (x) => (Number.isFinite(x) ? x.toPrecision(3).replace(/e.*/, "") : "infinite");

function say(found, { num_samples: n, d, k }) {
  const [head, scratch] = [found.fine_tuned[n - 1], found.scratch[n - 1]];
  const better = head < scratch ? "fine-tuning wins" : head > scratch ? "learning from scratch wins" : "neither helps";
  const when = found.crossing ? `From n = ${found.crossing} on, scratch is better: the features’ error stays, the noise averages out.`
    : "Scratch does not catch up within 200 examples.";
  return `With ${n} example${n === 1 ? "" : "s"} the expected error is ${figure(head)} for a head on ${k} learned features and ${figure(scratch)} for all ${d} weights from scratch: ${better}. ${when}`;
}

export default panel({
  title: "Fine-tune a head, or learn from scratch?",
  hint: "Press Play to give the new client more examples. Then raise the distance: worse features, an earlier crossing.",
  compute, draw, say, play: "num_samples", seconds: 8, only_seen: ["num_samples"],
});
