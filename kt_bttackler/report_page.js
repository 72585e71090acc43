// Draws a picture when it comes into view, so that a page of hundreds opens at once.
"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };

  function themed(layout) {
    const style = getComputedStyle(document.body);
    const ink = style.getPropertyValue("--ink").trim();
    const line = style.getPropertyValue("--line").trim();
    const paper = style.getPropertyValue("--paper").trim();
    const own = {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: style.fontFamily, size: 12 },
      hoverlabel: {
        ...layout.hoverlabel,
        bgcolor: paper,
        bordercolor: line,
        font: { color: ink, size: 12 },
      },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: ink },
    };
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(name)) {
        own[name] = { ...layout[name], gridcolor: line, linecolor: line };
      }
    }
    return own;
  }

  function draw(place) {
    const spec = JSON.parse(place.querySelector("script").textContent);
    place.dataset.drawn = "yes";
    place.replaceChildren();
    place.spec = spec;
    const small = place.closest(".grid") !== null;
    const how = { ...config, displayModeBar: small ? false : "hover" };
    Plotly.newPlot(place, spec.data, themed(spec.layout), how);
  }

  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting && !entry.target.dataset.drawn) {
          seen.unobserve(entry.target);
          draw(entry.target);
        }
      }
    },
    { rootMargin: "300px" },
  );
  document.querySelectorAll(".figure").forEach((place) => seen.observe(place));

  dark.addEventListener("change", () => {
    document.querySelectorAll(".figure[data-drawn]").forEach((place) => {
      Plotly.react(place, place.spec.data, themed(place.spec.layout), config);
    });
  });

  // A link to a trial opens its section.
  function open() {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") {
      target.open = true;
      target.scrollIntoView();
    }
  }
  window.addEventListener("hashchange", open);
  open();

  // A click on a heading sorts by its column.
  const number = (text) => (text.trim() === "" ? NaN : Number(text.split(" ")[0]));
  function sort(table, heading, column) {
    const down = heading.getAttribute("aria-sort") === "ascending";
    const body = table.tBodies[0];
    const text = (row) => row.cells[column].textContent;
    const rows = [...body.rows].sort((one, other) => {
      const [a, b] = [number(text(one)), number(text(other))];
      if (!Number.isNaN(a) && !Number.isNaN(b)) return a - b;
      if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1;
      return text(one).localeCompare(text(other));
    });
    for (const each of heading.parentNode.cells) each.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...(down ? rows.reverse() : rows));
  }
  document.querySelectorAll("table").forEach((table) => {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = document.createElement("button");
      button.append(...heading.childNodes);
      button.addEventListener("click", () => sort(table, heading, column));
      heading.append(button);
    });
  });
})();
