// How the labels of a data set come to lie on the clients.
import { axes, label } from "./svg.js";
import { panel } from "./panel.js";

const sum = (x) => x.reduce((total, value) => total + value, 0);
const share = (row) => row.map((value) => value / sum(row));
const nearest = (table, value) => table.reduce((best, entry) =>
  Math.abs(Math.log(entry[0] / value)) < Math.abs(Math.log(best[0] / value)) ? entry : best);

const read = ({ tables }) => JSON.parse(tables);

function compute(state) {
  const counts = state.kind === "classes" ? read(state).classes[state.classes - 1] : nearest(read(state).dirichlet, state.concentration)[1];
  const all = share(counts[0].map((_, j) => sum(counts.map((row) => row[j]))));
  const mixes = counts.map(share);
  return {
    counts,
    // To how many equally frequent classes a client's labels amount: the exponential of their entropy.
    effective: mixes.map((mix) => Math.exp(-sum(mix.map((p) => (p > 0 ? p * Math.log(p) : 0))))),
    moved: mixes.map((mix) => sum(mix.map((p, j) => Math.abs(p - all[j]))) / 2),
  };
}

function draw(found, state, width) {
  const rows = found.counts.length, columns = found.counts[0].length;
  const height = Math.round(Math.min(430, Math.max(320, 0.6 * width)));
  const plot = axes([0, 0, width, height], { x: [-0.6, columns - 0.4], y: [rows - 0.4, -0.6], xlabel: "digit", ylabel: "client", xticks: found.counts[0].map((_, j) => [j, j]), yticks: found.counts.map((_, i) => [i, i + 1]) });
  const most = Math.max(...found.counts.flat()), cell = Math.min(plot.box[2] / columns, plot.box[3] / rows) / 2 - 1;
  let drawn = plot.frame;
  found.counts.forEach((row, i) => row.forEach((value, j) => {
    if (value) drawn += `<circle class="blue wash" cx="${plot.X(j).toFixed(1)}" cy="${plot.Y(i).toFixed(1)}" r="${Math.max(1.2, cell * Math.sqrt(value / most)).toFixed(1)}"><title>client ${i + 1}, digit ${j}: ${value} images</title></circle>`;
  }));
  return [[width, height], drawn + label(plot.box[0] + plot.box[2], plot.box[1] - 10, `largest disc: ${most} images`, "grey small", "end")];
}

function say(found, state) {
  const { kind, classes, concentration } = state;
  const mean = (x) => sum(x) / x.length;
  const how = kind === "classes" ? `With ${classes} ${classes === 1 ? "class" : "classes"} per client`
    : `With Dirichlet concentration ${+nearest(read(state).dirichlet, concentration)[0].toPrecision(2)}`;
  const sizes = found.counts.map(sum), [low, high] = [Math.min(...sizes), Math.max(...sizes)];
  const size = low === high ? `${low} images each` : `${low} to ${high} images`;
  return `${how} (${size}) a client’s labels are worth ${mean(found.effective).toFixed(1)} equally frequent digits of 10. On average ${(100 * mean(found.moved)).toFixed(0)} % of its images would need another label to match the federation’s mix.`;
}

export default panel({
  title: "How different are the clients?",
  hint: "Each row is a client, each disc the images of one digit (area = number). Fewer classes, or a smaller concentration, pull the clients apart.",
  compute, draw, say, data: ["tables"],
});
