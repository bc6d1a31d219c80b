/** The code of a cell. Until the editor is loaded, and if it cannot be, a plain field takes its place. */

import type { EditorView } from "@codemirror/view";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

import type { Help } from "./codemirror.js";

export interface CellEditorProps {
  source: string;
  label: string;
  language: "python" | "text";
  hint: string;
  help: Help;
  /** Whether the editor has the keyboard as soon as it is there. */
  focused: boolean;
  onChange: (source: string) => void;
  onFocus: () => void;
  keys: { key: string; run: () => boolean }[];
}

export function CellEditor(props: CellEditorProps) {
  const { label, language, hint, focused, onFocus } = props;
  const place = useRef<HTMLDivElement>(null);
  const view = useRef<EditorView | null>(null);
  const latest = useRef(props);
  latest.current = props;
  const [isPlain, setPlain] = useState(true);

  useEffect(() => {
    let wanted = true;
    const load = async () => {
      const { makeEditor } = await import("./codemirror.js");
      if (!wanted || place.current === null) return;
      const plain = place.current.querySelector("textarea");
      const hadFocus = plain !== null && document.activeElement === plain;
      const selection = plain?.selectionStart ?? 0;
      setPlain(false);
      view.current = makeEditor({
        parent: place.current,
        doc: latest.current.source,
        label,
        language,
        hint,
        onChange: (doc) => latest.current.onChange(doc),
        help: {
          complete: (...question) => latest.current.help.complete(...question),
          inspect: (...question) => latest.current.help.inspect(...question),
        },
        keys: latest.current.keys.map(({ key }) => ({
          key,
          run: () => latest.current.keys.find((each) => each.key === key)!.run(),
        })),
      });
      if (hadFocus || latest.current.focused) {
        view.current.focus();
        if (hadFocus) view.current.dispatch({ selection: { anchor: selection } });
      }
    };
    load().catch(() => {}); // the plain field stays
    return () => {
      wanted = false;
      view.current?.destroy();
      view.current = null;
    };
  }, [language]);

  useLayoutEffect(() => {
    if (!focused) return;
    if (view.current !== null) view.current.focus();
    else place.current?.querySelector("textarea")?.focus();
  }, [focused]);

  const onKeyDown = (event: KeyboardEvent) => {
    const name = `${event.ctrlKey || event.metaKey ? "Mod-" : ""}${event.shiftKey ? "Shift-" : ""}${event.key}`;
    const found = props.keys.find(({ key }) => key === name);
    if (found?.run()) event.preventDefault();
  };

  return (
    <div class="editor" ref={place} onFocusCapture={onFocus}>
      {isPlain && (
        <textarea
          aria-label={label}
          rows={Math.min(Math.max(props.source.split("\n").length, 1), 20)}
          spellcheck={false}
          autocapitalize="off"
          placeholder={hint}
          value={props.source}
          onInput={(event) => props.onChange(event.currentTarget.value)}
          onKeyDown={onKeyDown}
        />
      )}
    </div>
  );
}
