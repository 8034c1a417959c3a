// Stored runs on images: which method leads depends on the labels.
import { axes, dotAt, label, line, panels } from "./svg.js";
import { panel } from "./panel.js";

const average = (x) => x.reduce((sum, value) => sum + value, 0) / x.length;

// Mean and half-width of Student's 95 % interval; `t` is the quantile for as many values.
function interval(x, t) {
  const middle = average(x);
  const variance = x.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (x.length - 1);
  return [middle, t * Math.sqrt(variance / x.length)];
}

function compute({ regime, classes, steps, runs }) {
  const { taus, points, curves, scored, scores, t } = JSON.parse(runs);
  const own = taus.map((tau) => `${regime} ${classes} ${tau}`);
  const upTo = (places) => places.findLastIndex((place) => place <= steps);
  const last = own.map((name) => scores[name].at(upTo(scored)));  // the end, if nothing before
  return {
    taus, points, scored: scored.at(upTo(scored)), along: scored.length > 1, seeds: last[0].length,
    best: Math.max(...own.map((name) => [curves[name], scores[name]]).flat(3)),
    curves: own.map((name) => curves[name]),
    here: own.map((name) => curves[name][upTo(points)]),
    final: last.map((values) => interval(values, t)),
    lead: interval(last.at(-1).map((value, seed) => value - last[0][seed]), t),
  };
}

const words = { 3: "three", 4: "four", 5: "five" };
const written = (number) => number.toLocaleString("en");

function draw({ taus, points, curves, here, final, scored, along, seeds, best }, { steps }, width) {
  const { size, boxes: [left, right] } = panels(width, { left: 0.55, height: 310, stacked: 250 });
  const many = taus.length - 1, middle = many / 2, end = points.at(-1), count = words[seeds] ?? seeds;
  const range = [0.1, Math.max(0.5, Math.ceil(10 * best + 0.5) / 10)];
  const looks = taus.map((_, i) => (i === 0 ? "orange" : i === many ? "blue" : "grey"));
  const quarters = [0, 1, 2, 3, 4].map((i) => [(i * end) / 4, (i * end) / 4]);
  const plot = axes(left, { x: [0, end], y: range, xlabel: "gradient steps", ylabel: `accuracy, unseen classes, ${along ? `${count} seeds` : "one seed"}`, xticks: quarters });
  let drawn = plot.frame + line(plot.X(steps), plot.box[1], plot.X(steps), plot.box[1] + plot.box[3], "grey dash");
  for (const i of [middle, 0, many]) drawn += plot.curve(points, curves[i], looks[i]);
  const place = (i) => plot.Y(curves[i].at(-1));
  const ends = [[many, `${taus[many]} local steps`], [middle, `${taus[middle]}`], [0, "one step"]].sort((a, b) => place(b[0]) - place(a[0]));
  let below = Infinity;
  for (const [i, name] of ends) {
    below = Math.min(place(i) - 5, below - 15);
    drawn += label(plot.X(end) - 4, below, name, `${looks[i]} small`, "end");
  }
  for (const i of [0, many]) drawn += dotAt(plot.X(steps), plot.Y(here[i]), 5, `${looks[i]} full`);
  const bars = axes(right, { x: [-0.6, many + 0.6], y: range, xlabel: "local steps τ", ylabel: `after ${written(scored)}, ${count} seeds, 95 %`, xticks: taus.map((tau, i) => [i, tau]) });
  drawn += bars.frame;
  final.forEach(([middle, half], i) => {
    drawn += line(bars.X(i), bars.Y(middle - half), bars.X(i), bars.Y(middle + half), looks[i]) + dotAt(bars.X(i), bars.Y(middle), 5, `${looks[i]} full`);
  });
  return [size, drawn];
}

function say(found, { regime, classes, steps }) {
  const [one, many] = [found.here[0], found.here.at(-1)], [lead, half] = found.lead;
  const verdict = Math.abs(lead) <= half ? "no clear lead" : lead > 0 ? "FedAvg leads" : "one step leads";
  const change = `${lead > 0 ? "+" : "−"}${Math.abs(lead).toFixed(3)} ± ${half.toFixed(3)}`;
  const who = `${regime === "shared" ? "Shared" : "Private"} labels, ${classes} classes per client`;
  const both = `${many.toFixed(3)} with ${found.taus.at(-1)} local steps and ${one.toFixed(3)} with one`;
  const count = words[found.seeds] ?? found.seeds;
  if (found.along)
    return `${who}: after ${written(found.scored)} gradient steps, the mean of ${count} seeds is ${both}, a difference of ${change}: ${verdict}.`;
  return `${who}: the seed scored on the way has ${both}, after ${written(steps)} gradient steps. Where the runs stop, at ${written(found.scored)}, ${count} seeds give a difference of ${change}: ${verdict}. Neither is fully trained by then.`;
}

export default panel({
  title: "Images: who leads, and when?",
  hint: "Stored runs of this chapter, as many gradient steps for all. Press Play to train on; then switch the labels.",
  compute, draw, say, play: "steps", seconds: 4, data: ["runs"],
});
