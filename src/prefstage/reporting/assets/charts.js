"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const tip = document.getElementById("tip");
  const refuse = () => Promise.reject(new Error("this page loads nothing"));
  const loader = { load: refuse, sanitize: refuse, http: refuse, file: refuse };

  const shown = (value) => {
    if (typeof value !== "number") return value === null || value === undefined ? "–" : String(value);
    return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
  };

  const tell = (handler, event, item, value) => {
    if (value === null || value === undefined || value === "") {
      tip.hidden = true;
      return;
    }
    tip.replaceChildren();
    for (const [name, each] of Object.entries(typeof value === "object" ? value : { "": value })) {
      const line = document.createElement("div");
      for (const text of [name, shown(each)]) {
        const part = document.createElement("span");
        part.textContent = text;
        line.append(part);
      }
      tip.append(line);
    }
    tip.hidden = false;
    const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
    const top = Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 8);
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  };

  const views = [];
  const PAPER = 640; // pixels that a chart is wide on paper
  const sized = (width) => {
    for (const [view, place] of views) view.width(width || place.clientWidth).run();
  };
  window.addEventListener("beforeprint", () => sized(PAPER));
  window.addEventListener("afterprint", () => sized(0));

  const draw = async () => {
    for (const place of document.querySelectorAll("[data-chart]")) {
      place.replaceChildren();
      const { view } = await window.vegaEmbed(place, specs[place.dataset.chart], {
        mode: "vega", renderer: "svg", actions: false, ast: true, tooltip: tell, loader, defaultStyle: false,
      });
      views.push([view, place]);
      await new Promise((resolve) => setTimeout(resolve));
    }
    document.documentElement.dataset.charts = "drawn";
  };
  draw();
})();
