/**
 * Markdown with DOMPurify, and formulas with KaTeX, which is loaded when there is a formula.
 *
 * The source may be hostile. markdown-it passes no HTML through that DOMPurify does not clean, and nothing that is left
 * has an id, a name, a form, a style or an address other than http, https and mailto.
 */

import DOMPurify from "dompurify";
import MarkdownIt from "markdown-it";

const TAGS = [
  "a", "abbr", "b", "blockquote", "br", "code", "dd", "del", "details", "div", "dl", "dt", "em", "h1", "h2", "h3", "h4",
  "h5", "h6", "hr", "i", "img", "ins", "kbd", "li", "mark", "ol", "p", "pre", "q", "s", "samp", "small", "span",
  "strong", "sub", "summary", "sup", "table", "tbody", "td", "th", "thead", "tr", "u", "ul", "var",
]; // prettier-ignore
const ATTRIBUTES = ["href", "src", "alt", "title", "start", "colspan", "rowspan", "align", "open", "class"];
const FORMULA = "kb-formula";
/** Characters of LaTeX that is set. */
const LONGEST = 50_000;

const purify = DOMPurify();
purify.setConfig({
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ATTRIBUTES,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
});
purify.addHook("afterSanitizeAttributes", (node) => {
  const href = node.getAttribute("href");
  if (href !== null && !/^(?:https?:\/\/|mailto:|#)/i.test(href)) node.removeAttribute("href");
  const src = node.getAttribute("src");
  // Pictures of other hosts would tell them who looks; the page's policy refuses them, too.
  if (src !== null && !/^data:image\/(?:png|jpeg|gif|webp|svg\+xml)[;,]/i.test(src)) node.removeAttribute("src");
  if (node.className !== "" && node.className !== FORMULA) node.removeAttribute("class");
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer");
  }
});

const parser = new MarkdownIt({ html: true, linkify: true });
parser.inline.ruler.after("escape", "formula", (state, silent) => {
  const found = /^\$\$([^$]+)\$\$|^\$([^\s$](?:[^$\n]*[^\s$\\])?)\$(?!\d)/.exec(
    state.src.slice(state.pos, state.pos + 4096),
  );
  if (found === null) return false;
  if (!silent) {
    const token = state.push("formula", "", 0);
    token.content = (found[1] ?? found[2])!;
    token.block = found[1] !== undefined;
  }
  state.pos += found[0].length;
  return true;
});
parser.renderer.rules["formula"] = (tokens, index) => {
  const { content, block } = tokens[index]!;
  return `<code class="${FORMULA}" title="${block ? "display" : "inline"}">${parser.utils.escapeHtml(content)}</code>`;
};

/** Return a text in Markdown as elements. */
export async function markdown(source: string): Promise<DocumentFragment> {
  const fragment = purify.sanitize(parser.render(source)) as unknown as DocumentFragment;
  const formulas = [...fragment.querySelectorAll<HTMLElement>(`code.${FORMULA}`)];
  if (formulas.length > 0) {
    const { set } = await import("./formulas.js");
    for (const place of formulas) {
      const span = document.createElement("span");
      set(span, place.textContent ?? "", place.title === "display");
      place.replaceWith(span);
    }
  }
  return fragment;
}

/** Return `text/latex`: formulas between `$`, `$$`, `\(` or `\[`, or an environment, with text around them. */
export async function latex(source: string): Promise<DocumentFragment> {
  const { set } = await import("./formulas.js");
  const fragment = document.createDocumentFragment();
  if (source.length > LONGEST) {
    fragment.append(source);
    return fragment;
  }
  const formula =
    /\$\$([\s\S]{1,9999}?)\$\$|\\\[([\s\S]{1,9999}?)\\\]|\$([^$]{1,9999}?)\$|\\\(([\s\S]{1,9999}?)\\\)|(\\begin\{(\w+\*?)\}[\s\S]{1,9999}?\\end\{\6\})/g;
  let at = 0;
  for (const found of source.matchAll(formula)) {
    fragment.append(source.slice(at, found.index));
    const block = found[1] ?? found[2] ?? found[5];
    const span = document.createElement("span");
    set(span, (block ?? found[3] ?? found[4])!, block !== undefined);
    fragment.append(span);
    at = found.index + found[0].length;
  }
  fragment.append(source.slice(at));
  return fragment;
}
