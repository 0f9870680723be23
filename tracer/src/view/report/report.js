// Narrows lists, sorts tables, opens what a link leads to. Everything is there without it.
"use strict";

function narrow(tools) {
  const items = document.getElementById(tools.dataset.for).getElementsByClassName("item");
  const [words, onlyLost] = tools.querySelectorAll("input");
  const output = tools.querySelector("output");
  const texts = Array.from(items, (item) => item.textContent.toLowerCase());
  const all = Array.from(items);
  const apply = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    all.forEach((item, index) => {
      const lost = !onlyLost.checked || item.dataset.lost === "true";
      item.hidden = !(lost && wanted.every((word) => texts[index].includes(word)));
      shown += item.hidden ? 0 : 1;
    });
    output.textContent = `${shown} of ${all.length} shown`;
  };
  words.addEventListener("input", apply);
  onlyLost.addEventListener("change", apply);
  tools.hidden = false;
  apply();
}

function sortable(table) {
  const heads = Array.from(table.tHead.rows[0].cells);
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const number = head.dataset.number === "true";
      const order = (one, two) =>
        number ? Number(one) - Number(two) : one.localeCompare(two, undefined, { numeric: true });
      const rows = Array.from(table.tBodies[0].rows, (row) => [value(row, column), row]);
      rows.sort(([one], [two]) => (down ? -order(one, two) : order(one, two)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

function open() {
  const target = document.getElementById(location.hash.slice(1));
  if (target?.tagName === "DETAILS") {
    target.hidden = false;
    target.open = true;
    target.scrollIntoView({ block: "start" });
    target.querySelector("summary").focus({ preventScroll: true });
  }
}

document.querySelectorAll(".tools").forEach(narrow);
document.querySelectorAll("table.sortable").forEach(sortable);
addEventListener("hashchange", open);
open();
