// Details on pointing, a cursor with the time, magnification, highlighting, and a filter for the list.
// The picture itself is drawn without this script: it only shows more of what stands in the page.
(() => {
  "use strict";
  const root = document.documentElement;
  const chart = document.querySelector(".chart");
  const tip = document.getElementById("tip");
  const lasting = [...document.querySelectorAll(".when time")].map((time) => Date.parse(time.dateTime));
  const [start, end] = lasting;
  const farthest = 64;
  const make = (name, text) => Object.assign(document.createElement(name), { textContent: text });
  const clamp = (value, least, most) => Math.min(most, Math.max(least, value));

  // Details

  let kept = false;

  function show(mark, x, y) {
    const [heading, ...facts] = mark.dataset.tip.split("\n");
    const list = document.createElement("dl");
    for (const fact of facts) {
      const at = fact.indexOf(": ");
      list.append(make("dt", fact.slice(0, at)), make("dd", fact.slice(at + 2)));
    }
    tip.replaceChildren(make("strong", heading), list);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 16 + box.width > innerWidth ? x - 16 - box.width : x + 16;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${clamp(y + 16, 4, Math.max(4, innerHeight - box.height - 4))}px`;
  }

  function hide() {
    kept = false;
    tip.hidden = true;
    tip.classList.remove("kept");
  }

  document.addEventListener("pointermove", (event) => {
    const mark = event.target.closest?.("[data-tip]");
    if (!kept) mark ? show(mark, event.clientX, event.clientY) : hide();
  });
  document.addEventListener("click", (event) => {
    if (dragged || event.target.closest?.("#tip")) return;
    const mark = event.target.closest?.("[data-tip]");
    hide();
    if (mark) {
      show(mark, event.clientX, event.clientY);
      tip.classList.add("kept");
      kept = true;
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });

  // A line that has the focus is read with the arrow keys.
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const marks = [...(event.target.closest?.("svg[tabindex]")?.querySelectorAll("[data-tip]") ?? [])];
    if (!step || !marks.length) return;
    event.preventDefault();
    const svg = event.target;
    svg.reading = clamp((svg.reading ?? (step > 0 ? -1 : marks.length)) + step, 0, marks.length - 1);
    const box = marks[svg.reading].getBoundingClientRect();
    show(marks[svg.reading], clamp(box.left, 0, innerWidth), box.bottom);
  });

  // Time

  let zoom = 1;
  let from = 0;

  function look(newZoom, newFrom) {
    zoom = clamp(newZoom, 1, farthest);
    from = clamp(newFrom, 0, 1 - 1 / zoom);
    root.style.setProperty("--zoom", zoom);
    root.style.setProperty("--from", from);
    const levels = [...document.querySelectorAll(".axis .level")].map((level) => +level.dataset.zoom);
    const level = Math.max(...levels.filter((known) => known <= zoom));
    for (const group of document.querySelectorAll(".level")) {
      group.classList.toggle("on", +group.dataset.zoom === level);
    }
  }

  const moves = {
    closer: () => look(zoom * 2, from + 0.25 / zoom),
    farther: () => look(zoom / 2, from - 0.5 / zoom),
    earlier: () => look(zoom, from - 0.5 / zoom),
    later: () => look(zoom, from + 0.5 / zoom),
    all: () => look(1, 0),
  };
  for (const button of document.querySelectorAll("[data-zoom]")) {
    if (button.dataset.zoom in moves) button.addEventListener("click", moves[button.dataset.zoom]);
  }

  const across = chart.querySelector(".axis .track");
  const share = (event) => {
    const box = across.getBoundingClientRect();
    return clamp((event.clientX - box.left) / box.width, 0, 1);
  };
  const place = (element, left, right) => {
    const offset = across.getBoundingClientRect().left - chart.getBoundingClientRect().left - 1;
    element.style.left = `${offset + left * across.clientWidth}px`;
    if (right !== undefined) element.style.width = `${(right - left) * across.clientWidth}px`;
  };
  // The scale is even between pins, which are seconds and places; a fold is between two of them.
  const pins = JSON.parse(chart.dataset.pins);
  const secondsAt = (where) => {
    const next = Math.max(1, pins.findIndex(([, pin]) => pin >= where));
    const [[a, low], [b, high]] = [pins[next - 1], pins[next]];
    return a + ((where - low) / (high - low)) * (b - a);
  };
  const moment = (at) => {
    const iso = new Date(start + 1000 * secondsAt(from + at / zoom)).toISOString();
    return iso.slice(11, (end - start) / zoom < 120000 ? 23 : 19);
  };

  const cursor = make("div", "");
  cursor.className = "cursor";
  const brush = make("div", "");
  brush.className = "brush";
  cursor.hidden = brush.hidden = true;
  chart.append(cursor, brush);

  let pressed = null;
  let dragged = false;
  chart.addEventListener("pointerdown", (event) => {
    dragged = false;
    if (event.button === 0 && event.target.closest(".track")) pressed = share(event);
  });
  chart.addEventListener("pointermove", (event) => {
    cursor.hidden = !event.target.closest(".track");
    cursor.dataset.at = moment(share(event));
    place(cursor, share(event));
    if (pressed === null) return;
    const ends = [pressed, share(event)].sort((a, b) => a - b);
    dragged ||= (ends[1] - ends[0]) * across.clientWidth > 4;
    brush.hidden = !dragged;
    place(brush, ...ends);
  });
  chart.addEventListener("pointerleave", () => { cursor.hidden = true; });
  document.addEventListener("pointerup", (event) => {
    if (pressed !== null && dragged) {
      const [left, right] = [pressed, share(event)].sort((a, b) => a - b);
      look(zoom / (right - left), from + left / zoom);
    }
    pressed = null;
    brush.hidden = true;
  });
  chart.addEventListener("dragstart", (event) => event.preventDefault());
  chart.addEventListener("dblclick", (event) => {
    if (event.target.closest(".track")) moves.all();
  });

  // Colours

  const choices = document.querySelectorAll("[data-set-colour]");
  for (const button of choices) {
    button.addEventListener("click", () => {
      root.dataset.colour = button.dataset.setColour;
      for (const other of choices) other.setAttribute("aria-pressed", other === button);
    });
  }
  const only = document.querySelectorAll("button[data-only]");
  for (const button of only) {
    button.addEventListener("click", () => {
      const pressed = button.getAttribute("aria-pressed") === "false";
      for (const other of only) other.setAttribute("aria-pressed", pressed && other === button);
      for (const bar of document.querySelectorAll(".lane .lease")) {
        bar.classList.toggle("dimmed", pressed && bar.dataset.consumer !== button.dataset.only);
      }
    });
  }

  // The list

  document.getElementById("find").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const row of document.querySelectorAll("tbody tr")) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
    }
  });
})();
