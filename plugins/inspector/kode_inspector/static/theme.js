"use strict";
// In the head, so that the page is never shown in the other colours first.
try {
  const kept = localStorage.getItem("kode-theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
} catch { /* a browser without storage follows its system */ }
