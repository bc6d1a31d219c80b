/** Formulas, with KaTeX. It builds elements, and sets styles as properties, which the page's policy allows. */

import "katex/dist/katex.css";

import katex from "katex";

export function set(place: HTMLElement, formula: string, displayMode: boolean): void {
  try {
    katex.render(formula, place, {
      displayMode,
      throwOnError: true,
      trust: false,
      maxExpand: 1000,
      maxSize: 50,
      strict: "ignore",
      output: "htmlAndMathml",
    });
  } catch (error) {
    place.textContent = formula;
    place.title = error instanceof Error ? error.message : String(error);
    place.className = "formula-problem";
  }
}
