/** What a panel needs of an editor, and one that every browser has. */

export interface Editor {
  value: () => string;
  /** Replace the text; no `changed` follows. */
  replace: (text: string) => void;
  focus: () => void;
  destroy: () => void;
}

export interface EditorOptions {
  text: string;
  /** What it is for screen readers. */
  label: string;
  /** The file's name: its language may follow from it. */
  filename: string;
  changed: () => void;
  /** The person asks to save (Ctrl-S). */
  save: () => void;
}

/** Makes an editor in an element. */
export type MakeEditor = (host: HTMLElement, options: EditorOptions) => Editor;

/** A plain text field. Tab moves on, as everywhere. */
export const plainEditor: MakeEditor = (host, { text, label, changed, save }) => {
  const area = document.createElement("textarea");
  area.className = "plain-editor";
  area.value = text;
  area.spellcheck = false;
  area.wrap = "off";
  area.autocapitalize = "off";
  area.setAttribute("aria-label", label);
  area.addEventListener("input", changed);
  area.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() !== "s" || !(event.ctrlKey || event.metaKey) || event.altKey) return;
    event.preventDefault();
    save();
  });
  host.append(area);
  return {
    value: () => area.value,
    replace: (next) => (area.value = next),
    focus: () => area.focus(),
    destroy: () => area.remove(),
  };
};
