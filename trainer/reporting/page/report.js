"use strict";
// Filters and orders the list of queries; the page is complete without it.
(function () {
  const list = document.getElementById("list");
  const rows = Array.from(list.querySelectorAll("details.query"));
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const buttons = Array.from(document.querySelectorAll("#filters button"));
  const words = document.getElementById("words-filter");
  const order = document.getElementById("order");
  const shown = document.getElementById("shown");

  function pressed() {
    return buttons.filter((button) => button.getAttribute("aria-pressed") === "true").map((b) => b.dataset.filter);
  }

  function matches(row, position, chosen, asked) {
    const kinds = chosen.filter((key) => ["won", "lost", "same"].includes(key));
    const causes = chosen.filter((key) => !kinds.includes(key));
    return (
      (!kinds.length || kinds.includes(row.dataset.kind)) &&
      (!causes.length || causes.includes(row.dataset.cause)) &&
      asked.every((word) => texts[position].includes(word))
    );
  }

  function arrange() {
    const key = order.value.replace("-", "");
    const sign = order.value.startsWith("-") ? -1 : 1;
    const sorted = rows.slice().sort((one, other) => sign * (one.dataset[key] - other.dataset[key]));
    list.append(...sorted);
  }

  function filter() {
    const chosen = pressed();
    const asked = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    let sum = 0;
    rows.forEach((row, position) => {
      row.hidden = !matches(row, position, chosen, asked);
      if (!row.hidden) {
        count += 1;
        sum += Number(row.dataset.gain);
      }
    });
    const mean = count ? sum / count : 0;
    const change = Math.abs(mean).toFixed(3);
    shown.textContent =
      "Showing " + count + " of " + rows.length + (count ? " · mean change " + (mean < 0 ? "−" : "+") + change : "");
    const state = new URLSearchParams();
    if (chosen.length) state.set("show", chosen.join("."));
    if (words.value) state.set("words", words.value);
    if (order.value !== "gain") state.set("order", order.value);
    const hash = state.toString();
    if (hash || location.hash.includes("=")) history.replaceState(null, "", hash ? "#" + hash : location.pathname);
  }

  function restore() {
    if (!location.hash.includes("=")) return;
    const state = new URLSearchParams(location.hash.slice(1));
    const chosen = (state.get("show") || "").split(".");
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(chosen.includes(button.dataset.filter))));
    words.value = state.get("words") || "";
    const asked = state.get("order");
    if (Array.from(order.options).some((option) => option.value === asked)) order.value = asked;
    arrange();
    filter();
  }

  buttons.forEach((button) =>
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      filter();
    }),
  );
  words.addEventListener("input", filter);
  order.addEventListener("change", () => {
    arrange();
    filter();
  });
  window.addEventListener("hashchange", restore);
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = rows.filter((row) => row.dataset.kind === "lost" && !row.hidden && !row.open).slice(0, 10);
    opened.forEach((row) => (row.open = true));
  });
  window.addEventListener("afterprint", () => opened.forEach((row) => (row.open = false)));
  document.getElementById("filters").hidden = false;
  restore();
})();
