// Loaded after require.js and before embed-amd.js, on pages that hold a widget.
(() => {
  const vendor = new URL("vendor/widgets/", document.currentScript.src).href;
  window.requirejs.config({ paths: {
    anywidget: vendor + "anywidget",
    // so that the html manager finds its icon fonts, which lie beside it
    "@jupyter-widgets/html-manager": vendor + "embed-amd",
    "@jupyter-widgets/html-manager/dist": vendor.slice(0, -1),
  } });
  // The html manager calls MathJax 2's Hub; the page has MathJax 3.
  document.addEventListener("DOMContentLoaded", () => {
    if (window.MathJax && !window.MathJax.Hub)
      window.MathJax.Hub = { Queue: ([, , el]) => window.MathJax.typesetPromise?.([el]) };
  });
})();
