// The page's words in English and Chinese; tests hold both files to the same keys.
import en from "/web/js/texts_en.js";
import zh from "/web/js/texts_zh.js";

const texts = { en, "zh-CN": zh };

export const language = () => (document.documentElement.lang.startsWith("zh") ? "zh-CN" : "en");

export function t(key, values = {}) {
  const text = texts[language()][key] ?? en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export const number = (value, digits = 0) =>
  new Intl.NumberFormat(language(), { maximumFractionDigits: digits }).format(value);
