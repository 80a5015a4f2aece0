"use strict";
// The page is complete without this: it sorts tables, filters documents, and opens what is folded for paper.

function number(cell) {
  const text = cell.dataset.v;
  return text === undefined ? null : Number.isNaN(Number(text)) ? text : Number(text);
}

function sortBy(table, column, ascending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [number(row.cells[column]), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return ascending ? order : -order;
  });
  body.append(...rows.map(([, row]) => row));
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortBy(table, column, ascending);
    });
  });
}

function makeFilter(form) {
  const cards = [...document.querySelectorAll("details.document")].map((card) => [card, JSON.parse(card.dataset.scores)]);
  const count = document.getElementById("count");
  const matches = (card, scores) => {
    if (form.task.value && card.dataset.task !== form.task.value) return false;
    const arms = form.arm.value ? [form.arm.value] : Object.keys(scores);
    const base = scores[form.base.value];
    return arms.some((arm) => {
      if (scores[arm] === undefined || base === undefined) return false;
      const gap = scores[arm] - base;
      return form.outcome.value === "won" ? gap > 0 : form.outcome.value === "lost" ? gap < 0 : gap !== 0;
    });
  };
  const apply = () => {
    let shown = 0;
    for (const [card, scores] of cards) {
      card.hidden = !matches(card, scores);
      shown += !card.hidden;
      for (const row of card.querySelectorAll("tr[data-arm]")) {
        row.hidden = form.arm.value !== "" && ![form.arm.value, form.base.value].includes(row.dataset.arm);
      }
    }
    count.textContent = `${shown} of ${cards.length} documents shown`;
  };
  form.hidden = false;
  form.addEventListener("input", () => {
    const more = document.getElementById("more");
    if (more) more.open = true;
    apply();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("form.filter").forEach(makeFilter);

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details.fold:not([open])")];
  opened.forEach((fold) => { fold.open = true; });
});
addEventListener("afterprint", () => opened.forEach((fold) => { fold.open = false; }));
