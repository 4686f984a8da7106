"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);

  // --- colours
  function switchTheme() {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("kode-theme", root.dataset.theme); } catch { /* only for this page then */ }
  }

  // --- moving
  const quiet = matchMedia("(prefers-reduced-motion: reduce)");
  function go(element) {
    if (!element) return;
    const target = element.matches("tr") ? element.querySelector("a") || element : element;
    (target.matches("details") ? target.querySelector("summary") : target).focus({ preventScroll: true });
    element.scrollIntoView({ block: "center", behavior: quiet.matches ? "auto" : "smooth" });
  }
  function step(selector, forward) {
    const rows = all(selector);
    if (!rows.length) return;
    const here = document.activeElement && document.activeElement.closest("[data-row]");
    let next;
    if (here && here !== document.body) {
      next = forward
        ? rows.find((row) => here.compareDocumentPosition(row) & Node.DOCUMENT_POSITION_FOLLOWING && !here.contains(row))
        : rows.filter((row) => here.compareDocumentPosition(row) & Node.DOCUMENT_POSITION_PRECEDING).pop();
      if (!next) next = selector === "[data-error]" ? (forward ? rows[0] : rows[rows.length - 1]) : here;
    } else {
      next = forward ? rows[0] : rows[rows.length - 1];
    }
    go(next);
    if (selector === "[data-error]") all("details.call.failed, details.call.denied", next).forEach((d) => { d.open = true; });
  }
  function unfold() {
    const calls = all("details.call");
    const open = calls.some((call) => !call.open);
    calls.forEach((call) => { call.open = open; });
    const button = one("[data-unfold]");
    if (button) button.textContent = open ? "Fold all calls" : "Open all calls";
  }
  function toggle() {
    const here = document.activeElement;
    const box = here && (here.closest("details") || here.querySelector("details"));
    if (box) box.open = !box.open;
  }

  // --- keys
  let prefix = "";
  const places = { s: "/", c: "/calls", d: "/dashboard", h: "/health" };
  const keys = {
    j: () => step("[data-row]", true),
    k: () => step("[data-row]", false),
    e: () => step("[data-error]", true),
    E: () => step("[data-error]", false),
    o: toggle,
    x: unfold,
    t: switchTheme,
    n: () => { const next = one("a[rel=next]"); if (next) next.click(); },
    p: () => { const before = one("a[rel=prev]"); if (before) before.click(); else history.back(); },
    "/": () => { const field = one("main form input"); if (field) { field.focus(); field.select(); } },
    "?": () => { const help = one("#help"); if (!help.open) help.showModal(); },
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.target.closest("input, select, textarea, dialog")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (prefix === "g" && places[event.key]) { location.assign(places[event.key]); return; }
    prefix = event.key === "g" ? "g" : "";
    const act = Object.hasOwn(keys, event.key) ? keys[event.key] : null;
    if (act) { event.preventDefault(); act(); }
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.matches("[data-theme-switch]")) switchTheme();
    else if (button.matches("[data-help]")) one("#help").showModal();
    else if (button.matches("[data-next-error]")) step("[data-error]", true);
    else if (button.matches("[data-unfold]")) unfold();
  });

  // --- the message of a deep link
  const place = one("[data-at]");
  const named = location.hash.startsWith("#m") ? location.hash.slice(1) : place && place.dataset.at;
  const message = named && document.getElementById(named);
  if (message) {
    message.classList.add("target");
    message.focus({ preventScroll: true });
    message.scrollIntoView({ block: "start" });
  }

  // --- a page that takes long
  const since = one("[data-since]");
  if (since) {
    const start = performance.now();
    const count = setInterval(() => {
      if (since.isConnected) since.textContent = String(Math.floor((performance.now() - start) / 1000));
      else clearInterval(count);
    }, 1000);
  }

  // --- live events
  const list = one("#events[data-stream]");
  if (list) {
    const state = one("#live");
    const say = (kind, glyph, text) => {
      state.className = `state ${kind}`;
      state.replaceChildren(Object.assign(document.createElement("span"), { textContent: glyph, ariaHidden: "true" }), ` ${text}`);
    };
    const address = new URL(list.dataset.stream, location.href);
    let last = Number(address.searchParams.get("after")) || 0;
    let pause = 1000;
    const connect = () => {
      address.searchParams.set("after", String(last));
      const source = new EventSource(address);
      const opened = () => { pause = 1000; say("ok", "●", "live"); };
      source.onopen = opened;
      source.onerror = () => {
        say("waiting", "○", "reconnecting");
        if (source.readyState !== EventSource.CLOSED) return;
        setTimeout(connect, pause);  // a proxy answered in the place of the server, and the browser gave up
        pause = Math.min(2 * pause, 30000);
      };
      source.addEventListener("stored", (event) => {
        opened();
        if (Number(event.lastEventId) <= last) return;
        last = Number(event.lastEventId);
        const empty = one("#no-events");
        if (empty) empty.remove();
        const low = innerHeight + scrollY >= document.body.scrollHeight - 80;
        list.insertAdjacentHTML("beforeend", JSON.parse(event.data).html);
        while (list.children.length > 1000) list.firstElementChild.remove();
        if (low) list.lastElementChild.scrollIntoView({ block: "nearest" });
      });
      source.addEventListener("problem", (event) => say("failed", "✕", JSON.parse(event.data).text));
      source.addEventListener("gone", (event) => { say("failed", "✕", JSON.parse(event.data).text); source.close(); });
    };
    connect();
  }
})();
