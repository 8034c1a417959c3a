// Two small helps for readers: previews of what a link leads to, and keys for what scrolls sideways.
(() => {
  const root = new URL(document.documentElement.dataset.content_root, document.baseURI).href;

  // ---- Previews of statements, formulas, figures and citations, on hover and on keyboard focus ----
  // The texts lie in one script that is fetched when first needed: `fetch` would not work on file://.
  let texts, card, shownFor, timer;

  const load = () => texts ??= new Promise((resolve) => {
    window.bookPreviews = resolve;
    document.head.append(Object.assign(document.createElement("script"), { src: root + "_static/previews.js" }));
  });

  const hide = () => {
    clearTimeout(timer);
    card?.remove();
    shownFor?.removeAttribute("aria-describedby");
    card = shownFor = undefined;
  };

  const show = async (link) => {
    const text = (await load())[link.href.slice(root.length)];
    if (!text || link !== wanted) return;
    hide();
    card = document.createElement("div");
    Object.assign(card, { id: "preview", className: "preview bd-article", role: "tooltip", innerHTML: text });
    for (const image of card.querySelectorAll("img")) image.src = root + image.getAttribute("src");
    (link.closest("main") ?? document.body).append(card);
    link.setAttribute("aria-describedby", "preview");
    shownFor = link;
    await window.MathJax?.typesetPromise?.([card]);
    place(link);
    for (const image of card.querySelectorAll("img")) image.decode().then(() => place(link), () => {});
  };

  // Below the link, or above it where there is more room; never outside the window.
  const place = (link) => {
    if (shownFor !== link) return;
    const { left, top, bottom } = link.getClientRects()[0], { offsetWidth, offsetHeight } = card;
    const { clientWidth, clientHeight } = document.documentElement, gap = 8;
    const above = bottom + gap + offsetHeight > clientHeight && top > clientHeight - bottom;
    card.style.left = `${Math.max(gap, Math.min(left, clientWidth - offsetWidth - gap))}px`;
    card.style.top = `${Math.max(gap, above ? top - gap - offsetHeight : bottom + gap)}px`;
    card.style.visibility = "visible";
  };

  let wanted;  // the link that the pointer is on, or the one that has the focus
  const consider = (element, delay) => {
    if (card?.contains(element)) return clearTimeout(timer);
    const link = element.closest?.("article a[href*='#']:not(.headerlink)") ?? undefined;
    if (!link && wanted && wanted === document.activeElement) return;  // the keyboard's stays
    if (link && link === wanted && card) return clearTimeout(timer);
    wanted = link;
    clearTimeout(timer);
    timer = link ? setTimeout(show, delay, link) : setTimeout(hide, 200);
  };
  const leave = () => (wanted = undefined, hide());

  document.addEventListener("pointerover", (event) => event.pointerType === "mouse" && consider(event.target, 300));
  document.addEventListener("focusin", ({ target }) => target.matches(":focus-visible") && consider(target, 0));
  document.addEventListener("focusout", leave);
  // A link that gets the focus may scroll into view: its preview comes along.
  const follow = () => shownFor && (shownFor === document.activeElement ? place(shownFor) : hide());
  document.addEventListener("scroll", follow, { passive: true });
  document.addEventListener("keydown", (event) => event.key === "Escape" && leave());

  // ---- What scrolls sideways can be reached with the keyboard; what fits is no tab stop ----
  // (A formula in a table scrolls with the table.)
  const boxes = "article :is(pre, .math > mjx-container:not(td *), .pst-scrollable-table-container, div.output.text_html, .picture)";
  const mark = () => {
    for (const box of document.querySelectorAll(boxes)) {
      const scrolls = box.scrollWidth > box.clientWidth + 2;  // not a slanted letter's tip
      if (scrolls === box.hasAttribute("tabindex")) continue;
      const what = box.matches("pre") ? "Text" : box.matches("mjx-container") ? "Formula"
        : box.matches(".picture") ? "Picture" : "Table";
      if (scrolls) {
        box.tabIndex = 0;
        box.setAttribute("role", "region");
        box.setAttribute("aria-label", `${what}, scrolls sideways`);
      } else for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
    }
  };
  const settled = () => window.MathJax?.startup?.promise ?? Promise.resolve();
  window.addEventListener("load", () => settled().then(() => {
    let frame;
    new ResizeObserver(() => (cancelAnimationFrame(frame), frame = requestAnimationFrame(mark)))
      .observe(document.querySelector("article") ?? document.body);
  }));
})();
