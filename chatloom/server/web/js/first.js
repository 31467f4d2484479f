// Runs before anything is drawn: theme and language, so that nothing flashes.
(function () {
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem("chatloom.settings")) || {}; } catch { /* none yet */ }
  const root = document.documentElement;
  if (kept.theme === "dark" || kept.theme === "light") root.dataset.theme = kept.theme;
  const language = kept.language || navigator.language || "en";
  root.lang = language.toLowerCase().startsWith("zh") ? "zh-CN" : "en";
})();
