// What one round keeps of the server's body: the prior weight P, step by step.
import { add, arc, eye, matmul, mean, norm, svd, tilted, transpose } from "./linalg.js";
import { arrow, axes, dotAt, label, panels, path } from "./svg.js";
import { panel } from "./panel.js";

const CLIENTS = 12, MOST = 20;

function compute({ spread, tilt, lr }) {
  const heads = arc(CLIENTS, spread, 30), B = tilted(tilt, lr);
  const truth = heads.map((head) => [...head.flat(), 0]);
  // The server's head is what the mean client would fit.
  const middle = mean(heads).flat();
  const w = transpose(B).map((column) => lr * (column[0] * middle[0] + column[1] * middle[1]));
  const clients = truth.map((theta) => {
    let [body, head, P] = [B, w, eye(2)];
    const steps = [[head, P]];
    for (let s = 0; s < MOST; s++) {
      const r = body.map((row, i) => row[0] * head[0] + row[1] * head[1] - theta[i]);
      P = add(P, matmul(P, head.map((x) => head.map((y) => x * y))), -lr);
      const next = head.map((x, j) => x - lr * body.reduce((sum, row, i) => sum + row[j] * r[i], 0));
      body = body.map((row, i) => row.map((x, j) => x - lr * r[i] * head[j]));
      head = next;
      steps.push([head, P]);
    }
    return steps;
  });
  const priors = Array.from({ length: MOST + 1 }, (_, s) => mean(clients.map((steps) => steps[s][1])));
  const sigma = priors.map((P) => svd(P).values);
  return { priors, largest: sigma.map(([x]) => x), least: sigma.map(([, x]) => x), heads: clients.map((steps) => steps.map(([head]) => head)) };
}

function draw(found, { local_steps: s, lr }, width) {
  const { size, boxes: [left, right] } = panels(width, { left: 0.48, height: 320, stacked: 250 });
  const plot = axes(left, { x: [-1.3, 1.3], y: [-1.3, 1.3], xlabel: "first feature", ylabel: "second feature", square: true, xticks: [-1, 0, 1].map((v) => [v, v]), yticks: [-1, 0, 1].map((v) => [v, v]) });
  const round = Array.from({ length: 73 }, (_, i) => [Math.cos((i * Math.PI) / 36), Math.sin((i * Math.PI) / 36)]);
  const place = ([x, y]) => [plot.X(x), plot.Y(y)], unit = 1 / Math.sqrt(lr), P = found.priors[s];
  const zero = place([0, 0]);
  let drawn = plot.frame + path(round.map(place), "grey dash", true);
  drawn += path(round.map(([x, y]) => place([P[0][0] * x + P[0][1] * y, P[1][0] * x + P[1][1] * y])), "blue wash", true);
  for (const steps of found.heads) {
    const [x, y] = steps[Math.max(0, s - 1)].map((value) => unit * value);
    drawn += arrow(...zero, ...place([x, y]), "green thin");
  }
  drawn += label(plot.box[0] + 4, plot.box[1] + 14, "heads that the last step used", "green small");
  drawn += label(plot.box[0] + 4, plot.box[1] + plot.box[3] - 6, "P times the unit circle", "blue small");
  const other = axes(right, { x: [0, MOST], y: [0, 1.02], xlabel: "local steps τ", ylabel: "share of the old body that a round keeps" });
  const steps = found.largest.map((_, i) => i);
  drawn += other.frame + other.curve(steps, found.largest, "orange") + other.curve(steps, found.least, "blue");
  drawn += dotAt(other.X(s), other.Y(found.largest[s]), 5, "orange full") + dotAt(other.X(s), other.Y(found.least[s]), 5, "blue full");
  const [a, b] = [other.Y(found.largest[MOST]), other.Y(found.least[MOST])];
  drawn += label(other.X(MOST) - 4, a - 7, "most-kept direction, σ₁", "orange small", "end");
  drawn += label(other.X(MOST) - 4, b + 18 > other.box[1] + other.box[3] ? b - 7 : b + 18, "least-kept direction, σ₂", "blue small", "end");
  return [size, drawn];
}

function say(found, { local_steps: s }) {
  const [most, least] = [found.largest[s], found.least[s]].map((x) => (100 * x).toFixed(1));
  const all = most === "100.0";
  if (s === 1) return all && least === "100.0"
    ? "With one local step the server’s head is all that a round sees, and here it is zero: all of the old body is kept, and nothing is learned."
    : `With one local step all clients use the same head, the server’s: a round keeps ${least} % of the old body along it and all of it, 100 %, across.`;
  if (all) return `After ${s} local steps a round still keeps all of the old body in one direction: the heads lie on a line, and more steps do not help.`;
  return `After ${s} local steps a round keeps at most ${most} % of the old body in any direction, and ${least} % in the least: the clients’ own heads point both ways, so every direction is renewed.`;
}

export default panel({
  title: "Why two steps: what does a round keep of the old body?",
  hint: "Start at one local step and press Play. Then close the fan of heads: set their spread to 0°.",
  compute, draw, say, play: "local_steps", seconds: 5, only_seen: ["local_steps"],
});
