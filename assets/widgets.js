// Brings the page's interactives to life: from their stored state, without a kernel or a request.
// Each is an anywidget, an ES module in its state. It gets what anywidget would give it: a model
// with get, set, on, off and save_changes. Loaded only on pages that hold a widget.
(() => {
  const TYPE = "application/vnd.jupyter.widget-";
  const stored = document.querySelector(`script[type="${TYPE}state+json"]`);
  if (!stored) return;
  const models = JSON.parse(stored.textContent).state;

  class Model {
    #state; #heard = new Map();
    constructor(state) { this.#state = { ...state }; }
    get(name) { return this.#state[name]; }
    set(name, value) {
      if (Object.is(this.#state[name], value)) return;
      this.#state[name] = value;
      for (const event of [`change:${name}`, "change"])
        for (const hear of this.#heard.get(event) ?? []) hear();
    }
    on(event, hear) { this.#heard.set(event, (this.#heard.get(event) ?? new Set()).add(hear)); }
    off(event, hear) { this.#heard.get(event)?.delete(hear); }
    save_changes() {}
    send() {}
  }

  const modules = new Map();  // two views of one kind share a module
  const load = (text) => {
    if (!modules.has(text)) {
      const address = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
      modules.set(text, import(address).finally(() => URL.revokeObjectURL(address)));
    }
    return modules.get(text);
  };

  const start = async (place) => {
    const { state } = models[place.dataset.model];
    const { default: widget } = await load(state._esm);
    const el = document.createElement("div"), model = new Model(state);
    await widget.initialize?.({ model });
    place.append(el);
    await widget.render({ model, el });
    place.querySelector(".fl-still").remove();
    place.model = model;  // for tests, and for the curious
  };

  const near = new IntersectionObserver((seen) => {
    for (const { isIntersecting, target } of seen)
      if (isIntersecting) {
        near.unobserve(target);
        start(target).catch((error) => console.error(error));
      }
  }, { rootMargin: "400px" });
  for (const place of document.querySelectorAll(".fl-place")) near.observe(place);
})();
