/**
 * The nonce that the page's Content-Security-Policy accepts for `<style>` elements.
 *
 * Libraries that make such elements (CodeMirror, xterm.js) must set it as `nonce` before the element has text: without
 * it the browser ignores the styles. Attributes `style="…"` in HTML are refused as well; `element.style.x = …` works.
 */
export const STYLE_NONCE = document.querySelector<HTMLMetaElement>('meta[name="style-nonce"]')?.content ?? "";
