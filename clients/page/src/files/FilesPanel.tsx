/** Files of a session. Loaded when the panel is shown first; it stays mounted while other panels are shown. */

import "./files.css";

import type { Session } from "kernelbridge";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";

import { useQuestions } from "./Dialog.js";
import { plainEditor, type MakeEditor } from "./editor.js";
import { FileList } from "./file-list.js";
import { FileTree } from "./FileTree.js";
import { FileView } from "./FileView.js";
import type { KeyAction } from "./keys.js";
import { faultOf, isWithin, nameOf, parentOf, shownName } from "./paths.js";
import { codeOf, explain, makeDirectory, remove, rename } from "./requests.js";
import { Transfers } from "./Transfers.js";
import { EMPTY, rowsOf, type Entry, type EntryRow } from "./tree.js";
import { chosen, dropped, upload, type Answer, type Item, type Progress } from "./uploads.js";

export interface FilesPanelProps {
  session: Session;
  /** Whether the panel is the one that is shown. */
  shown: boolean;
  /** Say something to the person that uses the page; `problem` is also announced to screen readers at once. */
  tell: (text: string, kind?: "note" | "problem") => void;
  /** Loads the editor of text files. Default: a plain text field. */
  editor?: () => Promise<MakeEditor>;
  /** Open a file in another part of the page, such as a notebook; false if this panel is to open it. */
  openElsewhere?: (path: string) => boolean;
}

interface Download {
  path: string;
  done: number;
  size: number;
}

const plain = () => Promise.resolve(plainEditor);

export function FilesPanel({ session, shown, tell, editor = plain, openElsewhere }: FilesPanelProps) {
  const [tree, setTree] = useState(EMPTY);
  const [hidden, setHidden] = useState(false);
  const [unwatched, setUnwatched] = useState("");
  const [selected, setSelected] = useState("");
  const [opened, setOpened] = useState("");
  const [problem, setProblem] = useState("");
  const [target, setTarget] = useState<string | null>(null);
  const [uploading, setUploading] = useState<Progress | null>(null);
  const [downloads, setDownloads] = useState<Download[]>([]);
  const files = useRef<FileList | null>(null);
  const look = useRef<(() => void) | null>(null);
  const edited = useRef(false);
  const current = useRef("");
  const cancelUpload = useRef(new AbortController());
  const fileInput = useRef<HTMLInputElement>(null);
  const folderInput = useRef<HTMLInputElement>(null);
  const { ask, dialog } = useQuestions();
  current.current = opened;

  useEffect(() => {
    const made = new FileList(session, hidden, {
      changed: setTree,
      watching: setUnwatched,
      touched: (paths) => {
        const path = current.current;
        if (path !== "" && (paths === null || paths.some((each) => isWithin(path, each)))) look.current?.();
      },
    });
    files.current = made;
    return () => made.end();
  }, [session, hidden]);

  useEffect(() => {
    if (shown && unwatched !== "") files.current?.refresh();
  }, [shown]);

  useEffect(() => {
    const warn = (event: BeforeUnloadEvent) => edited.current && event.preventDefault();
    addEventListener("beforeunload", warn);
    return () => removeEventListener("beforeunload", warn);
  }, []);

  const entry = useMemo(() => {
    const rows = rowsOf(tree).filter((row): row is EntryRow => row.type === "entry");
    return rows.find((row) => row.entry.path === selected)?.entry ?? null;
  }, [tree, selected]);
  const folder = entry === null ? "" : entry.kind === "directory" ? entry.path : parentOf(entry.path);
  const place = folder === "" ? "the workspace" : `“${shownName(folder)}”`;

  /** Do something that may fail, and say so. */
  const attempt = async (what: string, work: () => Promise<void>) => {
    setProblem("");
    try {
      await work();
    } catch (error) {
      // The server's own message says what failed.
      setProblem(codeOf(error) ? explain(error) : `${what} ${explain(error)}`);
    }
  };

  /** Whether the open file may be closed: what was typed is not thrown away without a question. */
  const mayClose = async (path: string) => {
    if (!edited.current) return true;
    const { choice } = await ask({
      title: `“${shownName(nameOf(path))}” has changes that are not saved`,
      text: "They are lost when the file is closed.",
      choices: [
        { id: "lose", label: "Lose them", danger: true },
        { id: "keep", label: "Go on editing" },
      ],
    });
    return choice === "lose";
  };

  const open = async (path: string) => {
    if (path === opened) return;
    if (openElsewhere?.(path)) return;
    if (opened !== "" && !(await mayClose(opened))) return;
    setOpened(path);
  };

  const closeFile = async () => {
    if (await mayClose(opened)) setOpened("");
  };

  const askName = async (title: string, text: string, label: string, value: string) => {
    const { choice, value: name } = await ask({
      title,
      text,
      choices: [
        { id: "do", label },
        { id: "cancel", label: "Cancel" },
      ],
      input: { label: "Path in the workspace", value, fault: faultOf },
    });
    return choice === "do" ? name : null;
  };

  const shows = (path: string) => {
    files.current?.reveal(path);
    setSelected(path);
  };

  const create = (kind: "file" | "folder") =>
    attempt(`The new ${kind} was not made.`, async () => {
      const path = await askName(`New ${kind}`, `It is made in ${place}.`, "Create", folder && `${folder}/`);
      if (path === null) return;
      if (kind === "folder") await makeDirectory(session, path);
      else await session.files.write(path, "", { create: true });
      shows(path);
      if (kind === "file") await open(path);
    });

  const renameEntry = ({ path }: Entry) =>
    attempt(`“${shownName(path)}” was not renamed.`, async () => {
      const text = "Another folder in the path moves it there.";
      const next = await askName(`Rename “${shownName(nameOf(path))}”`, text, "Rename", path);
      if (next === null || next === path) return;
      if (isWithin(opened, path) && opened !== "" && !(await mayClose(opened))) return;
      await rename(session, path, next);
      if (isWithin(opened, path) && opened !== "") setOpened(next + opened.slice(path.length));
      files.current?.refresh();
      shows(next);
    });

  const deleteEntry = ({ path, kind }: Entry) =>
    attempt(`“${shownName(path)}” was not deleted.`, async () => {
      const what =
        kind === "directory" ? "The folder and everything in it are" : kind === "symlink" ? "The link is" : "It is";
      const { choice } = await ask({
        title: `Delete “${shownName(nameOf(path))}”?`,
        text: `${what} deleted for good.`,
        choices: [
          { id: "delete", label: "Delete", danger: true },
          { id: "keep", label: "Keep" },
        ],
      });
      if (choice !== "delete") return;
      await remove(session, path);
      if (isWithin(opened, path) && opened !== "") {
        edited.current = false;
        setOpened("");
      }
      setSelected(parentOf(path));
      files.current?.refresh();
    });

  const download = (path: string) =>
    attempt(`“${shownName(path)}” was not downloaded.`, async () => {
      const others = (all: Download[]) => all.filter((each) => each.path !== path);
      const progress = (done: number, size: number) => setDownloads((all) => [...others(all), { path, done, size }]);
      progress(0, 0);
      try {
        const blob = await session.files.blob(path, { progress });
        const link = document.createElement("a");
        link.href = URL.createObjectURL(blob);
        link.download = nameOf(path);
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser has begun to save it by then
      } finally {
        setDownloads(others);
      }
    });

  const send = (items: Item[]) =>
    attempt("The upload failed.", async () => {
      if (items.length === 0) return;
      cancelUpload.current = new AbortController();
      const done = await upload(
        items,
        {
          save: async (path, file, replace, progress, signal) => {
            try {
              await session.files.write(path, file, { create: !replace, progress, signal });
              return true;
            } catch (error) {
              if (!replace && codeOf(error) === "exists") return false;
              throw error;
            }
          },
          makeDirectory: (path) => makeDirectory(session, path),
          explain,
        },
        askToReplace,
        setUploading,
        cancelUpload.current.signal,
      );
      const saved = done.files - done.failures.length - done.skipped;
      tell(`${saved} of ${done.files} files were uploaded.`);
      if (done.failures.length === 0) setUploading(null);
      files.current?.refresh();
    });

  const askToReplace = async (path: string, more: boolean): Promise<Answer> => {
    const { choice } = await ask({
      title: `“${shownName(path)}” is there already`,
      text: "Its content is lost when it is replaced. A folder is never replaced.",
      choices: [
        { id: "replace", label: "Replace", danger: true },
        ...(more ? [{ id: "replace all", label: "Replace all", danger: true }] : []),
        ...(more ? [{ id: "skip all", label: "Skip all" }] : []),
        { id: "skip", label: "Skip" },
      ],
    });
    return choice as Answer;
  };

  const act = (action: KeyAction) => {
    if (action.do === "nothing") return;
    const found = rowsOf(tree).find((row) => row.type === "entry" && row.entry.path === action.path) as
      EntryRow | undefined;
    if (found === undefined) return;
    setSelected(action.path);
    switch (action.do) {
      case "open":
      case "close":
        return files.current?.toggle(action.path, action.do === "open");
      case "activate":
        if (found.entry.kind === "directory") return files.current?.toggle(action.path, !found.open);
        return void open(action.path);
      case "rename":
        return void renameEntry(found.entry);
      case "delete":
        return void deleteEntry(found.entry);
    }
  };

  const overFolder = (event: DragEvent) =>
    (event.target as Element).closest<HTMLElement>("[data-folder]")?.dataset["folder"] ?? "";

  const drag = (event: DragEvent) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    setTarget(overFolder(event));
  };

  const drop = (event: DragEvent) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    setTarget(null);
    const items = dropped(event.dataTransfer.items, overFolder(event));
    void attempt("The dropped files could not be read.", async () => send(await items));
  };

  const choose = (input: HTMLInputElement) => {
    void send(chosen(input.files ?? [], folder));
    input.value = "";
  };

  const isBusy = uploading?.running ?? false;

  return (
    <div
      class={target === null ? "files-panel" : "files-panel dropping"}
      onDragEnter={drag}
      onDragOver={drag}
      onDragLeave={({ currentTarget, relatedTarget }) => {
        if (!(relatedTarget instanceof Node && currentTarget.contains(relatedTarget))) setTarget(null);
      }}
      onDrop={drop}
    >
      <div class="files-layout">
        <div class="files-side">
          <div class="file-bar" role="toolbar" aria-label="Files">
            <button type="button" onClick={() => void create("file")}>
              New file
            </button>
            <button type="button" onClick={() => void create("folder")}>
              New folder
            </button>
            <button type="button" onClick={() => fileInput.current?.click()} disabled={isBusy}>
              Upload files
            </button>
            <button type="button" onClick={() => folderInput.current?.click()} disabled={isBusy}>
              Upload folder
            </button>
            <button type="button" onClick={() => files.current?.refresh()}>
              Refresh
            </button>
            <label>
              <input type="checkbox" checked={hidden} onChange={() => setHidden(!hidden)} />
              Hidden files
            </label>
            <input
              ref={fileInput}
              type="file"
              multiple
              hidden
              data-upload="files"
              onChange={({ currentTarget }) => choose(currentTarget)}
            />
            <input
              ref={(input) => {
                input?.setAttribute("webkitdirectory", ""); // no attribute of the standard
                folderInput.current = input;
              }}
              type="file"
              hidden
              data-upload="folder"
              onChange={({ currentTarget }) => choose(currentTarget)}
            />
          </div>
          {/* Always there: what appears above the tree moves its rows under the pointer. */}
          <div
            class="file-bar"
            role="toolbar"
            aria-label={entry === null ? "Nothing is selected" : `Selected: ${shownName(nameOf(entry.path))}`}
          >
            <button type="button" disabled={entry === null} onClick={() => act({ do: "activate", path: selected })}>
              Open
            </button>
            <button type="button" disabled={entry?.kind !== "file"} onClick={() => void download(selected)}>
              Download
            </button>
            <button type="button" disabled={entry === null} onClick={() => entry && void renameEntry(entry)}>
              Rename
            </button>
            <button type="button" disabled={entry === null} onClick={() => entry && void deleteEntry(entry)}>
              Delete
            </button>
          </div>
          <FileTree
            tree={tree}
            selected={selected}
            target={target}
            act={act}
            note={(row) => (row.note === "more" ? files.current?.more(row.folder) : files.current?.refresh())}
          />
          {problem !== "" && (
            <p class="file-problem" role="alert">
              {problem}{" "}
              <button type="button" onClick={() => setProblem("")}>
                Dismiss
              </button>
            </p>
          )}
          {unwatched !== "" && (
            <p class="file-said" role="status">
              Changes by others are not shown by themselves now. {unwatched}
            </p>
          )}
          <Transfers
            uploading={uploading}
            downloads={downloads}
            cancel={() => cancelUpload.current.abort()}
            retry={(items) => void send(items)}
            dismiss={() => setUploading(null)}
          />
        </div>
        {opened !== "" && (
          <FileView
            key={opened}
            session={session}
            path={opened}
            editor={editor}
            ask={ask}
            onTouched={(touched) => (look.current = touched)}
            onEdited={(is) => (edited.current = is)}
            download={(path) => void download(path)}
            close={() => void closeFile()}
          />
        )}
      </div>
      {target !== null && (
        <p class="drop-hint" role="status">
          Drop to upload into {target === "" ? "the workspace" : `“${shownName(target)}”`}.
        </p>
      )}
      {dialog}
    </div>
  );
}
