// Client drift on three quadratics in the plane.
import { add, eye, matmul, norm, scale, svd } from "./linalg.js";
import { axes, dotAt, label, panels, path } from "./svg.js";
import { panel } from "./panel.js";

const CURVATURE = [[[0.4, 0.2], [0.2, 1.4]], [[2.5, -0.3], [-0.3, 0.3]], [[0.3, 0], [0, 0.4]]];
const OPTIMA = [[-2, 1.5], [2, 1], [0.5, -1.5]], START = [-1.5, 0.5], ROUNDS = 60, MOST = 40;
const solve = ([[a, b], [c, d]], [x, y]) => [(d * x - b * y) / (a * d - b * c), (a * y - c * x) / (a * d - b * c)];
const times = (A, x) => A.map((row) => row[0] * x[0] + row[1] * x[1]);

function power(A, n) {
  let result = eye(2);
  for (let square = A; n; n >>= 1, square = matmul(square, square)) if (n & 1) result = matmul(result, square);
  return result;
}

// Mean of the curvatures W_i with weights p, and of W_i c_i.
function mixed(W, p) {
  let [A, b] = [[[0, 0], [0, 0]], [0, 0]];
  W.forEach((Wi, i) => {
    A = add(A, Wi, p[i]);
    b = times(Wi, OPTIMA[i]).map((x, j) => b[j] + p[i] * x);
  });
  return [A, b];
}

function compute({ local_steps, lr, share }) {
  const p = [(1 - share) / 2, (1 - share) / 2, share];
  const factor = CURVATURE.map((A) => add(eye(2), A, -lr));  // of one step
  const W = (steps) => factor.map((F) => add(eye(2), power(F, steps), -1));
  const [A, b] = mixed(CURVATURE, p), minimum = solve(A, b);
  const rest = (steps) => solve(...mixed(W(steps), p));
  const limit = rest(local_steps), [surrogate] = mixed(W(local_steps), p);
  const left = add(eye(2), surrogate, -1);
  const server = [START];
  for (let t = 0; t < ROUNDS; t++) {
    const gap = server[t].map((x, j) => x - limit[j]);
    server.push(times(left, gap).map((x, j) => limit[j] + x));
  }
  return {
    minimum, limit, server, curvature: A, surrogate, factor,
    rests: Array.from({ length: MOST }, (_, i) => rest(i + 1)),
    drift: norm(limit.map((x, j) => x - minimum[j])),
    kept: svd(left).values[0],
  };
}

// Each client's local steps from a place.
const local = (factor, from, count) => factor.map((F, i) => {
  const steps = [from];
  for (let s = 0; s < count; s++)
    steps.push(times(F, steps[s].map((x, j) => x - OPTIMA[i][j])).map((x, j) => OPTIMA[i][j] + x));
  return steps;
});

// The ellipse (x - c)' A (x - c) = level.
function ellipse(plot, A, centre, level, css) {
  const [[a, b], [, d]] = A, mean = (a + d) / 2, gap = Math.hypot((a - d) / 2, b), turn = Math.atan2(2 * b, a - d) / 2;
  const [c, s] = [Math.cos(turn), Math.sin(turn)], [r, q] = [mean + gap, mean - gap].map((e) => Math.sqrt(level / e));
  return path(Array.from({ length: 61 }, (_, i) => {
    const [u, v] = [r * Math.cos((i * Math.PI) / 30), q * Math.sin((i * Math.PI) / 30)];
    return [plot.X(centre[0] + c * u - s * v), plot.Y(centre[1] + s * u + c * v)];
  }), css, true);
}

function draw(found, { local_steps, lr, round }, width) {
  const height = Math.round(Math.min(430, Math.max(300, 0.72 * width)));
  const box = [0, 0, width, height];
  const plot = axes(box, { x: [-2.7, 2.7], y: [-2, 2], xlabel: "first parameter", ylabel: "second parameter", square: true });
  const [l, , w] = plot.box;
  let inside = "", outside = "";
  for (const level of [0.15, 0.6, 1.4, 2.5, 4]) inside += ellipse(plot, found.curvature, found.minimum, level, "grey thin");
  const size = (Math.abs(found.surrogate[0][0]) + found.surrogate[1][1]) / (found.curvature[0][0] + found.curvature[1][1]);
  for (const level of [0.15, 0.6, 1.4]) inside += ellipse(plot, found.surrogate, found.limit, level * size, "blue dash thin");
  const places = (points) => points.map(([x, y]) => [plot.X(x), plot.Y(y)]);
  inside += path(places(found.rests), "blue dots");
  for (const steps of local(found.factor, found.server[round], local_steps)) {
    inside += path(places(steps), "ink thin");
    for (const [x, y] of places(steps.slice(1))) inside += dotAt(x, y, 1.8, "ink full");
  }
  const gone = places(found.server.slice(0, round + 1));
  inside += path(gone, "blue") + gone.map(([x, y]) => dotAt(x, y, 2.5, "blue full")).join("");
  OPTIMA.forEach(([x, y], i) => {
    const [X, Y] = [plot.X(x), plot.Y(y)];
    inside += `<rect class="ink full" x="${X - 5}" y="${Y - 5}" width="10" height="10"/>`;
    outside += label(X, Y - 10, `client ${i + 1}`, "small", "middle");
  });
  const [mx, my] = [plot.X(found.minimum[0]), plot.Y(found.minimum[1])], [lx, ly] = [plot.X(found.limit[0]), plot.Y(found.limit[1])];
  inside += dotAt(mx, my, 6, "orange full") + dotAt(lx, ly, 6, "blue");
  const above = ly <= my;  // then its label goes above it, and the other one's below
  const mark = (x, y, up, text, css) => label(x, y + (up ? -10 : 20), text, `${css} small`, x > l + 0.65 * w ? "end" : "middle");
  outside += mark(mx, my, !above, "minimum of the mean loss", "orange");
  if (found.drift > 0.02) outside += mark(lx, ly, above, "FedAvg rests here", "blue");
  return [[width, height], plot.frame + plot.clip(inside) + outside];
}

function say(found, { local_steps, round }) {
  const away = norm(found.server[round].map((x, j) => x - found.limit[j]));
  const steps = local_steps === 1 ? "one local step" : `${local_steps} local steps`;
  const where = found.drift < 1e-9 ? "on the minimum of the mean loss: no drift"
    : `${found.drift.toFixed(3)} away from the minimum of the mean loss: that is the drift`;
  return `With ${steps} FedAvg comes to rest ${where}. After round ${round} it is ${away.toFixed(3)} from there; each round keeps ${(100 * found.kept).toFixed(1)} % of that, or less.`;
}

export default panel({
  title: "Client drift: where does FedAvg come to rest?",
  hint: "Press Play and follow the server (blue). More local steps get there in fewer rounds, but to another place. Black: one round’s local steps.",
  compute, draw, say, play: "round", seconds: 5, only_seen: ["round"],
});
