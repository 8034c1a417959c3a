// What the convergence theorem promises, and what happens. Two clients with heads +1 and -1, k = 1:
// the server's head stays 0, and both clients make the same body, so one of them is enough.
import { axes, dotAt, label, panels, path } from "./svg.js";
import { panel } from "./panel.js";

const MOST = 4000;  // rounds

const forcing = (eta, tau, E0) => 12 * eta + 5 * eta * (tau - 1) * E0 * Math.log(1 / E0);

function largest(tau, distance) {
  const E0 = (1 - distance) * (1 + distance);
  return (1 - 1e-9) * Math.sqrt(Math.min(E0 ** 2 / 40 / forcing(1, tau, E0), E0 / 20 / (tau - 1)));
}

function compute({ local_steps: tau, lr, distance: D0 }) {
  const eta = lr ** 2, E0 = (1 - D0) * (1 + D0), target = D0 / 10;
  const [slow, fast] = [0.75 * eta * (tau - 1) * E0, 0.68 * eta * (tau - 1)];
  const fall = (start, lost, t) => (lost > 1 ? Infinity : lost === 1 ? (t ? 0 : start) : start * Math.exp(t * Math.log1p(-lost)));
  const bound = (t) => 1.013 * Math.min(fall(D0, slow, t), fall(D0 / Math.sqrt(E0), fast, t));
  let promised = -1;
  if (bound(2 ** 40) <= target) {
    let [low, high] = [0, 2 ** 40];
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if (bound(middle) <= target) high = middle; else low = middle + 1;
    }
    promised = low;
  }
  let [a, z] = [Math.sqrt(E0 / lr), D0 / Math.sqrt(lr)], taken = -1;
  const distances = [D0];
  for (let t = 1; t <= MOST && taken < 0; t++) {
    let w = 0;
    for (let s = 0; s < tau; s++) {
      const [r, q, head] = [lr * (a * w - 1), lr * z * w, w];
      w -= a * r + z * q;
      a -= r * head;
      z -= q * head;
    }
    const now = Math.abs(z) / Math.hypot(a, z);
    if (!Number.isFinite(now)) { taken = -2; break; }
    distances.push(now);
    if (now <= target) taken = t;
  }
  const most = largest(tau, D0);
  return { largest: most, admitted: +(lr <= most), rate: fast, promised, taken, distances, bounds: distances.map((_, t) => bound(t)) };
}

function draw(found, { local_steps: tau, lr, distance: D0 }, width) {
  const { size, boxes: [left, right] } = panels(width, { left: 0.5, height: 320, stacked: 260 });
  const map = axes(left, { x: [2, 20], y: [0.004, 1.2], ylog: true, xlabel: "local steps τ", ylabel: "step size α", xticks: [2, 5, 10, 15, 20].map((v) => [v, v]) });
  const taus = Array.from({ length: 37 }, (_, i) => 2 + i / 2), edge = taus.map((t) => [map.X(t), map.Y(Math.max(0.004, largest(t, D0)))]);
  let drawn = map.frame + path([[map.X(2), map.Y(0.004)], ...edge, [map.X(20), map.Y(0.004)]], "green wash", true);
  drawn += label(map.X(11), map.Y(0.0055), "the theorem’s conditions hold", "green small", "middle");
  drawn += dotAt(map.X(tau), map.Y(lr), 6, found.admitted ? "green full" : "orange full");
  const last = found.distances.length - 1, horizon = Math.max(10, Math.min(MOST, 1.15 * Math.max(last, found.promised)));
  const plot = axes(right, { x: [0, horizon], y: [D0 / 15, Math.min(1.3, 1.6 * D0)], ylog: true, xlabel: "round", ylabel: "distance", yticks: [1, 0.3, 0.1].map((part) => [D0 * part, (D0 * part).toPrecision(2)]) });
  const t = found.distances.map((_, i) => i);
  const far = Array.from({ length: 101 }, (_, i) => Math.round((horizon * i) / 100));
  const line = far.map((x) => (x <= last ? found.bounds[x] : found.bounds[last] * (1 - Math.min(1, found.rate)) ** (x - last)));
  drawn += plot.frame + plot.curve([0, horizon], [D0 / 10, D0 / 10], "grey dots") + plot.curve(t, found.distances, "blue");
  drawn += plot.curve(far, line, found.admitted ? "green dash" : "orange dash");
  drawn += label(plot.X(horizon) - 4, plot.box[1] + 16, found.admitted ? "promised: dashed" : "the formula, no promise: dashed", `${found.admitted ? "green" : "orange"} small`, "end");
  drawn += label(plot.X(horizon) - 4, plot.box[1] + 32, "measured", "blue small", "end");
  if (found.taken > 0) drawn += dotAt(plot.X(found.taken), plot.Y(found.distances[last]), 5, "blue full");
  return [size, drawn];
}

const count = (n) => n.toLocaleString("en");

function say(found, { local_steps: tau, lr, distance }) {
  const most = found.largest.toPrecision(2);
  const verdict = found.admitted ? `The theorem admits this step size (up to ${most}).`
    : `The theorem does not admit this step size: it is ${(lr / found.largest).toPrecision(2)} times the largest, ${most}.`;
  const formula = found.promised < 0 ? "its formula says nothing" : `${found.admitted ? "it promises" : "its formula, no promise here, says"} ${count(found.promised)} rounds to a tenth of the distance`;
  const measured = found.taken === -2 ? "the run diverges" : found.taken < 0 ? `the run is not there after ${count(MOST)} rounds` : `the run takes ${count(found.taken)}`;
  return `${verdict} With ${tau} local steps ${formula}; ${measured}.`;
}

export default panel({
  title: "What does the theorem promise, and what happens?",
  hint: "Move the dot into and out of the green region with the step size. Outside nothing is promised, and yet the formula keeps close.",
  compute, draw, say,
});
