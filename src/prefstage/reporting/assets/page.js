"use strict";
(() => {
  const select = document.getElementById("theme");
  const key = "prefstage-theme";
  const apply = (value) => {
    if (value === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.setAttribute("data-theme", value);
    select.value = value;
  };
  let kept = "auto";
  try {
    kept = localStorage.getItem(key) || "auto";
  } catch {
    kept = "auto"; // storage is closed to some pages from files
  }
  apply(["light", "dark"].includes(kept) ? kept : "auto");
  select.addEventListener("change", () => {
    apply(select.value);
    try {
      localStorage.setItem(key, select.value);
    } catch {
      return;
    }
  });
})();
