/** One file: its text in an editor, or why it cannot be edited here. */

import type { Session } from "kernelbridge";
import { useEffect, useRef, useState } from "preact/hooks";

import type { AskQuestion } from "./Dialog.js";
import type { Editor, MakeEditor } from "./editor.js";
import { OpenFile, type Ask } from "./open-file.js";
import { nameOf, shownName } from "./paths.js";
import { codeOf, explain, NotEditable, storeOf } from "./requests.js";

export interface FileViewProps {
  session: Session;
  path: string;
  /** The editor; it may have to be loaded. */
  editor: () => Promise<MakeEditor>;
  ask: AskQuestion;
  /** Called with the function that looks whether the file changed elsewhere, while it is shown. */
  onTouched: (look: (() => void) | null) => void;
  /** Whether there are changes that are not saved. */
  onEdited: (edited: boolean) => void;
  download: (path: string) => void;
  close: () => void;
}

type Phase = { kind: "loading" | "open" } | { kind: "refused" | "failed"; why: string };

export function FileView({ session, path, editor, ask, onTouched, onEdited, download, close }: FileViewProps) {
  const host = useRef<HTMLDivElement>(null);
  const made = useRef<{ file: OpenFile; editor: Editor } | null>(null);
  const [phase, setPhase] = useState<Phase>({ kind: "loading" });
  const [edited, setEdited] = useState(false);
  const [saving, setSaving] = useState(false);
  const [note, setNote] = useState("");
  const [problem, setProblem] = useState("");
  const [attempt, setAttempt] = useState(0);
  const name = shownName(nameOf(path));

  const look = () => {
    if (made.current === null) return;
    const { editor, file } = made.current;
    setEdited(editor.value() !== file.saved || file.deleted);
  };

  useEffect(() => onEdited(edited), [edited]);

  const save = async () => {
    if (made.current === null) return;
    const { file, editor } = made.current;
    const question: Ask = async (theirs) => {
      const happened = theirs === null ? "was deleted elsewhere" : "was changed elsewhere since it was read here";
      const { choice } = await ask({
        title: `“${name}” ${happened}`,
        text: theirs === null ? "Nothing was saved yet." : "Nothing was saved yet. One of the two versions is lost.",
        choices: [
          { id: "mine", label: "Keep mine" },
          ...(theirs === null ? [] : [{ id: "theirs", label: "Take theirs", danger: true }]),
          { id: "neither", label: "Go on editing" },
        ],
      });
      return choice as Awaited<ReturnType<Ask>>;
    };
    setSaving(true);
    setProblem("");
    try {
      const outcome = await file.save(editor.value(), question);
      if (outcome === "taken") editor.replace(file.saved);
      setNote({ saved: "Saved.", taken: "Their version is shown.", deleted: "", cancelled: "Not saved." }[outcome]);
    } catch (error) {
      setProblem(codeOf(error) ? explain(error) : `“${name}” was not saved. ${explain(error)}`);
    } finally {
      setSaving(false);
      look();
    }
  };
  const latest = useRef(save);
  latest.current = save;

  useEffect(() => {
    let ended = false;
    const file = new OpenFile(path, storeOf(session));
    setPhase({ kind: "loading" });
    const open = async () => {
      try {
        const [found, make] = await Promise.all([file.load(), editor()]);
        if (ended) return;
        if (!found) throw new Error(`There is no file “${name}” any more.`);
        const label = `Text of ${name}`;
        const options = {
          text: file.saved,
          label,
          filename: nameOf(path),
          changed: look,
          save: () => void latest.current(),
        };
        made.current = { file, editor: make(host.current!, options) };
        if (file.ends === "mixed")
          setNote("The file has different line ends. When it is saved, all of them become \\n.");
        setPhase({ kind: "open" });
        made.current.editor.focus();
      } catch (error) {
        if (!ended) setPhase({ kind: error instanceof NotEditable ? "refused" : "failed", why: explain(error) });
      }
    };
    const touched = async () => {
      if (made.current === null) return;
      const { editor } = made.current;
      try {
        const found = await file.look(() => editor.value());
        if (ended) return;
        if (found === "taken") {
          editor.replace(file.saved);
          setNote("It was changed elsewhere: the new version is shown.");
        } else if (found === "deleted") setNote("It was deleted elsewhere. Saving makes it again.");
        else if (found === "differs") setNote("It was changed elsewhere. Saving asks which version to keep.");
        look();
      } catch (error) {
        if (!ended) setNote(`It was changed elsewhere, and cannot be shown. ${explain(error)}`);
      }
    };
    void open();
    onTouched(() => void touched());
    return () => {
      ended = true;
      onTouched(null);
      made.current?.editor.destroy();
      made.current = null;
    };
  }, [session, path, attempt]);

  return (
    <section class="file-view" aria-label={`File ${name}`}>
      <div class="file-bar">
        <strong>
          <bdi>{shownName(path)}</bdi>
        </strong>
        {edited && <span class="edited">edited</span>}
        <button type="button" onClick={() => void save()} disabled={phase.kind !== "open" || saving || !edited}>
          {saving ? "Saving…" : "Save"}
        </button>
        <button type="button" onClick={() => download(path)}>
          Download
        </button>
        <button type="button" onClick={close}>
          Close file
        </button>
      </div>
      <p class="file-said" role="status">
        {phase.kind === "loading" ? `Opening ${name}…` : note}
      </p>
      {problem !== "" && (
        <p class="file-problem" role="alert">
          {problem}
        </p>
      )}
      {(phase.kind === "refused" || phase.kind === "failed") && (
        <p class="file-problem" role="alert">
          “{name}” is not shown. {phase.why}{" "}
          {phase.kind === "failed" ? (
            <button type="button" onClick={() => setAttempt(attempt + 1)}>
              Try again
            </button>
          ) : (
            <button type="button" onClick={() => download(path)}>
              Download it
            </button>
          )}
        </p>
      )}
      <div class="file-editor" ref={host} hidden={phase.kind !== "open"} />
    </section>
  );
}
