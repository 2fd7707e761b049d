"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const themes = ["system", "light", "dark"];
  const button = at("theme");
  const remember = (name) => { try { localStorage.setItem("crystalmix-theme", name); } catch { /* not of files in every browser */ } };
  const remembered = () => { try { return localStorage.getItem("crystalmix-theme"); } catch { return null; } };
  const paint = (name) => {
    if (name === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    button.textContent = `Theme: ${name}`;
  };
  let theme = themes.includes(remembered()) ? remembered() : "system";
  paint(theme);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    remember(theme);
    paint(theme);
  });

  const rows = [...document.querySelectorAll("article.row")];
  const reader = at("reader");
  if (reader) {
    const part = at("part"), back = at("back"), next = at("next"), place = at("place");
    let chosen = rows, number = 0;
    const show = () => {
      for (const row of rows) row.hidden = row !== chosen[number];
      place.textContent = `row ${number + 1} of ${chosen.length}`;
    };
    const move = (by) => { number = (number + by + chosen.length) % chosen.length; show(); };
    part.addEventListener("change", () => {
      chosen = rows.filter((row) => !part.value || row.dataset.part === part.value);
      number = 0;
      show();
    });
    back.addEventListener("click", () => move(-1));
    next.addEventListener("click", () => move(1));
    for (const each of [back, next]) each.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) { event.preventDefault(); move(by); }
    });
    reader.hidden = false;
    show();
  }

  const open = () => {
    const target = location.hash && at(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") {
      target.open = true;
      target.querySelector("summary").focus();
    }
  };
  addEventListener("hashchange", open);
  open();
  for (const dot of document.querySelectorAll("a.dot")) dot.addEventListener("click", () => setTimeout(open));
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const each of closed) each.open = true;
  });
  addEventListener("afterprint", () => { for (const each of closed) each.open = false; });
})();
