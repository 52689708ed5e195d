// The behavior of the web pages that docs/tools/pages.py makes. All of it is optional:
// without JavaScript the pages are complete, with fewer conveniences.
"use strict";
const $ = (selector, inside = document) => inside.querySelector(selector);
const $$ = (selector, inside = document) => [...inside.querySelectorAll(selector)];

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ---------------------------------------------------------------------------- Memory
// What is kept in this browser. Where that is not allowed, nothing is kept.
function recall(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`course.${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(`course.${name}`, JSON.stringify(value));
  } catch {
    // private windows and full disks: then not
  }
}

// -------------------------------------------------------------------------- The diff
const root = document.documentElement;

function isSideBySide(lines) {
  return getComputedStyle($(".hunk", lines)).display === "grid";
}

function nameViews() {
  for (const diff of $$(".diff")) {
    const side = isSideBySide($(".lines", diff));
    $("[data-do=view]", diff).textContent = side ? "Unified" : "Side by side";
  }
}

function toggleView() {
  const lines = $(".lines");
  if (!lines || !$("[data-do=view]").checkVisibility()) return;  // no room for two
  root.dataset.view = isSideBySide(lines) ? "unified" : "side";
  keep("view", root.dataset.view);
  nameViews();
}

// Folded lines are in the page once, for the right column; the left gets a copy
function fillLeft(details) {
  const hunk = $(".hunk", details);
  if ($(".l", hunk)) return;
  const shift = Number(details.dataset.shift);
  const copies = $$(".r", hunk).map((line) => {
    const copy = line.cloneNode(true);
    copy.className = "l";
    copy.dataset.n = Number(line.dataset.n) - shift;
    return copy;
  });
  hunk.prepend(...copies);
}

function unfold(diff) {
  const folds = $$("details", diff);
  const open = folds.some((details) => !details.open);
  for (const details of folds) {
    fillLeft(details);
    details.open = open;
  }
  $("[data-do=unfold]", diff).textContent = open ? "Fold again" : "Unfold all";
}

// A selection stays in the column where it began. In the unified view there are two
// texts, too: one that begins in a removed line takes the old one, others the new one.
function columnOf(line) {
  const old = line.matches(".a, .l");
  if (isSideBySide(line.closest(".lines"))) return old ? "left" : "right";
  return old ? "old" : "new";
}

function pick(event) {
  const line = event.target.closest?.(".lines p");
  if (!line) return;
  const lines = line.closest(".lines");
  const column = columnOf(line);
  // Else the browser takes this for the start of dragging what is selected
  if (lines.dataset.pick !== column) getSelection().removeAllRanges();
  lines.dataset.pick = column;
}

const PICKED = { left: ".a, .l", right: ".b, .r", old: ".a, .r", new: ".b, .r" };

function selectedPart(line, range) {
  const part = document.createRange();
  part.selectNodeContents(line);
  if (line.contains(range.startContainer)) {
    part.setStart(range.startContainer, range.startOffset);
  }
  if (line.contains(range.endContainer)) {
    part.setEnd(range.endContainer, range.endOffset);
  }
  return part.toString();
}

function copyColumn(event) {
  const selection = getSelection();
  const start = selection.anchorNode;
  const first = (start?.closest ? start : start?.parentElement)?.closest(".lines p");
  if (!first || selection.isCollapsed) return;
  const column = columnOf(first);
  const range = selection.getRangeAt(0);
  const parts = $$("p", first.closest(".lines"))
    .filter((line) => line.matches(PICKED[column]))
    .filter((line) => line.checkVisibility() && range.intersectsNode(line))
    .map((line) => selectedPart(line, range));
  event.clipboardData.setData("text/plain", parts.join("\n"));
  event.preventDefault();
}

function startDiffs() {
  const view = recall("view", "");
  if (view) root.dataset.view = view;
  for (const diff of $$(".diff")) {
    const [toggle, all] = $$(".tools button", diff);
    toggle.hidden = all.hidden = false;
    toggle.onclick = toggleView;
    all.onclick = () => unfold(diff);
    for (const details of $$("details", diff)) {
      details.addEventListener("toggle", () => fillLeft(details));
    }
  }
  nameViews();
  addEventListener("resize", nameViews);
  document.addEventListener("mousedown", pick);
  document.addEventListener("copy", copyColumn);
}

// --------------------------------------------------------------------------- Copying
function copyButton(text) {
  const button = make("button", { type: "button", className: "copy" }, "Copy");
  button.setAttribute("aria-label", "Copy the command");
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  };
  return button;
}

function startCopying() {
  for (const code of $$("pre > .language-sh")) {
    const commands = code.textContent.replace(/\s+#.*$/gm, "").trim();
    code.prepend(copyButton(commands));
  }
  for (const code of $$("p > code.command")) {
    const button = copyButton(code.textContent);
    if (code.parentElement.matches(".run")) code.prepend(button);
    else code.after(button);
  }
}

// What scrolls sideways can have the focus, so that keys scroll it
function markScrollers() {
  for (const box of $$("pre, .scroll")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

// -------------------------------------------------------------------------- Glossary
function startTips() {
  const tip = make("div", { id: "tip", hidden: true });
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  let shown = null;
  const hide = () => {
    tip.hidden = true;
    shown = null;
  };
  function show(event) {
    const link = event.currentTarget;
    tip.textContent = link.dataset.tip;
    tip.hidden = false;
    shown = link;
    const box = link.getBoundingClientRect();
    const widest = root.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${scrollX + Math.max(8, Math.min(box.left, widest))}px`;
    let top = box.bottom + 6;
    if (top + tip.offsetHeight > innerHeight) top = box.top - tip.offsetHeight - 6;
    tip.style.top = `${scrollY + top}px`;
  }
  for (const link of $$("a.term")) {
    link.setAttribute("aria-describedby", "tip");
    for (const name of ["mouseenter", "focus"]) link.addEventListener(name, show);
    for (const name of ["mouseleave", "blur"]) link.addEventListener(name, hide);
    // A finger cannot hover: its first tap shows the sentence, the second leads there
    let first = false;
    link.addEventListener("pointerdown", (event) => {
      first = event.pointerType === "touch" && shown !== link;
    });
    link.addEventListener("click", (event) => {
      if (!first) return;
      first = false;
      event.preventDefault();
      show(event);
    });
  }
  addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("pointerdown", (event) => {
    if (shown && !shown.contains(event.target)) hide();
  });
}

// ---------------------------------------------------------------------------- Search
function dialog(id, title, ...content) {
  const close = make("button", { type: "button" }, "Close");
  const head = make("div", { className: "title" }, make("h2", {}, title), close);
  const box = make("dialog", { id }, head, ...content);
  box.setAttribute("aria-label", title);
  close.onclick = () => box.close();
  box.onclick = (event) => {
    if (event.target === box) box.close();  // what is beside it belongs to it
  };
  document.body.append(box);
  return box;
}

function score(entry, words) {
  const title = entry.title.toLowerCase();
  const text = entry.text.toLowerCase();
  let points = 0;
  for (const word of words) {
    if (title === word) points += 20;
    else if (title.includes(word)) points += 8;
    else if (text.includes(word)) points += 1;
    else return 0;
  }
  return points + (entry.where === "Glossary" ? 2 : 0);
}

// The text around a word, from and to the edge of a word
function excerpt(text, word) {
  const at = text.toLowerCase().indexOf(word);
  const from = at > 60 ? text.indexOf(" ", at - 60) + 1 : 0;
  const to = text.length > from + 150 ? text.lastIndexOf(" ", from + 150) : text.length;
  const dots = [from ? "… " : "", to < text.length ? " …" : ""];
  if (at < 0) return [text.slice(0, to), dots[1]];
  const end = at + word.length;
  const found = make("mark", {}, text.slice(at, end));
  return [dots[0], text.slice(from, at), found, text.slice(end, to), dots[1]];
}

function find(query, results) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const hits = [];
  for (const entry of words.length ? course_index : []) {
    const points = score(entry, words);
    if (points) hits.push([points, entry]);
  }
  hits.sort((a, b) => b[0] - a[0]);
  results.replaceChildren();
  for (const [, entry] of hits.slice(0, 20)) {
    const link = make("a", { href: entry.page }, entry.title);
    link.onclick = () => results.closest("dialog").close();  // it may be on this page
    const where = make("small", {}, ` ${entry.where}`);
    const text = make("div", {}, ...excerpt(entry.text, words[0]));
    results.append(make("li", {}, link, where, text));
  }
  if (words.length && !hits.length) results.append(make("li", {}, "Nothing found."));
}

let openSearch = () => {};

function startSearch() {
  const input = make("input", { type: "text" });
  input.setAttribute("aria-label", "Search the course");
  const results = make("ul", { id: "results" });
  results.setAttribute("aria-live", "polite");
  const box = dialog("search", "Search the course", input, results);
  input.oninput = () => window.course_index && find(input.value, results);
  input.onkeydown = (event) => {
    if (event.key === "Enter") $("a", results)?.click();
  };
  openSearch = () => {
    if (!window.course_index && !$("script[src='search.js']")) {
      const script = make("script", { src: "search.js" });
      script.onload = () => find(input.value, results);
      document.head.append(script);
    }
    box.showModal();
    input.focus();
  };
  const button = make("button", { type: "button" }, "Search");
  button.onclick = openSearch;
  $("header [rel=contents]").after(button);
}

// ------------------------------------------------------------------------------ Keys
const KEYS = [
  ["→ n", "next page"],
  ["← p", "previous page"],
  ["c", "contents"],
  ["v", "side by side or unified"],
  ["u", "unfold the diff"],
  ["/", "search"],
  ["?", "this list"],
];

function startKeys() {
  const list = make("dl");
  for (const [keys, what] of KEYS) {
    const caps = keys.split(" ").flatMap((key) => [make("kbd", {}, key), " "]);
    list.append(make("dt", {}, ...caps), make("dd", {}, what));
  }
  const help = dialog("keys", "Keys", list);
  const button = make("button", { type: "button", className: "keys" }, "?");
  button.setAttribute("aria-label", "List of keys");
  button.onclick = () => help.showModal();
  $("header button").after(button);
  const go = (rel) => $(`header a[rel=${rel}]`)?.click();
  const actions = {
    ArrowRight: () => go("next"),
    n: () => go("next"),
    ArrowLeft: () => go("prev"),
    p: () => go("prev"),
    c: () => go("contents"),
    v: toggleView,
    u: () => $(".diff") && unfold($(".diff")),
    "/": () => openSearch(),
    "?": () => help.showModal(),
  };
  addEventListener("keydown", (event) => {
    const action = actions[event.key];
    if (!action || event.defaultPrevented || event.repeat) return;
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    // Where / and ? stand depends on the keyboard: they may need Shift
    if (event.shiftKey && event.key !== "?" && event.key !== "/") return;
    if ($("dialog[open]")) return;
    const focused = document.activeElement;
    if (focused.matches("input, textarea, select, [contenteditable]")) return;
    const scrolls = focused.scrollWidth > focused.clientWidth;
    if (event.key.startsWith("Arrow") && focused !== document.body && scrolls) return;
    event.preventDefault();
    action();
  });
}

// -------------------------------------------------------------------------- Progress
function startProgress() {
  const seen = recall("seen", []);
  const page = document.body.dataset.page;
  const note = $("#progress");
  const here = $(".dots [aria-current]");
  if (here) {
    const row = here.closest("nav");
    row.scrollLeft = here.offsetLeft - row.offsetLeft - row.clientWidth / 2;
  }
  for (const link of $$(".dots a, .steps a")) {
    if (seen.includes(link.getAttribute("href"))) link.classList.add("seen");
  }
  if (!note) {
    // A page counts as read once its end was on the screen
    new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting) && !seen.includes(page)) {
        seen.push(page);
        keep("seen", seen);
      }
    }).observe($("footer"));
    return;
  }
  const links = $$("[data-step]");
  const names = links.map((link) => link.getAttribute("href"));
  const read = names.filter((name) => seen.includes(name)).length;
  if (!read) return;
  for (const fold of $$(".chapter")) {
    const steps = $$("[data-step]", fold);
    const done = $$("[data-step].seen", fold).length;
    if (done) $(".count", fold).textContent = `${done} of ${steps.length} read`;
  }
  note.hidden = false;
  const next = links[names.findLastIndex((name) => seen.includes(name)) + 1];
  note.append(`You have read ${read} of ${links.length} steps. `);
  if (next) {
    note.append("Continue with ", make("a", { href: next.href }, next.textContent), ".");
    next.closest("details").open = true;
  }
}

startDiffs();
startCopying();
markScrollers();
addEventListener("resize", markScrollers);
startTips();
startSearch();
startKeys();
startProgress();
