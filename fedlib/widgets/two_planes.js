// A learned plane turns towards the true one, or does not.
import { arc, basis, distance, fedavg, mean, norm, outside, tilted } from "./linalg.js";
import { arrow, axes, disc, dotAt, label, line, panels, scene } from "./svg.js";
import { panel } from "./panel.js";

const CLIENTS = 12, ROUNDS = 120;
const degrees = (sine) => (180 / Math.PI) * Math.asin(Math.min(1, sine));

function compute({ local_steps, spread, mean_angle, tilt, lr }) {
  const heads = arc(CLIENTS, spread, mean_angle), start = tilted(tilt, lr);
  const bodies = fedavg(heads, start, local_steps, lr, ROUNDS).map(([B]) => B);
  const bases = bodies.map(basis);
  const a = (Math.PI / 180) * mean_angle, [c, s] = [Math.cos(a), Math.sin(a)];
  const average = mean(heads).flat(), blind = norm(average) < 1e-12;
  // What one step can ever see: the start, and the direction of the mean head.
  const reach = basis(blind ? start : start.map((row, i) => [...row, [c, s, 0][i]]));
  return {
    distance: bodies.map((B, t) => distance(B, bases[t])),
    along: bases.map((Q) => degrees(outside(Q, [c, s, 0]))),
    across: bases.map((Q) => degrees(outside(Q, [-s, c, 0]))),
    floor: reach.length === 3 ? 0 : distance(start),
    mean_head: [...average, 0],
    bases,
    thetas: heads.map((head) => [...head.flat(), 0]),
  };
}

function draw(found, { round, view }, width) {
  const { size, boxes: [left, right] } = panels(width, { left: 0.48, height: 290, stacked: 260 });
  const see = scene(left, view), Q = found.bases[round];
  const zero = see([0, 0, 0]), to = (x, css) => arrow(...zero, ...see(x), css);
  const hinge = [see([-1.15, 0, 0]), see([1.15, 0, 0])];
  let drawn = disc(see, [[1, 0, 0], [0, 1, 0]], "green wash") + disc(see, found.bases[0], "grey dash thin");
  drawn += disc(see, Q, "blue wash") + line(...hinge.flat(), "grey dots") + label(...hinge[1], " hinge", "grey small");
  drawn += found.thetas.map((x) => dotAt(...see(x), 4, "green full")).join("");
  if (norm(found.mean_head) > 0.02) drawn += to(found.mean_head, "ink");
  drawn += label(left[0] + 6, left[1] + 16, "green: the clients’ plane, blue: the server’s", "grey small");
  if (norm(found.mean_head) > 0.02) {
    const [x, y] = see(found.mean_head);
    drawn += label(x + 6, y + 14, "mean head", "small");
  }
  const plot = axes(right, { x: [0, ROUNDS], y: [0, 90], xlabel: "round", ylabel: "angle to the server’s plane (degrees)", yticks: [0, 30, 60, 90].map((v) => [v, v]) });
  const t = found.along.map((_, i) => i);
  drawn += plot.frame + plot.curve(t, found.across, "orange dash thin") + plot.curve(t, found.along, "blue dash thin");
  drawn += plot.curve(t.slice(0, round + 1), found.across.slice(0, round + 1), "orange");
  drawn += plot.curve(t.slice(0, round + 1), found.along.slice(0, round + 1), "blue");
  const worst = degrees(found.floor);
  if (worst > 0.5) {
    drawn += plot.curve([0, ROUNDS], [worst, worst], "grey dots");
    drawn += label(plot.X(ROUNDS) - 4, plot.Y(worst) + (worst > 75 ? 15 : -5), "one step never gets below", "grey small", "end");
  }
  drawn += dotAt(plot.X(round), plot.Y(found.across[round]), 4.5, "orange full") + dotAt(plot.X(round), plot.Y(found.along[round]), 4.5, "blue full");
  const names = [["blue", "along the mean head", found.along], ["orange", "across the mean head", found.across]];
  const ends = names.sort((p, q) => q[2][ROUNDS] - p[2][ROUNDS]).map(([css, name, angles]) => [css, name, plot.Y(angles[ROUNDS])]);
  if (ends[1][2] - ends[0][2] < 18) ends[0][2] = ends[1][2] - 18;
  for (const [css, name, y] of ends) drawn += label(plot.X(ROUNDS) - 4, y - 6, name, `small ${css}`, "end");
  return [size, drawn];
}

function say(found, { local_steps, round, tilt }) {
  const angle = (t) => degrees(found.distance[t]);
  const steps = local_steps === 1 ? "one local step" : `${local_steps} local steps`;
  const here = `With ${steps}, after ${round} rounds the planes are ${angle(round).toFixed(1)}° apart (distance ${found.distance[round].toFixed(3)}); they began ${tilt}° apart.`;
  const end = angle(ROUNDS), sees = norm(found.mean_head) > 0.02;
  if (end < 0.1 * tilt) return `${here} The server’s plane turns onto the clients’: the representation is learned.`;
  const falling = found.distance[ROUNDS] < 0.98 * found.distance[ROUNDS - 20];
  if (falling) return `${here} It is still turning at round ${ROUNDS}, slowly.`;
  if (local_steps > 1) return `${here} It comes to rest there: the heads are too much alike.`;
  if (!sees) return `${here} It will never turn: one step sees only the mean head, and here that is zero.`;
  if (found.along[0] < 1) return `${here} It will never turn: one step sees only the mean head, which lies in the plane already.`;
  return `${here} One direction is learned, that of the mean head; then the plane rests.`;
}

export default panel({
  title: "Two planes: does the server find the clients’ plane?",
  hint: "Every dot is a client; all lie in one plane. Press Play. Then set the local steps to 1 and press it again.",
  compute, draw, say, play: "round", only_seen: ["round", "view"],
});
