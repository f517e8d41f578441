"use strict";
(() => {
  const ROW = 32;
  const SPARE = 8;
  const FIRST = 20000; // characters of a text shown at once; a button shows the rest
  const PRINTED = 10; // pairs on paper
  const ON_PAPER = 1000; // characters of a text there
  const NUMBERS = { gap: "score gap", ratio: "log-ratio c", disagreement: "disagreement", loss: "loss" };
  const GROUPS = {
    "correct->correct": "right, kept", "correct->incorrect": "right → wrong",
    "incorrect->correct": "wrong → right", "incorrect->incorrect": "wrong, kept",
  };
  const $ = (id) => document.getElementById(id);
  const rows = $("rows");
  const space = $("space");
  const state = { found: new Uint32Array(0), at: 0, selected: -1, sort: "place", down: false, query: "" };
  const texts = [];
  const blocks = []; // lower case: {from, offsets, text}
  let data = null;
  let order = null;
  let has = {};
  let shownColumns = [];
  let loaded = false;

  const unpack = async (text) => {
    const bytes = Uint8Array.fromBase64
      ? Uint8Array.fromBase64(text.trim())
      : Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };
  const make = (tag, name, text) => {
    const found = document.createElement(tag);
    if (name) found.className = name;
    if (text !== undefined) found.textContent = text;
    return found;
  };
  const number = (value) =>
    Number.isNaN(value) ? "–" : Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
  const name = (column, place) => {
    const at = data.columns[column][place];
    return at < 0 ? "" : data.names[at];
  };
  const told = (column, place) => {
    const found = name(column, place);
    return column === "group" ? GROUPS[found] || found : found;
  };

  const prepare = (table) => {
    data = table;
    for (const column of Object.keys(NUMBERS)) {
      const given = table.columns[column];
      const typed = new Float64Array(given.length);
      for (let i = 0; i < given.length; i += 1) typed[i] = given[i] === null ? NaN : given[i];
      table.columns[column] = typed;
      has[column] = typed.some((each) => !Number.isNaN(each));
    }
    for (const column of ["run", "part", "group", "source_chosen", "source_rejected"]) {
      table.columns[column] = Int32Array.from(table.columns[column]);
    }
    for (const column of ["prompt", "chosen", "rejected"]) {
      table.columns[column] = Uint32Array.from(table.columns[column]);
    }
    const several = (...columns) => {
      const found = new Set();
      for (const column of columns) for (const each of table.columns[column]) if (each >= 0) found.add(each);
      return [...found];
    };
    const options = {
      run: several("run"), part: several("part"), group: several("group"),
      source: several("source_chosen", "source_rejected"),
    };
    for (const [id, values] of Object.entries(options)) {
      has[id] = values.length > (id === "group" ? 0 : 1);
      const select = $(id);
      select.append(new Option("all", "-1"));
      for (const each of values) {
        const text = table.names[each];
        select.append(new Option(id === "group" ? GROUPS[text] || text : text, String(each)));
      }
    }
    for (const label of document.querySelectorAll("#filters [data-of]")) label.hidden = !has[label.dataset.of];
    order = Uint32Array.from({ length: table.pairs }, (_, i) => i);
    shownColumns = ["gap", "ratio", "disagreement"].filter((each) => has[each]);
    if (has.group) shownColumns.push("group");
    if (has.source || several("source_chosen").length) shownColumns.push("source_chosen", "source_rejected");
    heads();
  };

  const heads = () => {
    const titles = { place: "#", prompt: "prompt", group: "flip group", source_chosen: "chosen by", source_rejected: "rejected by", ...NUMBERS };
    titles.source_chosen = "chosen's writer";
    titles.source_rejected = "rejected's writer";
    const widths = { place: "4.2rem", prompt: "minmax(0, 1fr)", group: "7.5rem", source_chosen: "8rem", source_rejected: "8rem" };
    const columns = ["place", "prompt", ...shownColumns];
    const list = document.querySelector(".list");
    list.style.setProperty("--columns", columns.map((each) => widths[each] || "6.2rem").join(" "));
    const main = shownColumns.find((each) => each in NUMBERS);
    list.style.setProperty("--narrow", `3rem minmax(0, 1fr)${main ? " 4.6rem" : ""}`);
    for (const column of columns) {
      const button = make("button", `${column in NUMBERS ? "number" : ""}${["place", "prompt", main].includes(column) ? "" : " extra"}`, titles[column]);
      button.type = "button";
      button.dataset.sort = column;
      button.addEventListener("click", () => {
        state.down = state.sort === column ? !state.down : column in NUMBERS;
        state.sort = column;
        state.selected = -1; // the list begins anew at its top
        sort();
        apply();
      });
      $("heads").append(button);
    }
    mark();
  };
  const mark = () => {
    for (const button of $("heads").children) {
      const on = button.dataset.sort === state.sort;
      button.setAttribute("aria-pressed", String(on));
      button.textContent = button.textContent.replace(/ [▲▼]$/, "") + (on ? (state.down ? " ▼" : " ▲") : "");
    }
  };

  const sort = () => {
    const { sort: by, down } = state;
    const sign = down ? -1 : 1;
    order.sort();
    if (by in NUMBERS) {
      const values = data.columns[by];
      order.sort((a, b) => {
        const x = values[a];
        const y = values[b];
        if (x === y) return a - b;
        if (Number.isNaN(x)) return Number.isNaN(y) ? a - b : 1; // unknown ones stand last
        return Number.isNaN(y) ? -1 : sign * (x - y);
      });
    } else if (by === "prompt") {
      const rank = ranks([...texts.keys()], (at) => texts[at]);
      const of = (at) => rank[data.columns.prompt[at]] ?? Infinity; // not unpacked yet: sorted again when all are
      order.sort((a, b) => (of(a) === of(b) ? a - b : sign * (of(a) - of(b))));
    } else if (by !== "place") {
      const rank = ranks([...data.names.keys()], (at) => data.names[at]);
      const values = data.columns[by];
      const of = (at) => (values[at] < 0 ? Infinity : rank[values[at]]);
      order.sort((a, b) => (of(a) === of(b) ? a - b : sign * (of(a) - of(b))));
    } else if (down) order.reverse();
    mark();
  };
  const ranks = (places, text) => {
    const found = new Uint32Array(places.length);
    places.sort((a, b) => (text(a) < text(b) ? -1 : text(a) > text(b) ? 1 : a - b));
    places.forEach((place, rank) => { found[place] = rank; });
    return found;
  };

  const between = (id) => {
    const low = $(`${id}-low`).valueAsNumber;
    const high = $(`${id}-high`).valueAsNumber;
    if (Number.isNaN(low) && Number.isNaN(high)) return null;
    return [data.columns[id], Number.isNaN(low) ? -Infinity : low, Number.isNaN(high) ? Infinity : high];
  };

  const matching = (query) => {
    if (!query) return null;
    const hits = new Uint8Array(texts.length);
    for (const { from, offsets, text } of blocks) {
      let place = 0;
      let at = text.indexOf(query);
      while (at >= 0) {
        while (offsets[place + 1] <= at) place += 1;
        hits[from + place] = 1;
        place += 1;
        at = place + 1 < offsets.length ? text.indexOf(query, offsets[place]) : -1;
      }
    }
    return hits;
  };

  const apply = () => {
    state.query = $("search").value.toLowerCase();
    const hits = matching(state.query);
    const ranges = ["gap", "ratio", "disagreement"].map(between).filter(Boolean);
    const chosen = ["run", "part", "group"].map((id) => [data.columns[id], Number($(id).value)]).filter(([, at]) => at >= 0);
    const source = Number($("source").value);
    const { prompt, chosen: good, rejected: bad, source_chosen: first, source_rejected: second } = data.columns;
    const found = new Uint32Array(order.length);
    let count = 0;
    for (let i = 0; i < order.length; i += 1) {
      const at = order[i];
      if (hits !== null && !(hits[prompt[at]] || hits[good[at]] || hits[bad[at]])) continue;
      if (source >= 0 && first[at] !== source && second[at] !== source) continue;
      let fits = true;
      for (let k = 0; k < chosen.length && fits; k += 1) fits = chosen[k][0][at] === chosen[k][1];
      for (let k = 0; k < ranges.length && fits; k += 1) {
        const value = ranges[k][0][at];
        fits = value >= ranges[k][1] && value <= ranges[k][2];
      }
      if (!fits) continue;
      found[count] = at;
      count += 1;
    }
    state.found = found.subarray(0, count);
    const still = state.selected >= 0 ? state.found.indexOf(state.selected) : -1;
    state.at = Math.max(still, 0);
    space.style.height = `${count * ROW}px`;
    rows.scrollTop = still >= 0 ? Math.max(0, (still - 3) * ROW) : 0;
    select(state.at, false);
    status();
  };
  const status = () => {
    const all = data.pairs.toLocaleString("en");
    const count = state.found.length.toLocaleString("en");
    const wait = loaded ? "" : ` Texts are still being unpacked (${Math.round((100 * texts.length) / data.texts)} %).`;
    $("found").textContent = (state.found.length === data.pairs ? `${all} pairs.` : `${count} of ${all} pairs.`) + wait;
  };

  const draw = () => {
    const from = Math.max(0, Math.floor(rows.scrollTop / ROW) - SPARE);
    const to = Math.min(state.found.length, Math.ceil((rows.scrollTop + rows.clientHeight) / ROW) + SPARE);
    const made = [];
    for (let place = from; place < to; place += 1) made.push(row(place));
    space.replaceChildren(...made);
    rows.setAttribute("aria-activedescendant", state.found.length ? `row-${state.at}` : "");
  };
  const row = (place) => {
    const at = state.found[place];
    const found = make("div", "row");
    found.id = `row-${place}`;
    found.setAttribute("role", "option");
    found.setAttribute("aria-posinset", String(place + 1));
    found.setAttribute("aria-setsize", String(state.found.length));
    found.setAttribute("aria-selected", String(place === state.at));
    found.style.top = `${place * ROW}px`;
    found.append(make("span", "", String(at + 1)));
    found.append(make("span", "", (texts[data.columns.prompt[at]] ?? "…").slice(0, 300)));
    const main = shownColumns.find((each) => each in NUMBERS);
    for (const column of shownColumns) {
      const extra = column === main ? "" : " extra";
      found.append(column in NUMBERS ? make("span", `number${extra}`, number(data.columns[column][at])) : make("span", extra, told(column, at)));
    }
    found.addEventListener("click", () => select(place, true));
    return found;
  };

  const select = (place, byHand) => {
    state.at = place;
    state.selected = state.found.length ? state.found[place] : -1;
    const top = place * ROW;
    if (byHand && top < rows.scrollTop) rows.scrollTop = top;
    if (byHand && top + ROW > rows.scrollTop + rows.clientHeight) rows.scrollTop = top + ROW - rows.clientHeight;
    draw();
    show();
  };

  // Characters that are not seen, or that turn the direction of what follows, are told by number.
  const HIDDEN = /\r(?!\n)|[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
  const plain = (into, text) => {
    let from = 0;
    for (const match of text.matchAll(HIDDEN)) {
      if (match.index > from) into.append(text.slice(from, match.index));
      const code = match[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
      into.append(make("span", "code", `U+${code}`));
      from = match.index + 1;
    }
    into.append(text.slice(from));
  };
  const marked = (into, text) => {
    const query = state.query;
    const low = query ? text.toLowerCase() : "";
    let from = 0;
    if (query && low.length === text.length) {
      for (let at = low.indexOf(query), count = 0; at >= 0 && count < 500; at = low.indexOf(query, at + query.length), count += 1) {
        plain(into, text.slice(from, at));
        const hit = make("mark");
        plain(hit, text.slice(at, at + query.length));
        into.append(hit);
        from = at + query.length;
      }
    }
    plain(into, text.slice(from));
  };
  const said = (text, limit = FIRST) => {
    const part = make("div");
    const box = make("div", "said");
    box.tabIndex = 0;
    box.dir = "auto";
    if (text === undefined) box.textContent = "…";
    else marked(box, text.slice(0, limit));
    part.append(box);
    if (text !== undefined && text.length > limit && limit < FIRST) {
      part.append(make("p", "found", `${(text.length - limit).toLocaleString("en")} more characters are not printed.`));
    } else if (text !== undefined && text.length > limit) {
      const button = make("button", "", `Show all ${text.length.toLocaleString("en")} characters (now ${FIRST.toLocaleString("en")})`);
      button.type = "button";
      button.addEventListener("click", () => {
        box.replaceChildren();
        marked(box, text);
        button.remove();
      });
      part.append(button);
    }
    return part;
  };
  const show = () => {
    $("pair").replaceChildren(...(state.selected < 0 ? [] : view(state.selected, FIRST)));
  };
  const view = (at, limit) => {
    const head = make("h3", "", `Pair ${(at + 1).toLocaleString("en")}`);
    head.append(make("span", "", [name("run", at), name("part", at)].join(" · ")));
    const facts = make("dl", "facts");
    const add = (what, value) => {
      const line = make("div");
      line.append(make("dt", "", what), make("dd", "", value));
      facts.append(line);
    };
    for (const [column, title] of Object.entries(NUMBERS)) {
      if (!Number.isNaN(data.columns[column][at])) add(title, number(data.columns[column][at]));
    }
    if (data.columns.group[at] >= 0) add("flip group", told("group", at));
    const sides = make("div", "sides");
    for (const side of ["chosen", "rejected"]) {
      const part = make("div", side);
      const title = make("h3", "", side);
      const writer = name(`source_${side}`, at);
      if (writer) title.append(make("span", "", writer));
      const text = texts[data.columns[side][at]];
      if (text !== undefined) title.append(make("span", "", `${text.length.toLocaleString("en")} characters`));
      part.append(title, said(text, limit));
      sides.append(part);
    }
    return [head, facts, said(texts[data.columns.prompt[at]], limit), sides];
  };

  const paper = () => {
    const shown = [...state.found.subarray(0, PRINTED)];
    const left = state.found.length - shown.length;
    const word = state.found.length === data.pairs ? "pairs" : "pairs that were searched for";
    const told = `${shown.length} of ${state.found.length.toLocaleString("en")} ${word} in the order of the list` +
      (left ? `; ${left.toLocaleString("en")} are not printed, the page itself holds them.` : ".");
    $("printed").replaceChildren(make("p", "found", told), ...shown.map((at) => {
      const pair = make("article", "pair printed-pair");
      pair.append(...view(at, ON_PAPER));
      return pair;
    }));
  };

  const keys = (event) => {
    const page = Math.floor(rows.clientHeight / ROW) - 1;
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (!(event.key in moves) || !state.found.length) return;
    event.preventDefault();
    select(Math.min(Math.max(state.at + moves[event.key], 0), state.found.length - 1), true);
  };

  const listen = () => {
    $("search").addEventListener("input", apply);
    $("filters").addEventListener("change", apply);
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("filters").addEventListener("reset", () => setTimeout(apply));
    rows.addEventListener("keydown", keys);
    rows.addEventListener("scroll", draw, { passive: true });
    window.addEventListener("resize", draw);
    window.addEventListener("beforeprint", paper);
    window.addEventListener("afterprint", () => $("printed").replaceChildren());
    document.addEventListener("keydown", (event) => {
      if (event.key !== "/" || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
      event.preventDefault();
      $("search").focus();
    });
  };

  const add = async (block) => {
    const part = await unpack(block.textContent);
    block.remove();
    const from = texts.length;
    const offsets = new Uint32Array(part.length + 1);
    const low = part.map((text, place) => {
      texts.push(text);
      const found = text.toLowerCase();
      offsets[place + 1] = offsets[place] + found.length + 1;
      return found;
    });
    blocks.push({ from, offsets, text: low.join("\n") });
    if (from > 0) {
      status();
      return;
    }
    apply();
    document.documentElement.dataset.explorer = "open";
  };

  const start = async () => {
    if (typeof DecompressionStream === "undefined") {
      $("found").textContent = "This browser is too old for the explorer: it cannot unpack gzip.";
      return;
    }
    prepare(await unpack($("pair-table").textContent));
    listen();
    const pause = () => new Promise((resolve) => setTimeout(resolve));
    for (;;) {
      const whole = document.readyState !== "loading";
      const block = document.querySelector(".pair-texts");
      // its text is whole once something stands behind it, or the page ends
      if (block && (whole || block.nextElementSibling)) await add(block);
      else if (whole) break;
      await pause();
    }
    loaded = true;
    const prompted = state.sort === "prompt";
    if (prompted) {
      if (state.at === 0) state.selected = -1; // nobody has moved: the list stays at its top
      sort();
    }
    if (prompted || state.query) apply();
    else {
      status();
      draw();
      show();
    }
    document.documentElement.dataset.explorer = "whole";
  };
  start();
})();
