// Stored runs on images: which method leads depends on the labels.
import { axes, dotAt, label, line, panels } from "./svg.js";
import { panel } from "./panel.js";

const TAUS = [1, 2, 5, 10, 50], POINTS = 8;
const average = (x) => x.reduce((sum, value) => sum + value, 0) / x.length;

// Mean and half-width of Student's 95 % interval; `t` is the quantile for as many values.
function interval(x, t) {
  const middle = average(x);
  const variance = x.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (x.length - 1);
  return [middle, t * Math.sqrt(variance / x.length)];
}

function compute({ regime, classes, steps, runs }) {
  const { curves, scores, t } = JSON.parse(runs), own = TAUS.map((tau) => `${regime} ${classes} ${tau}`);
  const last = own.map((name) => scores[name]);
  return {
    curves: own.map((name) => curves[name]),
    here: own.map((name) => curves[name][steps / 250 - 1]),
    final: last.map((values) => interval(values, t)),
    lead: interval(last.at(-1).map((value, seed) => value - last[0][seed]), t),
  };
}

function draw(found, { steps }, width) {
  const { size, boxes: [left, right] } = panels(width, { left: 0.55, height: 310, stacked: 250 });
  const range = [0.1, 0.5], looks = ["orange", "grey", "grey", "grey", "blue"];
  const plot = axes(left, { x: [0, 2000], y: range, xlabel: "gradient steps", ylabel: "accuracy, unseen classes, one seed", xticks: [0, 500, 1000, 1500, 2000].map((v) => [v, v]) });
  const at = Array.from({ length: POINTS }, (_, i) => 250 * (i + 1));
  let drawn = plot.frame + line(plot.X(steps), plot.box[1], plot.X(steps), plot.box[1] + plot.box[3], "grey dash");
  for (const i of [2, 0, 4]) drawn += plot.curve(at, found.curves[i], looks[i]);
  const place = (i) => plot.Y(found.curves[i][POINTS - 1]);
  const ends = [[4, "50 local steps"], [2, "5"], [0, "one step"]].sort((a, b) => place(b[0]) - place(a[0]));
  let below = Infinity;
  for (const [i, name] of ends) {
    below = Math.min(place(i) - 5, below - 15);
    drawn += label(plot.X(2000) - 4, below, name, `${looks[i]} small`, "end");
  }
  for (const i of [0, 4]) drawn += dotAt(plot.X(steps), plot.Y(found.here[i]), 5, `${looks[i]} full`);
  const bars = axes(right, { x: [-0.6, 4.6], y: range, xlabel: "local steps τ", ylabel: "after 2,000, five seeds, 95 %", xticks: TAUS.map((tau, i) => [i, tau]) });
  drawn += bars.frame;
  found.final.forEach(([middle, half], i) => {
    drawn += line(bars.X(i), bars.Y(middle - half), bars.X(i), bars.Y(middle + half), looks[i]) + dotAt(bars.X(i), bars.Y(middle), 5, `${looks[i]} full`);
  });
  return [size, drawn];
}

function say(found, { regime, classes, steps }) {
  const [one, many] = [found.here[0], found.here.at(-1)], [lead, half] = found.lead;
  const verdict = Math.abs(lead) <= half ? "no clear lead" : lead > 0 ? "FedAvg leads" : "one step leads";
  const change = `${lead > 0 ? "+" : "−"}${Math.abs(lead).toFixed(3)} ± ${half.toFixed(3)}`;
  return `${regime === "shared" ? "Shared" : "Private"} labels, ${classes} classes per client: the seed scored on the way has ${many.toFixed(3)} with 50 local steps and ${one.toFixed(3)} with one, after ${steps.toLocaleString("en")} gradient steps. Where the runs stop, at 2,000, five seeds give a difference of ${change}: ${verdict}. Neither is fully trained by then.`;
}

export default panel({
  title: "Images: who leads, and when?",
  hint: "Stored runs of this chapter, as many gradient steps for all. Press Play to train on; then switch the labels.",
  compute, draw, say, play: "steps", seconds: 4, data: ["runs"],
});
