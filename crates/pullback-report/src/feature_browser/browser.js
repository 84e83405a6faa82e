"use strict";
// The page's only script. All text comes from the data blocks and is set as text, never as markup.
(() => {
  const begun = performance.now();
  const byId = (id) => document.getElementById(id);
  const read = (id) => byId(id).textContent;
  const table = JSON.parse(read("table-data"));
  const tokens = JSON.parse(read("token-data"));
  const lines = read("detail-data").trim().split("\n");
  const total = table.feature.length;
  const place = new Map(table.feature.map((feature, at) => [feature, at]));
  const ROW = 34;

  // The passages' tokens, as places in the list of tokens: `width` bytes each, the lowest first.
  let text = null;
  const passageTokens = () => {
    if (text) return text;
    const bytes = atob(read("text-data").trim());
    const width = table.width;
    text = new Uint32Array(bytes.length / width);
    for (let i = 0, from = 0; i < text.length; i++, from += width) {
      let value = 0;
      for (let byte = width - 1; byte >= 0; byte--) value = value * 256 + bytes.charCodeAt(from + byte);
      text[i] = value;
    }
    return text;
  };
  const detail = (at) => {
    const [count, mean, histogram, examples, bands, raised, suppressed, near, together] = JSON.parse(lines[at]);
    const promoted = raised.flatMap((value, rank) => [table.promoted[at][rank], value]);
    return { count, mean, histogram, examples, bands, promoted, suppressed, near, together };
  };

  // Figures as a reader takes them in.
  const figure = (x, digits = 3) => {
    if (x === null || x === undefined || !Number.isFinite(x)) return "–";
    if (x === 0) return "0";
    const size = Math.abs(x);
    let out;
    if (size >= 1e6 || size < 1e-4) {
      out = size.toExponential(digits - 1).replace("e+", "e").replace("-", "\u2212");
    } else {
      const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
      out = size.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
    }
    return (x < 0 ? "\u2212" : "") + out;
  };
  const signed = (x) => (x > 0 ? "+" : "") + figure(x);
  const whole = (x) => x.toLocaleString("en");
  const percent = (x) => {
    const value = 100 * x;
    if (value === 0) return "0%";
    if (value < 0.001) return "<0.001%";
    return value.toFixed(value < 0.095 ? 3 : value < 9.95 ? 2 : 1) + "%";
  };

  const make = (tag, className, ...children) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children);
    return node;
  };
  const SVG = "http://www.w3.org/2000/svg";
  const draw = (tag, attributes, ...children) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };

  // Tokens with what cannot be seen made visible.
  const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Co}\p{Cn}]/u;
  const GLYPHS = { "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽" };
  const glyphs = (token, spaces) => {
    if (token === "") return [make("span", "ws", "(empty)")];
    const out = [];
    let plain = "";
    const flush = () => {
      if (plain) out.push(plain);
      plain = "";
    };
    for (const c of token) {
      let glyph = GLYPHS[c];
      if (c === " " && spaces) glyph = "␣";
      if (!glyph && c !== "\u200d" && UNSEEN.test(c)) glyph = "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      if (!glyph) {
        plain += c;
        continue;
      }
      flush();
      out.push(make("span", "ws", glyph));
      if (!spaces && (c === "\n" || c === "\t")) plain = " ";
    }
    flush();
    return out;
  };
  // Characters whose bytes are spread over tokens: how many texts from `at` on are whole characters together, and those.
  const BYTE = /(<0x[89A-F][0-9A-F]>)/;
  const BEGINS = /^<0x[89A-F][0-9A-F]>/;
  const ENDS = /<0x[89A-F][0-9A-F]>$/;
  const MOST_JOINED = 16;
  const encoder = new TextEncoder();
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const bytesOf = (text) => text.split(BYTE).flatMap((part, i) => (i % 2 ? [parseInt(part.slice(3, 5), 16)] : [...encoder.encode(part)]));
  const joined = (texts, at) => {
    let text = texts[at];
    for (let n = 1; n < MOST_JOINED && ENDS.test(text) && BEGINS.test(texts[at + n] || ""); n++) {
      text += texts[at + n];
      try {
        return [n + 1, decoder.decode(new Uint8Array(bytesOf(text)))];
      } catch {
        // The last character goes on in the next token, or these bytes are no text.
      }
    }
    return [1, texts[at]];
  };
  const chip = (id, kind, note) => {
    const node = make("span", "chip " + kind, make("bdi", "", ...glyphs(tokens[id], true)));
    if (note) node.title = note;
    return node;
  };

  // Which features are shown, in which order.
  const columns = { feature: table.feature, density: table.density, largest: table.largest, logit: table.logit, change: table.change };
  let sort = { key: table.change ? "change" : "density", down: true };
  let order = [];
  let selected = -1;

  // Peak tokens of any example, promoted tokens, or every token of the passages.
  let everywhere = null;
  const tokensEverywhere = () => {
    if (everywhere) return everywhere;
    const stream = passageTokens();
    everywhere = lines.map((_, at) => {
      const { examples, bands } = detail(at);
      const seen = new Set(table.promoted[at]);
      for (const [start, length] of examples.concat(...bands.map((band) => band[4]))) {
        for (let i = start; i < start + length; i++) seen.add(stream[i]);
      }
      return [...seen];
    });
    return everywhere;
  };
  const matching = (query, where) => {
    const number = /^#?(\d+)$/.exec(query.trim());
    const needle = query.trim().toLowerCase();
    if (!needle) return () => true;
    const hit = tokens.map((token) => token.toLowerCase().includes(needle));
    const byToken = (ids) => ids.some((id) => hit[id]);
    const parts = {
      both: (at) => byToken(table.peaks[at]) || byToken(table.promoted[at]),
      peaks: (at) => byToken(table.peaks[at]),
      promoted: (at) => byToken(table.promoted[at]),
      context: (at) => byToken(tokensEverywhere()[at]),
    };
    const inTokens = parts[where];
    return (at) => (number && table.feature[at] === Number(number[1])) || inTokens(at);
  };

  const search = byId("search");
  const where = byId("where");
  const dead = byId("dead");
  const count = byId("count");
  const view = byId("view");
  const spacer = byId("spacer");
  const card = byId("detail");
  const heads = [...document.querySelectorAll("[data-sort]")];

  const arrange = () => {
    const match = matching(search.value, where.value);
    order = [];
    for (let at = 0; at < total; at++) {
      if ((dead.checked || table.density[at] > 0) && match(at)) order.push(at);
    }
    const values = columns[sort.key];
    const size = sort.key === "change" ? Math.abs : (x) => x;
    const sign = sort.down ? -1 : 1;
    order.sort((a, b) => {
      const [x, y] = [values[a], values[b]];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return sign * (size(x) - size(y)) || a - b;
    });
    for (const head of heads) {
      const own = head.dataset.sort === sort.key;
      head.setAttribute("aria-sort", own ? (sort.down ? "descending" : "ascending") : "none");
    }
    count.textContent = `${whole(order.length)} of ${whole(table.dictionary)} features`;
    spacer.style.height = order.length * ROW + "px";
    view.setAttribute("aria-rowcount", order.length + 1);
    byId("none").hidden = order.length > 0;
    view.scrollTop = 0;
    paint();
  };

  // Only the rows in sight exist.
  const pool = [];
  const newRow = () => {
    const row = make("div", "row");
    row.setAttribute("role", "row");
    const cells = ["feature", "density", "largest", "logit", "change", "words"]
      .filter((name) => name === "words" || columns[name])
      .map((name) => {
        const cell = make("span", "cell " + name);
        cell.setAttribute("role", "gridcell");
        return cell;
      });
    row.append(...cells);
    row.addEventListener("click", () => select(row.at, false));
    spacer.append(row);
    return { row, cells, at: -1 };
  };
  const fillRow = (entry, index) => {
    const at = order[index];
    entry.row.at = at;
    entry.row.style.transform = `translateY(${index * ROW}px)`;
    entry.row.setAttribute("aria-rowindex", index + 2);
    entry.row.setAttribute("aria-selected", at === selected);
    if (entry.at === at) return;
    entry.at = at;
    let cell = 0;
    entry.cells[cell++].textContent = table.feature[at];
    entry.cells[cell++].textContent = percent(table.density[at]);
    entry.cells[cell++].textContent = table.density[at] > 0 ? figure(table.largest[at]) : "–";
    if (columns.logit) entry.cells[cell++].textContent = figure(table.logit[at]);
    if (columns.change) {
      const change = table.change[at];
      entry.cells[cell].className = "cell change " + (change > 0 ? "up" : change < 0 ? "down" : "");
      entry.cells[cell++].textContent = change === null ? "–" : signed(change);
    }
    const words = entry.cells[cell];
    words.replaceChildren(
      ...table.peaks[at].slice(0, 4).map((id) => chip(id, "plain", "fires on this token")),
      ...table.promoted[at].slice(0, 4).map((id) => chip(id, "up", "promotes this token")),
    );
  };
  const paint = () => {
    const first = Math.max(0, Math.floor(view.scrollTop / ROW) - 4);
    const last = Math.min(order.length, Math.ceil((view.scrollTop + view.clientHeight) / ROW) + 4);
    while (pool.length < last - first) pool.push(newRow());
    // A row keeps its index while it is in sight, so that scrolling rewrites only what comes into it.
    const free = [];
    const taken = new Set();
    for (const entry of pool) {
      if (entry.index >= first && entry.index < last) {
        taken.add(entry.index);
        fillRow(entry, entry.index);
      } else free.push(entry);
    }
    for (let index = first; index < last; index++) {
      if (taken.has(index)) continue;
      const entry = free.pop();
      entry.index = index;
      entry.row.hidden = false;
      fillRow(entry, index);
    }
    for (const entry of free) {
      entry.index = -1;
      entry.row.hidden = true;
    }
  };
  let waiting = false;
  view.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      paint();
    });
  });

  // One feature.
  const passage = (example, largest) => {
    const [start, length, peak, activation, marks] = example;
    const stream = passageTokens();
    const values = new Map();
    for (let i = 0; i < marks.length; i += 2) values.set(marks[i], (marks[i + 1] * largest) / 1000);
    values.set(peak, activation);
    const words = make("div", "text");
    words.dir = "auto";
    const texts = Array.from(stream.slice(start, start + length), (id) => tokens[id]);
    for (let i = 0; i < length; ) {
      const [count, text] = joined(texts, i);
      const shown = glyphs(text, false);
      const members = Array.from({ length: count }, (_, n) => values.get(i + n) || 0);
      const value = Math.max(...members);
      const isPeak = peak >= i && peak < i + count;
      i += count;
      if (!value) {
        words.append(...shown);
        continue;
      }
      const node = make(isPeak ? "mark" : "span", "hot", ...shown);
      node.style.backgroundColor = `rgb(var(--heat) / ${(0.12 + 0.68 * Math.min(1, value / largest)).toFixed(3)})`;
      node.title = count > 1 ? `${count} tokens: ${members.map((x) => figure(x)).join(", ")}` : figure(value);
      words.append(node);
    }
    const figureCell = make("div", "act num", figure(activation));
    figureCell.title = "activation on the marked token";
    return make("li", "", words, figureCell);
  };
  const passages = (examples, largest) => make("ul", "examples", ...examples.map((example) => passage(example, largest)));

  const histogram = (counts, largest) => {
    const [width, height, left, bottom, top] = [440, 150, 44, 34, 10];
    const most = Math.max(...counts);
    const inner = width - left - 8;
    const step = inner / counts.length;
    const y = (n) => top + (height - top - bottom) * (1 - n / most);
    const label = (x, at, anchor, words, kind) => {
      const node = draw("text", { x, y: at, "text-anchor": anchor, class: kind });
      node.textContent = words;
      return node;
    };
    const bars = draw("g", { class: "bars" });
    counts.forEach((n, i) => {
      if (!n) return;
      const title = draw("title", {});
      title.textContent = `${whole(n)} between ${figure((largest * i) / counts.length)} and ${figure((largest * (i + 1)) / counts.length)}`;
      bars.append(
        draw("rect", { x: left + i * step, y: Math.min(y(n), height - bottom - 1), width: Math.max(0.8, step - 0.8), height: Math.max(1, height - bottom - y(n)) }, title),
      );
    });
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `histogram of ${counts.length} bins from 0 to ${figure(largest)}, at most ${whole(most)} tokens in one` });
    svg.append(
      draw("g", { class: "axis" }, draw("line", { x1: left, x2: width - 8, y1: height - bottom, y2: height - bottom })),
      bars,
      label(left - 6, y(most) + 5, "end", whole(most), "figure"),
      label(left - 6, height - bottom + 4, "end", "0", "figure"),
      label(left, height - bottom + 15, "middle", "0", "figure"),
      label(left + inner / 2, height - bottom + 15, "middle", figure(largest / 2), "figure"),
      label(left + inner, height - bottom + 15, "end", figure(largest), "figure"),
      label(left + inner / 2, height - 3, "middle", "activation; upwards: tokens", "axis-name"),
    );
    return svg;
  };

  const tokenRow = (name, kind, sign, list) => {
    const chips = make("ul", "chips");
    for (let i = 0; i < list.length; i += 2) {
      const item = make("li", "chip " + kind, sign + " ", make("bdi", "", ...glyphs(tokens[list[i]], true)), make("span", "value", signed(list[i + 1])));
      chips.append(item);
    }
    return make("div", "tokens-row", make("div", "name", name), chips);
  };
  const others = (list, step, write) => {
    const out = make("ul", "others");
    for (let i = 0; i < list.length; i += step) {
      const feature = list[i];
      const at = place.get(feature);
      const [value, note] = write(list, i);
      const name = make(at === undefined ? "span" : "a", "name", `#${feature}`);
      if (at !== undefined) name.href = `#f${feature}`;
      const bar = make("span", "bar");
      bar.style.width = `${Math.max(0, Math.min(1, list[i + 1])) * 100}%`;
      const words = make("span", "words");
      if (at !== undefined) {
        words.append(...table.peaks[at].slice(0, 3).map((id) => chip(id, "plain")), ...table.promoted[at].slice(0, 2).map((id) => chip(id, "up")));
      }
      const row = make("li", "", name, make("span", "num", value), make("span", "track", bar), words);
      if (note) row.title = note;
      out.append(row);
    }
    return out;
  };
  const part = (heading, note, ...children) => {
    const head = make("h3", "", heading);
    if (note) head.append(make("span", "gloss", note));
    return make("div", "part", head, ...children);
  };

  const show = (at) => {
    const { count: active, mean, histogram: counts, examples, bands, promoted, suppressed, near, together } = detail(at);
    const feature = table.feature[at];
    const largest = table.largest[at];
    const facts = make("div", "card-facts");
    const fact = (name, value) => facts.append(make("span", "", name + " ", make("span", "num", value)));
    fact("active on", `${percent(table.density[at])} of tokens (${whole(active)})`);
    if (active) {
      fact("largest", figure(largest));
      fact("mean when active", figure(mean));
    }
    const head = make("div", "card-head", make("h2", "", `Feature ${feature}`));
    if (columns.change && table.change[at] !== null) {
      const change = table.change[at];
      head.append(make("span", "change num " + (change > 0 ? "up" : change < 0 ? "down" : ""), `${change > 0 ? "▲" : change < 0 ? "▼" : "■"} ${signed(change)}`));
    }
    const parts = [head, facts];
    if (promoted.length) parts.push(tokenRow("Promotes", "up", "+", promoted));
    if (suppressed.length) parts.push(tokenRow("Suppresses", "down", "\u2212", suppressed));
    if (active) {
      parts.push(part("Activations", "of the tokens on which it is active", histogram(counts, largest)));
      parts.push(part("Strongest", "at most one a sequence", passages(examples, largest)));
      const shown = bands.filter((band) => band[4].length).reverse();
      if (shown.length) {
        const body = shown.map(([from, to, low, high, chosen]) =>
          make("div", "band", make("div", "band-name", make("span", "", `${Math.round(100 * from)}–${Math.round(100 * to)} %`), make("span", "num", `${figure(low)} to ${figure(high)}`)), passages(chosen, largest)),
        );
        parts.push(part("From quantiles", "drawn from each fifth of its active tokens", ...body));
      }
    } else parts.push(make("p", "nothing", "never active on this text"));
    if (near.length) parts.push(part("Nearest decoder rows", "by cosine", others(near, 2, (list, i) => [figure(list[i + 1], 2)])));
    if (together.length) {
      parts.push(part("Active together", "by Jaccard index", others(together, 3, (list, i) => [figure(list[i + 1], 2), `both active on ${whole(list[i + 2])} tokens`])));
    }
    card.replaceChildren(...parts);
    card.scrollTop = 0;
  };

  const reveal = (at) => {
    const index = order.indexOf(at);
    if (index < 0) return;
    const top = index * ROW;
    if (top < view.scrollTop) view.scrollTop = top;
    else if (top + ROW > view.scrollTop + view.clientHeight) view.scrollTop = top + ROW - view.clientHeight;
  };
  const select = (at, scroll) => {
    if (at < 0 || at >= total) return;
    selected = at;
    show(at);
    if (scroll) reveal(at);
    paint();
    const hash = `#f${table.feature[at]}`;
    if (location.hash !== hash) history.replaceState(null, "", hash);
    if (!scroll && matchMedia("(max-width: 1000px)").matches) card.scrollIntoView({ block: "start" });
  };
  const follow = () => {
    const found = /^#f(\d+)$/.exec(location.hash);
    const at = found ? place.get(Number(found[1])) : undefined;
    if (at !== undefined) select(at, true);
    return at !== undefined;
  };

  view.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(view.clientHeight / ROW) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -total, End: total };
    const move = moves[event.key];
    if (move === undefined || !order.length) return;
    event.preventDefault();
    const index = order.indexOf(selected);
    select(order[Math.max(0, Math.min(order.length - 1, (index < 0 ? -1 : index) + move))], true);
  });
  for (const head of heads) {
    head.addEventListener("click", () => {
      const key = head.dataset.sort;
      sort = { key, down: sort.key === key ? !sort.down : key !== "feature" };
      arrange();
    });
  }
  let timer = 0;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(arrange, 120);
  });
  where.addEventListener("change", arrange);
  dead.addEventListener("change", arrange);
  window.addEventListener("hashchange", follow);
  window.addEventListener("resize", paint);

  arrange();
  if (!follow() && order.length) select(order[0], true);
  // For whoever measures the page.
  document.documentElement.dataset.readyAfter = (performance.now() - begun).toFixed(1);
})();
