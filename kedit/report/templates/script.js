"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const put = (above, tag, text, kind) => {
    const one = document.createElement(tag);
    if (kind) one.className = kind;
    if (text !== undefined) one.textContent = text;
    above.append(one);
    return one;
  };

  // Tables are sorted by a click on a head; the unedited model stays first.
  for (const table of document.querySelectorAll("main table")) {
    const body = table.tBodies[0];
    if (body.rows.length < 3) continue;
    [...table.tHead.rows[0].cells].forEach((head, at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort";
      button.append(...head.childNodes);
      head.append(button);
      button.onclick = () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => {
          const cell = row.cells[at];
          return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
        };
        const order = (a, b) => {
          const [x, y] = [value(a), value(b)];
          if (x === "" || y === "") return (x === "") - (y === "");
          const less = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
          return down ? -less : less;
        };
        const rows = [...body.rows];
        body.append(...rows.filter((row) => row.className === "base"), ...rows.filter((row) => row.className !== "base").sort(order));
      };
    });
  }

  if (!$("data")) return;
  const data = JSON.parse($("data").textContent);
  const text = (n) => data.strings[n];
  const PAGE = 5;
  let first = 0, chosen = new Set(), found = [];

  const marked = (above, said, words) => {
    const low = said.toLowerCase();
    const at = words && low.length === said.length ? low.indexOf(words) : -1;
    if (at < 0) return above.append(said);
    above.append(said.slice(0, at));
    put(above, "mark", said.slice(at, at + words.length));
    marked(above, said.slice(at + words.length), words);
  };

  const searched = (record) => {
    if (!record.words) {
      const [id, prompt, now, old, probes, arms] = record;
      const all = new Set([prompt, now, old]);
      for (const probe of probes) [probe[1], probe[2], probe[3]].forEach((n) => all.add(n));
      for (const arm of arms) for (const cell of arm[2]) if (cell) { all.add(cell[1]); if (cell.length > 4) all.add(cell[4]); }
      record.words = (id + "\n" + [...all].map(text).join("\n")).toLowerCase();
    }
    return record.words;
  };

  const fits = (record, words, kind, verdict) => {
    if (words && !searched(record).includes(words)) return false;
    const places = record[4].map((probe, n) => n).filter((n) => !kind || text(record[4][n][0]) === kind);
    if (!places.length) return false;
    if (!verdict) return true;
    const arms = record[5].filter((arm) => chosen.has(arm[0]));
    if (verdict === "not edited") return arms.some((arm) => arm[1]);
    return arms.some((arm) => places.some((n) => arm[2][n] && text(arm[2][n][0]) === verdict));
  };

  const percent = (x) => (x === null ? "" : x.toFixed(1) + " %");

  const show = () => {
    const words = $("text").value.trim().toLowerCase(), kind = $("kind").value, verdict = $("verdict").value;
    const table = data.tables[$("table").value];
    found = table.records.filter((record) => fits(record, words, kind, verdict));
    first = Math.min(first, Math.max(0, Math.floor((found.length - 1) / PAGE) * PAGE));
    const list = $("list");
    list.replaceChildren();
    for (const record of found.slice(first, first + PAGE)) list.append(drawn(record, table, words, kind, verdict));
    const part = table.records.length < table.of ? ` (the first ${table.records.length} of ${table.of} are in this page)` : "";
    $("count").textContent = found.length ? `${found.length} of ${table.records.length} records${part}` : `No record of ${table.records.length} is like that${part}`;
    $("where").textContent = `${first + 1} to ${Math.min(first + PAGE, found.length)} of ${found.length}`;
    $("pager").hidden = found.length <= PAGE;
    $("back").disabled = first === 0;
    $("next").disabled = first + PAGE >= found.length;
  };

  const drawn = (record, table, words, kind, verdict) => {
    const [id, prompt, now, old, probes, arms] = record;
    const card = document.createElement("article");
    card.className = "record";
    const head = put(card, "h4");
    put(head, "small", id);
    marked(head, `${text(prompt)}: ${text(now)}`, words);
    if (text(old)) put(head, "small", ` (before: ${text(old)})`);
    const box = put(card, "div", undefined, "box");
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", `Record ${id}`);
    const grid = put(box, "table");
    const places = probes.map((probe, n) => n).filter((n) => !kind || text(probes[n][0]) === kind);
    const top = put(put(grid, "thead"), "tr");
    put(top, "th", "arm").scope = "col";
    for (const n of places) {
      const th = put(top, "th");
      th.scope = "col";
      const name = text(probes[n][0]);
      put(th, "b", data.kinds[name] || name);
      marked(th, text(probes[n][1]), words);
      put(th, "small", ` [${text(probes[n][2])}]`);
    }
    const body = put(grid, "tbody");
    const base = put(body, "tr", undefined, "base");
    put(base, "th", "before").scope = "row";
    for (const n of places) {
      const td = put(base, "td");
      marked(td, text(probes[n][3]), words);
      put(td, "small", percent(probes[n][4]));
    }
    for (const [nth, error, cells] of arms) {
      if (!chosen.has(nth)) continue;
      const row = put(body, "tr");
      put(row, "th", table.arms[nth]).scope = "row";
      for (const n of places) {
        const td = put(row, "td"), cell = cells[n];
        if (error) { td.className = "down"; td.textContent = n === places[0] ? `not edited: ${text(error)}` : ""; continue; }
        if (!cell) continue;
        if (cell.length > 4) put(td, "i", `${text(cell[4])} → `);
        if (text(cell[0])) put(td, "span", text(cell[0]), `v ${text(cell[0])}`);
        marked(td, text(cell[1]), words);
        const free = cell.length > 3 && cell[3] >= 0 ? (cell[3] ? ", free answer right" : ", free answer wrong") : "";
        const before = cell.length > 5 ? cell[5] : probes[n][4];
        put(td, "small", before === null ? percent(cell[2]) + free : `${before.toFixed(1)} → ${percent(cell[2])}${free}`);
      }
    }
    return card;
  };

  const options = (select, pairs) => {
    select.replaceChildren();
    for (const [value, label] of pairs) put(select, "option", label).value = value;
  };

  const named = () => { $("arms").firstElementChild.textContent = `Arms: ${chosen.size} of ${data.tables[$("table").value].arms.length}`; };

  const opened = () => {
    const table = data.tables[$("table").value], kinds = new Set(), verdicts = new Set();
    for (const record of table.records) {
      for (const probe of record[4]) kinds.add(text(probe[0]));
      for (const arm of record[5]) { if (arm[1]) verdicts.add("not edited"); for (const cell of arm[2]) if (cell) verdicts.add(text(cell[0])); }
    }
    verdicts.delete("");
    options($("kind"), [["", "all"], ...[...kinds].map((kind) => [kind, data.kinds[kind] || kind])]);
    options($("verdict"), [["", "any"], ...[...verdicts].sort().map((word) => [word, word])]);
    chosen = new Set(table.arms.keys());
    const box = $("arms").lastElementChild;
    box.replaceChildren();
    for (const [nth, name] of table.arms.entries()) {
      const label = put(box, "label"), tick = put(label, "input");
      tick.type = "checkbox";
      tick.checked = true;
      label.append(name);
      tick.onchange = () => { tick.checked ? chosen.add(nth) : chosen.delete(nth); named(); first = 0; show(); };
    }
    named();
    first = 0;
    show();
  };

  options($("table"), data.tables.map((table, n) => [n, table.title]));
  $("table").parentElement.hidden = data.tables.length < 2;
  $("find").hidden = false;
  $("find").onsubmit = (event) => event.preventDefault();
  $("table").onchange = opened;
  let wait;
  $("text").oninput = () => { clearTimeout(wait); wait = setTimeout(() => { first = 0; show(); }, 150); };
  for (const id of ["kind", "verdict"]) $(id).onchange = () => { first = 0; show(); };
  const turn = (by) => { first += by; show(); $("records").scrollIntoView(); };
  $("back").onclick = () => turn(-PAGE);
  $("next").onclick = () => turn(PAGE);
  $("text").value = new URLSearchParams(location.hash.slice(1)).get("q") || "";  // report.html#q=Paris
  opened();
})();
