// What an angle between planes costs a new client.
import { basis, distance, norm, outside, svd, tilted } from "./linalg.js";
import { arrow, axes, disc, dotAt, label, line, panels, scene } from "./svg.js";
import { panel } from "./panel.js";

const radians = (degrees) => (Math.PI / 180) * degrees;

function compute({ angle, head }) {
  const B = tilted(angle, 1), Q = basis(B);
  const theta = [Math.cos(radians(head)), Math.sin(radians(head)), 0];
  const best = Q.map((q) => q.reduce((sum, x, i) => sum + x * theta[i], 0));
  const fit = theta.map((_, i) => best[0] * Q[0][i] + best[1] * Q[1][i]);
  const missing = outside(Q, theta);
  const cosines = svd([[Q[0][0], Q[0][1]], [Q[1][0], Q[1][1]]]).values;
  return { distance: distance(B, Q), missing, error: missing ** 2 / 2, cosines, theta, fit, bases: Q };
}

function draw(found, { angle, head, view }, width) {
  const { size, boxes: [left, right] } = panels(width, { left: 0.52, height: 310, stacked: 250 });
  const see = scene(left, view), zero = see([0, 0, 0]);
  const hinge = [see([-1.1, 0, 0]), see([1.1, 0, 0])];
  let drawn = disc(see, [[1, 0, 0], [0, 1, 0]], "green wash") + disc(see, found.bases, "blue wash");
  drawn += line(...hinge.flat(), "grey dots") + label(...hinge[1], " hinge", "grey small");
  drawn += label(left[0] + 6, left[1] + 16, "green: the true plane, blue: the learned one", "grey small");
  const [tip, foot] = [see(found.theta), see(found.fit)];
  drawn += arrow(...zero, ...tip, "green") + arrow(...zero, ...foot, "blue") + line(...tip, ...foot, "orange thick");
  drawn += label(tip[0] + 8, tip[1] + 4, "θ", "green") + label(foot[0] + 8, foot[1] + 4, "best fit", "blue small");
  const plot = axes(right, { x: [0, 180], y: [0, 1], xlabel: "new client’s head (degrees from the hinge)", ylabel: "what is missing, |θ − fit|", xticks: [0, 45, 90, 135, 180].map((v) => [v, v]) });
  const at = Array.from({ length: 91 }, (_, i) => 2 * i);
  drawn += plot.frame + plot.curve([0, 180], [found.distance, found.distance], "grey dash");
  drawn += plot.curve(at, at.map((h) => found.distance * Math.abs(Math.sin(radians(h)))), "orange");
  drawn += label(plot.X(4), plot.Y(found.distance) + (found.distance > 0.9 ? 16 : -6), "the distance: the worst client’s", "grey small");
  drawn += dotAt(plot.X(head), plot.Y(found.missing), 5, "orange full");
  return [size, drawn];
}

function say(found, { angle, head }) {
  const [first, second] = [found.missing, found.error].map((x) => x.toFixed(3));
  const start = `The planes are ${angle}° apart, so the distance is sin ${angle}° = ${found.distance.toFixed(3)}.`;
  if (angle === 0) return `${start} Every new client finds its θ in the learned plane.`;
  if (first === "0.000") return `${start} This client loses nothing: its θ lies on the hinge, which both planes share.`;
  const worst = found.missing > 0.999 * found.distance ? " No client of length 1 is hit harder." : "";
  return `${start} This client’s best head misses θ by ${first} (orange): an error of ½·${first}² = ${second}.${worst}`;
}

export default panel({
  title: "What does an angle cost a new client?",
  hint: "Turn the new client’s θ about the true plane. The orange piece is what no head on the learned plane can reach.",
  compute, draw, say, play: "head", seconds: 8, only_seen: ["view"],
});
