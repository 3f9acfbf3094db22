// The little script of the console. Every page is whole without it.
"use strict";

const state = document.getElementById("live-state");

// Put new HTML of the server into a part of the page; what had the focus keeps it.
function show(part, html) {
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const key = focused && (focused.id ? `#${CSS.escape(focused.id)}` : focused.hasAttribute("href") ? `[href="${CSS.escape(focused.getAttribute("href"))}"]` : null);
  const scrolled = [...part.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
  part.innerHTML = html;
  part.querySelectorAll(".scroll").forEach((box, place) => { box.scrollLeft = scrolled[place] ?? 0; });
  if (key) part.querySelector(key)?.focus({ preventScroll: true });
}

// Keep the parts of a page that name a stream as they are now.
const streams = [...document.querySelectorAll("[data-live]")].map((part) => {
  const source = new EventSource(part.dataset.live);
  source.addEventListener("part", (message) => {
    show(part, message.data);
    state.textContent = "Live.";
  });
  source.addEventListener("failed", (message) => { state.textContent = `Not live: ${message.data}`; });
  source.addEventListener("error", () => { state.textContent = "Not live: the console does not answer."; });
  return source;
});

// The slider of a pool: the page as it was at the moment where it stands.
const form = document.getElementById("moment");
if (form) {
  const slider = document.getElementById("slider");
  const shown = document.getElementById("shown");
  const part = document.getElementById("then");
  const begin = Date.parse(form.dataset.begin);
  let wanted = null;
  let busy = false;
  slider.hidden = false;

  const moment = () => new Date(begin + 1000 * Number(slider.value)).toISOString();

  async function ask() {
    if (busy || wanted === null) return;
    busy = true;
    const at = wanted;
    wanted = null;
    const query = new URLSearchParams({ at, span: form.dataset.span, end: form.dataset.end });
    try {
      const answer = await fetch(`${form.dataset.part}?${query}`);
      if (answer.ok) {
        show(part, await answer.text());
        document.documentElement.dataset.at = at;
        history.replaceState(null, "", `?${query}`);
      } else {
        state.textContent = "This moment cannot be shown. Try another.";
      }
    } catch {
      state.textContent = "The console does not answer.";
    }
    busy = false;
    ask(); // where the slider has gone meanwhile
  }

  slider.addEventListener("input", () => {
    for (const source of streams) source.close();
    wanted = moment();
    const text = `${wanted.slice(0, 10)} ${wanted.slice(11, 19)} UTC`;
    shown.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    form.parentElement.classList.add("is-past");
    document.getElementById("go-live").removeAttribute("aria-current");
    state.textContent = "";
    ask();
  });
}

// What a bar or a mark says, where the pointer is.
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
document.addEventListener("pointermove", (event) => {
  const text = event.target.closest?.("[data-tip]")?.dataset.tip;
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const { offsetWidth: wide, offsetHeight: tall } = tip;
  const left = Math.min(event.clientX + 12, innerWidth - wide - 8);
  const below = event.clientY + 16 + tall < innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${below ? event.clientY + 16 : event.clientY - tall - 8}px`;
});

// Give a frame the height of what it shows, up to most of the window: then the page scrolls, not it.
for (const frame of document.querySelectorAll("iframe[data-fit]")) {
  const fit = () => {
    const shown = frame.contentDocument?.documentElement;
    if (shown) frame.style.height = `${Math.min(shown.scrollHeight + 2, Math.max(innerHeight - 32, 480))}px`;
  };
  frame.addEventListener("load", () => {
    fit();
    new ResizeObserver(fit).observe(frame.contentDocument.body);
  });
}

// "/" goes to the search box, as elsewhere.
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest?.("input, textarea, select, [contenteditable]")) return;
  event.preventDefault();
  document.getElementById("find")?.focus();
});
