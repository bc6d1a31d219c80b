/** CodeMirror for Python: a chunk of its own, loaded when the first editor is shown. */

import {
  acceptCompletion,
  autocompletion,
  closeBrackets,
  closeBracketsKeymap,
  type CompletionContext,
  completionKeymap,
  type CompletionResult,
  completionStatus,
} from "@codemirror/autocomplete";
import { defaultKeymap, history, historyKeymap } from "@codemirror/commands";
import { pythonLanguage } from "@codemirror/lang-python";
import { bracketMatching, HighlightStyle, indentOnInput, indentUnit, syntaxHighlighting } from "@codemirror/language";
import { EditorState, type Extension, Prec, StateEffect, StateField } from "@codemirror/state";
import {
  drawSelection,
  EditorView,
  highlightSpecialChars,
  keymap,
  placeholder,
  showTooltip,
  type Tooltip,
} from "@codemirror/view";
import { tags } from "@lezer/highlight";

import { STYLE_NONCE } from "../style-nonce.js";

/** What an editor asks of the kernel. Both return null when there is no answer now. */
export interface Help {
  complete(
    code: string,
    cursor: number,
    signal: AbortSignal,
  ): Promise<{ matches: string[]; start: number; end: number } | null>;
  inspect(code: string, cursor: number): Promise<string | null>;
}

export interface EditorOptions {
  parent: HTMLElement;
  doc: string;
  label: string;
  /** `python`, or plain text. */
  language: "python" | "text";
  hint?: string;
  onChange?: (doc: string) => void;
  help?: Help;
  /** Keys that come before the editor's own; each returns whether it was handled. */
  keys?: { key: string; run: () => boolean }[];
  readOnly?: boolean;
}

const colours = HighlightStyle.define([
  { tag: [tags.keyword, tags.operatorKeyword, tags.modifier], color: "var(--ansi-magenta)" },
  { tag: [tags.string, tags.special(tags.string)], color: "var(--ansi-green)" },
  { tag: [tags.number, tags.bool, tags.null], color: "var(--ansi-blue)" },
  { tag: tags.comment, color: "var(--quiet)", fontStyle: "italic" },
  {
    tag: [tags.function(tags.definition(tags.variableName)), tags.definition(tags.className)],
    color: "var(--ansi-cyan)",
  },
  { tag: [tags.meta, tags.annotation], color: "var(--ansi-yellow)" },
]);

const theme = EditorView.theme({
  "&": { backgroundColor: "transparent", color: "var(--text)", fontSize: "14px" },
  "&.cm-focused": { outline: "none" },
  ".cm-scroller": { fontFamily: "var(--mono)", lineHeight: "1.5" },
  ".cm-content": { caretColor: "var(--text)", padding: "8px 0" },
  ".cm-line": { padding: "0 10px" },
  ".cm-cursor": { borderLeftColor: "var(--text)" },
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground, .cm-selectionBackground": {
    backgroundColor: "var(--selection)",
  },
  ".cm-placeholder": { color: "var(--quiet)" },
  ".cm-matchingBracket, &.cm-focused .cm-matchingBracket": {
    backgroundColor: "var(--accent-soft)",
    outline: "1px solid var(--border)",
  },
  ".cm-tooltip": {
    backgroundColor: "var(--raised)",
    color: "var(--text)",
    border: "1px solid var(--strong-border)",
    borderRadius: "var(--radius)",
  },
  ".cm-tooltip-autocomplete > ul > li[aria-selected]": {
    backgroundColor: "var(--accent)",
    color: "var(--on-accent)",
  },
  ".cm-inspection": {
    maxWidth: "min(640px, 88vw)",
    maxHeight: "300px",
    overflow: "auto",
    padding: "6px 10px",
    whiteSpace: "pre-wrap",
    font: "13px/1.45 var(--mono)",
  },
});

/** Make an editor. Tab leaves it, as Escape does (which the owner handles); Enter indents as the code wants it. */
export function makeEditor(options: EditorOptions): EditorView {
  const { parent, doc, label, language, hint = "", onChange, help, keys = [], readOnly = false } = options;
  const extensions: Extension[] = [
    EditorView.cspNonce.of(STYLE_NONCE),
    Prec.highest(keymap.of([{ key: "Tab", run: (view) => acceptCompletion(view) || isOpen(view, "Escape") }])),
    ...(help ? [inspection(help)] : []),
    // Escape closes what is open before it leaves the editor; a completion that is still asked for is not open.
    Prec.highest(keymap.of(keys.map(({ key, run }) => ({ key, run: (view) => !isOpen(view, key) && run() })))),
    history(),
    drawSelection(),
    highlightSpecialChars(),
    indentOnInput(),
    bracketMatching(),
    closeBrackets(),
    indentUnit.of("    "),
    keymap.of([...closeBracketsKeymap, ...completionKeymap, ...defaultKeymap, ...historyKeymap]),
    EditorView.lineWrapping,
    EditorView.contentAttributes.of({ "aria-label": label, autocapitalize: "off", spellcheck: "false" }),
    syntaxHighlighting(colours),
    theme,
    EditorView.updateListener.of((update) => {
      if (update.docChanged) onChange?.(update.state.doc.toString());
    }),
    ...(hint ? [placeholder(hint)] : []),
    ...(readOnly ? [EditorState.readOnly.of(true)] : []),
  ];
  if (language === "python") extensions.push(pythonLanguage);
  if (help) extensions.push(autocompletion({ override: [(context) => completions(context, help)], icons: false }));
  return new EditorView({ parent, state: EditorState.create({ doc, extensions }) });
}

function isOpen(view: EditorView, key: string): boolean {
  return key === "Escape" && completionStatus(view.state) === "active";
}

/** CodeMirror drops the result when the text has changed so that it fits no more, or the query was aborted. */
async function completions(context: CompletionContext, help: Help): Promise<CompletionResult | null> {
  const word = context.matchBefore(/[\w.]+/);
  if (!context.explicit && (word === null || !/\.\w*$|\w{2,}$/.test(word.text))) return null;
  const abort = new AbortController();
  context.addEventListener("abort", () => abort.abort());
  const doc = context.state.doc;
  const found = await help.complete(doc.toString(), context.pos, abort.signal);
  if (found === null || context.aborted || found.matches.length === 0) return null;
  return { from: found.start, to: found.end, options: found.matches.map((label) => ({ label })), validFor: /^\w*$/ };
}

const showInspection = StateEffect.define<Tooltip | null>();

function inspection(help: Help): Extension {
  const field = StateField.define<Tooltip | null>({
    create: () => null,
    update(value, transaction) {
      for (const effect of transaction.effects) if (effect.is(showInspection)) return effect.value;
      return transaction.docChanged || transaction.selection ? null : value;
    },
    provide: (found) => showTooltip.from(found),
  });
  const ask = (view: EditorView) => {
    const { doc, selection } = view.state;
    const at = selection.main.head;
    void help.inspect(doc.toString(), at).then((text) => {
      if (text === null || view.state.doc !== doc || view.state.selection.main.head !== at) return;
      view.dispatch({ effects: showInspection.of({ pos: at, create: () => ({ dom: drawn(text) }) }) });
    });
    return true;
  };
  const close = (view: EditorView) => {
    if (view.state.field(field) === null) return false;
    view.dispatch({ effects: showInspection.of(null) });
    return true;
  };
  return [
    field,
    Prec.highest(
      keymap.of([
        { key: "F1", run: ask },
        { key: "Escape", run: close },
      ]),
    ),
  ];
}

function drawn(text: string): HTMLElement {
  const place = document.createElement("div");
  place.className = "cm-inspection";
  place.setAttribute("role", "note");
  place.textContent = text;
  return place;
}
