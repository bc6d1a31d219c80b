/** Uploads: what was dropped or chosen, a few files at a time, with progress. */

import { faultOf, join } from "./paths.js";

export interface Item {
  /** Where it goes in the workspace. */
  path: string;
  /** Null for a folder without files. */
  file: File | null;
}

/** How files are saved and folders made; throws what the server says. */
export interface Target {
  /** Save a file; false if there is one already and `replace` is not set. */
  save: (
    path: string,
    file: File,
    replace: boolean,
    progress: (done: number) => void,
    signal: AbortSignal,
  ) => Promise<boolean>;
  makeDirectory: (path: string) => Promise<void>;
  explain: (error: unknown) => string;
}

export type Answer = "replace" | "skip" | "replace all" | "skip all";

export interface Progress {
  files: number;
  doneFiles: number;
  bytes: number;
  doneBytes: number;
  skipped: number;
  failures: { item: Item; why: string }[];
  /** Whether it goes on. */
  running: boolean;
}

/** Uploads at a time. The server takes 16 transfers of one user. */
const AT_ONCE = 4;

/**
 * Return what was dropped; call it while the event is handled, because the browser forgets it then.
 * @param folder Where it was dropped.
 */
export function dropped(items: DataTransferItemList, folder: string): Promise<Item[]> {
  const entries = [...items].map((item) => (item.kind === "file" ? item.webkitGetAsEntry() : null));
  return Promise.all(entries.filter((entry) => entry !== null).map((entry) => within(entry, folder))).then((all) =>
    all.flat(),
  );
}

/** Return what was chosen with an `<input type="file">`, which names files of a folder by their way below it. */
export function chosen(files: Iterable<File>, folder: string): Item[] {
  return [...files].map((file) => ({ path: join(folder, file.webkitRelativePath || file.name), file }));
}

async function within(entry: FileSystemEntry, folder: string): Promise<Item[]> {
  const path = join(folder, entry.name);
  if (entry.isFile) {
    const file = await new Promise<File>((done, failed) => (entry as FileSystemFileEntry).file(done, failed));
    return [{ path, file }];
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const items: Item[] = [];
  for (;;) {
    // A browser returns some entries at a time (Chromium 100), and none at the end.
    const some = await new Promise<FileSystemEntry[]>((done, failed) => reader.readEntries(done, failed));
    if (some.length === 0) break;
    for (const each of some) items.push(...(await within(each, path)));
  }
  return items.length > 0 ? items : [{ path, file: null }];
}

/**
 * Upload items. Files that cannot be saved are among `failures`; the others are saved all the same.
 *
 * @param ask Asks what to do with a file that is there already. One question at a time.
 * @param changed Called with the progress as often as it changes.
 */
export async function upload(
  items: readonly Item[],
  target: Target,
  ask: (path: string, more: boolean) => Promise<Answer>,
  changed: (progress: Progress) => void,
  signal: AbortSignal,
): Promise<Progress> {
  const progress: Progress = {
    files: items.length,
    doneFiles: 0,
    bytes: items.reduce((sum, { file }) => sum + (file?.size ?? 0), 0),
    doneBytes: 0,
    skipped: 0,
    failures: [],
    running: true,
  };
  let forAll: Answer | null = null;
  let asking: Promise<unknown> = Promise.resolve();

  const answerFor = (path: string): Promise<Answer> => {
    const answer = asking.then(async () => {
      if (forAll !== null) return forAll;
      const given = await ask(path, items.length > 1);
      if (given.endsWith("all")) forAll = given;
      return given;
    });
    asking = answer.catch(() => {});
    return answer;
  };

  const one = async (item: Item) => {
    let counted = 0;
    const report = (done: number) => {
      progress.doneBytes += done - counted;
      counted = done;
      changed({ ...progress });
    };
    try {
      signal.throwIfAborted();
      const fault = faultOf(item.path);
      if (fault) throw new Error(fault);
      if (item.file === null) await target.makeDirectory(item.path);
      else if (!(await target.save(item.path, item.file, false, report, signal))) {
        report(0);
        const isReplaced = (await answerFor(item.path)).startsWith("replace");
        if (isReplaced) await target.save(item.path, item.file, true, report, signal);
        else progress.skipped += 1;
      }
    } catch (error) {
      progress.failures.push({ item, why: signal.aborted ? "The upload was cancelled." : target.explain(error) });
    }
    report(item.file?.size ?? 0);
    progress.doneFiles += 1;
    changed({ ...progress });
  };

  changed({ ...progress });
  const waiting = [...items].reverse();
  await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      for (let item = waiting.pop(); item !== undefined; item = waiting.pop()) await one(item);
    }),
  );
  progress.running = false;
  changed({ ...progress });
  return progress;
}
