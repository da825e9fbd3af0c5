// The live page: asks for its inside again and again.
// Takes: the address, with ?run=ID and ?axis=NAME. Gives: the newest table, charts and words.

const EVERY = 2000;
const main = document.querySelector("main");
const state = document.querySelector("#state");
let known = "";

async function refresh() {
  try {
    const answer = await fetch(`inside${location.search}`, { cache: "no-cache" });
    if (!answer.ok) throw new Error(answer.statusText);
    const text = await answer.text();
    if (text !== known && !isBeingRead()) show(text);
    state.textContent = `Live, as of ${new Date().toLocaleTimeString()}`;
  } catch {
    state.textContent = "The server does not answer; this is what it said last";
  }
}

// Whoever marks words is about to copy them: they stay until the marking is gone.
function isBeingRead() {
  const marked = getSelection();
  return !marked.isCollapsed && main.contains(marked.anchorNode);
}

function show(text) {
  const open = [...main.querySelectorAll("details[open]")].map((each) => each.id);
  const focus = document.activeElement;
  const held = focus.name && `[name="${focus.name}"][value="${CSS.escape(focus.value)}"]`;
  const across = main.querySelector(".scroll")?.scrollLeft ?? 0;
  main.innerHTML = known = text;
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  if (held) main.querySelector(held)?.focus();
  const table = main.querySelector(".scroll");
  if (table) table.scrollLeft = across;
}

main.addEventListener("change", (event) => {
  const asked = new URLSearchParams(new FormData(event.target.form));
  history.replaceState(null, "", `?${asked}`);
  refresh();
});

async function goOn() {
  if (!document.hidden) await refresh();
  setTimeout(goOn, EVERY);
}

document.addEventListener("visibilitychange", () => document.hidden || refresh());
goOn();
