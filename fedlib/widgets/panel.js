// One interactive: its drawing, the sentence that says what is seen, and its controls.
//
// A module gives `compute(state)`, plain numbers; `draw(numbers, state, width)`, an SVG; and
// `say(numbers, state)`, a sentence. `only_seen` names the part of the state that `compute` does not
// read, `play` the control that the Play button moves.
import { escape } from "./svg.js";

const POSITIONS = 200;  // of a logarithmic slider

const toSlider = (c, value) => c.log ? Math.round(POSITIONS * Math.log(value / c.min) / Math.log(c.max / c.min)) : value;
const fromSlider = (c, position) =>
  c.log ? +(c.min * (c.max / c.min) ** (position / POSITIONS)).toPrecision(3) : +position;
const shown = (c, value) => {
  if (c.options) return c.options.find(([name]) => name === value)?.[1] ?? String(value);
  const digits = Math.max(0, -Math.floor(Math.log10(c.step ?? 1) + 1e-9));
  const text = c.log ? String(+value.toPrecision(3)) : value.toFixed(digits);
  return text.replace("-", "−") + (c.unit ?? "");
};

const control = (c, value) => c.options
  ? `<label>${escape(c.label)} <select name="${c.name}">${c.options.map(([name, text]) =>
      `<option value="${escape(name)}"${name === value ? " selected" : ""}>${escape(text)}</option>`).join("")}</select></label>`
  : `<label><span>${escape(c.label)}</span> <output>${escape(shown(c, value))}</output>
      <input type="range" name="${c.name}" min="${c.log ? 0 : c.min}" max="${c.log ? POSITIONS : c.max}"
        step="${c.log ? 1 : c.step}" value="${toSlider(c, value)}"></label>`;

export function panel(it) {
  const picture = (state, width) => {
    const [[w, h], drawn] = it.draw(it.compute(state), state, width);
    return `<svg role="img" aria-label="${escape(it.title)}: drawing" viewBox="0 0 ${w} ${h}" width="${w}" height="${h}">${drawn}</svg>`;
  };

  // What a page shows before, and without, any script; and what is printed.
  const still = (state, width = 680) =>
    `<div class="fl-widget"><p class="fl-title">${escape(it.title)}</p><div class="fl-drawing">${picture(state, width)}</div>` +
    `<p class="fl-sentence">${escape(it.say(it.compute(state), state))}</p></div>`;

  function render({ model, el }) {
    const controls = model.get("controls");
    const names = controls.map((c) => c.name), rest = it.data ?? [];
    const now = () => Object.fromEntries([...names, ...rest].map((name) => [name, model.get(name)]));
    el.innerHTML =
      `<div class="fl-widget" role="group" aria-label="${escape(it.title)}"><div class="fl-head"><p class="fl-title">${escape(it.title)}</p>` +
      `<div class="fl-buttons">${it.play ? '<button type="button" class="fl-play"></button>' : ""}` +
      `<button type="button" class="fl-reset">Reset</button></div></div>` +
      `<p class="fl-hint">${escape(it.hint)}</p><div class="fl-drawing"></div>` +
      `<p class="fl-sentence" aria-live="polite"></p><form class="fl-controls">` +
      controls.map((c) => control(c, model.get(c.name))).join("") + "</form></div>";
    const [box, drawing, sentence, form] =
      [".fl-widget", ".fl-drawing", ".fl-sentence", "form"].map((name) => el.querySelector(name));
    form.onsubmit = () => false;
    const tasks = new AbortController(), { signal } = tasks;

    // ---- Drawing: at most once a frame; numbers only where something that they rest on changed ----
    let numbers, rested, frame;
    const update = () => {
      frame = undefined;
      const state = now();
      const rests = JSON.stringify({ ...state, ...Object.fromEntries((it.only_seen ?? []).map((name) => [name, 0])) });
      if (rests !== rested) [numbers, rested] = [it.compute(state), rests];
      const width = Math.max(280, Math.min(900, Math.floor(drawing.clientWidth || 680)));
      const [[w, h], drawn] = it.draw(numbers, state, width);
      drawing.innerHTML = `<svg role="img" aria-label="${escape(it.title)}: drawing" viewBox="0 0 ${w} ${h}" width="${w}" height="${h}">${drawn}</svg>`;
      const said = it.say(numbers, state);
      if (sentence.textContent !== said) sentence.textContent = said;
      for (const c of controls) {
        const input = form.elements[c.name], value = state[c.name];
        if (c.options) { input.value = value; continue; }
        const text = shown(c, value);
        if (+input.value !== toSlider(c, value)) input.value = toSlider(c, value);
        input.previousElementSibling.textContent = text;
        input.setAttribute("aria-valuetext", text);
      }
    };
    const later = () => (frame ??= requestAnimationFrame(update));

    // ---- State: what Python sets is drawn; what the reader sets is sent when it is let go ----
    for (const name of [...names, ...rest]) model.on(`change:${name}`, later);
    const set = (name, value) => { model.set(name, value); later(); };
    form.addEventListener("input", ({ target }) => {
      const c = controls.find(({ name }) => name === target.name);
      if (c) set(c.name, c.options ? target.value : fromSlider(c, target.value));
    }, { signal });
    form.addEventListener("change", () => model.save_changes(), { signal });

    // ---- Play: a moving control; for readers who want no motion, one step a press ----
    const button = el.querySelector(".fl-play"), moved = controls.find(({ name }) => name === it.play);
    const still_wanted = matchMedia("(prefers-reduced-motion: reduce)");
    let playing = false;
    const name = () => button && (button.textContent = still_wanted.matches ? "Step" : playing ? "Pause" : "Play");
    const stop = () => {
      if (playing) model.save_changes();
      playing = false;
      sentence.setAttribute("aria-live", "polite");
      name();
    };
    const at_end = () => model.get(moved.name) >= moved.max;
    const round = (value) => Math.min(moved.max, moved.min + moved.step * Math.round((value - moved.min) / moved.step));
    const play = () => {
      const span = moved.max - moved.min;
      if (still_wanted.matches) {
        set(moved.name, at_end() ? moved.min : round(model.get(moved.name) + span / 10));
        return model.save_changes();
      }
      if (playing) return stop();
      playing = true;
      sentence.setAttribute("aria-live", "off");  // a sentence a frame is too much to hear
      name();
      const from = at_end() ? moved.min : model.get(moved.name);
      let start;
      const go = (time) => {
        if (!playing || !drawing.isConnected) return stop();
        start ??= time;
        set(moved.name, round(from + (span * (time - start)) / (1000 * (it.seconds ?? 6))));
        at_end() ? stop() : requestAnimationFrame(go);
      };
      requestAnimationFrame(go);
    };
    button?.addEventListener("click", play, { signal });
    still_wanted.addEventListener("change", name, { signal });
    form.addEventListener("pointerdown", ({ target }) => target.name === it.play && stop(), { signal });
    el.querySelector(".fl-reset").addEventListener("click", () => {
      stop();
      for (const c of controls) model.set(c.name, c.value);
      model.save_changes();
      later();
    }, { signal });

    name();
    update();
    let width = drawing.clientWidth;
    const resized = new ResizeObserver(() => drawing.clientWidth !== width && (width = drawing.clientWidth, later()));
    resized.observe(box);
    return () => {
      playing = false;
      tasks.abort();
      resized.disconnect();
      for (const name of [...names, ...rest]) model.off(`change:${name}`, later);
    };
  }
  return { render, still, compute: it.compute, say: it.say };
}
