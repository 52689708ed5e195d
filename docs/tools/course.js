// The keys of the web pages that docs/tools/pages.py makes
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const rel = { ArrowRight: "next", n: "next", ArrowLeft: "prev", p: "prev", c: "contents" };
  const link = document.querySelector(`a[rel="${rel[event.key]}"]`);
  if (link) location.href = link.href;
});
