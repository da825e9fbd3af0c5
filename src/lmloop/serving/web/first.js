// Sets theme and language before the first paint, so that a remembered choice does not flash.
// Takes: localStorage and the browser's preferences. Gives: data-theme and lang on <html>.
(function () {
  "use strict";
  function recall(key) {
    try {
      return JSON.parse(localStorage.getItem(key));
    } catch {
      return null;
    }
  }
  const root = document.documentElement;
  const theme = recall("lmloop.theme");
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = theme === "light" || theme === "dark" ? theme : dark ? "dark" : "light";
  const language = recall("lmloop.language") || navigator.language || "en";
  root.lang = String(language).toLowerCase().startsWith("zh") ? "zh-CN" : "en";
})();
