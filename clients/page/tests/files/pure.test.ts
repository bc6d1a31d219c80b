import { expect, test } from "vitest";

import { actionOf } from "../../src/files/keys.js";
import { lines, restored } from "../../src/files/line-ends.js";
import { OpenFile, type Choice, type Store, type Version } from "../../src/files/open-file.js";
import { faultOf, isWithin, join, nameOf, parentOf, shownName, shownSize } from "../../src/files/paths.js";
import {
  affected,
  EMPTY,
  FIRST,
  revealed,
  rowsOf,
  toggled,
  withFolder,
  withMore,
  type Entry,
  type EntryRow,
} from "../../src/files/tree.js";
import { upload, type Answer, type Item, type Progress } from "../../src/files/uploads.js";

const file = (path: string): Entry => ({ path, kind: "file", size: 1 });
const directory = (path: string): Entry => ({ path, kind: "directory", size: null });
const listing = (...entries: Entry[]) => ({ entries, truncated: false });

test("paths and their parts", () => {
  expect([parentOf("a/b/c"), parentOf("a")]).toEqual(["a/b", ""]);
  expect([nameOf("a/b"), nameOf("a"), join("", "a"), join("a", "b")]).toEqual(["b", "a", "a", "a/b"]);
  expect([isWithin("a/b", "a"), isWithin("ab", "a"), isWithin("a", "a"), isWithin("a", "")]).toEqual([
    true,
    false,
    true,
    true,
  ]);
  expect([shownSize(0), shownSize(1023), shownSize(1536)]).toEqual(["0 bytes", "1023 bytes", "1.5 KiB"]);
});

test("names are shown so that they cannot pretend", () => {
  expect(shownName("plain name.txt")).toBe("plain name.txt");
  expect(shownName("héllo 漢 👩‍🔬")).toBe("héllo 漢 👩‍🔬");
  expect(shownName("a\nb\tc")).toBe("a\\nb\\tc");
  expect(shownName("a\u202egpj.exe")).toBe("a\\u{202e}gpj.exe");
  expect(shownName("x\x1b[31m")).toBe("x\\u{1b}[31m");
  expect(shownName("a\ud800")).toBe("a\\u{d800}");
  expect(shownName(" a ")).toBe("\\u{20}a\\u{20}");
  expect(shownName("a\\n")).toBe("a\\\\n");
});

test("paths that cannot be made", () => {
  for (const path of ["", "/a", "a//b", "a/", "a/../b", ".", "a\0", "\ud800", "x".repeat(256), "é".repeat(128)]) {
    expect(faultOf(path), path).not.toBe("");
  }
  for (const path of ["a", "a/b", "...", ".hidden", "é".repeat(127), "a b\n"]) expect(faultOf(path), path).toBe("");
});

test("the tree: folders first, numbers by value, lazily", () => {
  let tree = withFolder(EMPTY, "", listing(file("b10"), file("b9"), directory("z")));
  const shown = () => rowsOf(tree).map((row) => (row.type === "entry" ? row.entry.path : row.text));
  expect(shown()).toEqual(["z", "b9", "b10"]);
  tree = toggled(tree, "z", true);
  expect(shown()).toEqual(["z", "Loading…", "b9", "b10"]);
  tree = withFolder(tree, "z", listing(file("z/a")));
  expect(rowsOf(tree)[1]).toMatchObject({ level: 2, position: 1, count: 1 });
  expect(affected(tree, ["z/new", "z/a", "unknown/x", "top"])).toEqual(["z", ""]);
  expect(shown()).toEqual(["z", "z/a", "b9", "b10"]);
  // A folder that has gone takes with it what was known below it.
  tree = withFolder(tree, "", listing(file("z")));
  expect(shown()).toEqual(["z"]);
  expect(tree.folders.has("z")).toBe(false);
  // What could not be listed again is still shown.
  tree = withFolder(tree, "", listing(file("a")), "no answer");
  expect(shown()).toEqual(["no answer", "a"]);
});

test("a folder with very many files is shown in parts", () => {
  let tree = withFolder(EMPTY, "", listing(...Array.from({ length: FIRST + 5 }, (_, at) => file(`f${at}`))));
  expect(rowsOf(tree).at(-1)).toMatchObject({ note: "more", text: "Show more (5 are not shown)" });
  tree = withMore(tree, "");
  expect(rowsOf(tree)).toHaveLength(FIRST + 5);
});

test("a path is revealed by opening what is above it", () => {
  const { tree, list } = revealed(withFolder(EMPTY, "", listing(directory("a"))), "a/b/c");
  expect([...tree.open]).toEqual(["", "a", "a/b"]);
  expect(list).toEqual(["a", "a/b"]);
});

test("the keys of the tree", () => {
  let tree = withFolder(EMPTY, "", listing(directory("d"), file("one"), file("two")));
  const rows = () => rowsOf(tree).filter((row): row is EntryRow => row.type === "entry");
  const press = (key: string, selected: string) => actionOf(key, rows(), selected);
  expect(press("ArrowDown", "d")).toEqual({ do: "select", path: "one" });
  expect(press("ArrowUp", "d")).toEqual({ do: "nothing" });
  expect(press("ArrowRight", "d")).toEqual({ do: "open", path: "d" });
  tree = withFolder(toggled(tree, "d", true), "d", listing(file("d/x")));
  expect(press("ArrowRight", "d")).toEqual({ do: "select", path: "d/x" });
  expect(press("ArrowLeft", "d/x")).toEqual({ do: "select", path: "d" });
  expect(press("ArrowLeft", "d")).toEqual({ do: "close", path: "d" });
  expect(press("End", "d")).toEqual({ do: "select", path: "two" });
  expect(press("t", "one")).toEqual({ do: "select", path: "two" });
  expect(press("D", "two")).toEqual({ do: "select", path: "d" });
  expect(press("Enter", "two")).toEqual({ do: "activate", path: "two" });
  expect(press("Delete", "two")).toEqual({ do: "delete", path: "two" });
  expect(press("Shift", "two")).toEqual({ do: "nothing" });
  expect(press("ArrowDown", "gone")).toEqual({ do: "select", path: "d" });
});

test("line ends are put back", () => {
  for (const content of ["", "a", "a\n", "a\nb", "a\r\nb\r\n", "\r\n", "\ufeffa\n"]) {
    expect(restored(lines(content)), JSON.stringify(content)).toBe(content);
  }
  expect(lines("a\r\nb\n").ends).toBe("mixed");
  expect(lines("a\rb").ends).toBe("mixed");
  expect(restored(lines("a\r\nb\n"))).toBe("a\nb\n");
});

/** A store in memory, in which others can write, too. */
class Shelf implements Store {
  files = new Map<string, string>();
  beforeWrite = () => {};
  read = async (path: string): Promise<Version | null> => {
    const content = this.files.get(path);
    return content === undefined ? null : { content, sha256: `v:${content}` };
  };
  write = async (path: string, content: string, over: string | null) => {
    this.beforeWrite();
    const now = await this.read(path);
    if ((now?.sha256 ?? null) !== over) return null;
    this.files.set(path, content);
    return `v:${content}`;
  };
}

async function opened(content: string) {
  const shelf = new Shelf();
  shelf.files.set("a", content);
  const file = new OpenFile("a", shelf);
  expect(await file.load()).toBe(true);
  const asked: (string | null)[] = [];
  const answering = (...choices: Choice[]) => {
    const left = [...choices];
    return async (theirs: string | null) => {
      asked.push(theirs);
      return left.shift()!;
    };
  };
  return { shelf, file, asked, answering };
}

test("a file that nobody else changed is saved without a question", async () => {
  const { shelf, file, asked, answering } = await opened("one\r\n");
  expect(file.saved).toBe("one\n");
  expect(await file.save("one\ntwo\n", answering())).toBe("saved");
  expect(await file.save("three\n", answering())).toBe("saved");
  expect(shelf.files.get("a")).toBe("three\r\n");
  expect(asked).toEqual([]);
});

test("a file that changed elsewhere: nothing is replaced without an answer", async () => {
  const { shelf, file, asked, answering } = await opened("old");
  shelf.files.set("a", "theirs");
  expect(await file.save("mine", answering("neither"))).toBe("cancelled");
  expect(shelf.files.get("a")).toBe("theirs");
  expect(await file.save("mine", answering("theirs"))).toBe("taken");
  expect([file.saved, shelf.files.get("a")]).toEqual(["theirs", "theirs"]);
  shelf.files.set("a", "theirs again");
  expect(await file.save("mine", answering("mine"))).toBe("saved");
  expect(shelf.files.get("a")).toBe("mine");
  expect(asked).toEqual(["theirs", "theirs", "theirs again"]);
});

test("the answer is about the version that was asked about, and no later one", async () => {
  const { shelf, file, asked, answering } = await opened("old");
  shelf.files.set("a", "second");
  let writes = 0;
  shelf.beforeWrite = () => {
    writes += 1;
    if (writes === 2) shelf.files.set("a", "third");
  };
  expect(await file.save("mine", answering("mine", "neither"))).toBe("cancelled");
  expect([shelf.files.get("a"), asked]).toEqual(["third", ["second", "third"]]);
});

test("a file that was deleted elsewhere is made again only when asked", async () => {
  const { shelf, file, asked, answering } = await opened("old");
  shelf.files.delete("a");
  expect(await file.save("mine", answering("neither"))).toBe("cancelled");
  expect(shelf.files.has("a")).toBe(false);
  expect(await file.look(() => "mine")).toBe("deleted");
  expect(await file.save("mine", answering())).toBe("saved"); // it was said already
  expect([shelf.files.get("a"), asked]).toEqual(["mine", [null]]);
});

test("an answer that was lost is no conflict", async () => {
  const { shelf, file, asked, answering } = await opened("old");
  shelf.files.set("a", "mine");
  expect(await file.save("mine", answering())).toBe("saved");
  expect(asked).toEqual([]);
});

test("a change elsewhere is taken only if nothing was typed", async () => {
  const { shelf, file } = await opened("old");
  expect(await file.look(() => "old")).toBe("same");
  shelf.files.set("a", "theirs");
  expect(await file.look(() => "mine")).toBe("differs");
  expect(file.saved).toBe("old");
  expect(await file.look(() => "old")).toBe("taken");
  expect(file.saved).toBe("theirs");
});

async function uploaded(items: Item[], there: string[], answers: Answer[]) {
  const saved = new Map<string, boolean>();
  const asked: string[] = [];
  const seen: Progress[] = [];
  const progress = await upload(
    items,
    {
      save: async (path, file, replace, report) => {
        if (path.endsWith("bad")) throw new Error("no room");
        report(file.size);
        if (there.includes(path) && !replace) return false;
        saved.set(path, replace);
        return true;
      },
      makeDirectory: async (path) => void saved.set(path, false),
      explain: (error) => (error as Error).message,
    },
    async (path) => {
      asked.push(path);
      return answers.shift()!;
    },
    (each) => seen.push(each),
    new AbortController().signal,
  );
  return { saved, asked, progress, seen };
}

const item = (path: string): Item => ({ path, file: new File(["1234"], "x") });

test("an upload: all files, failures beside them, and progress to the end", async () => {
  const items = [
    ...Array.from({ length: 250 }, (_, at) => item(`f/${at}`)),
    item("f/bad"),
    { path: "f/empty", file: null },
  ];
  const { saved, progress, seen } = await uploaded(items, [], []);
  expect(saved.size).toBe(251);
  expect(progress.failures.map(({ item, why }) => [item.path, why])).toEqual([["f/bad", "no room"]]);
  expect(progress).toMatchObject({ files: 252, doneFiles: 252, bytes: 1004, doneBytes: 1004, running: false });
  expect(seen.map(({ doneFiles }) => doneFiles)).toEqual(seen.map(({ doneFiles }) => doneFiles).sort((a, b) => a - b));
});

test("files that are there are replaced only when asked", async () => {
  const items = ["a", "b", "c", "d"].map(item);
  const { saved, asked, progress } = await uploaded(items, ["a", "b", "c"], ["replace", "skip all"]);
  expect([saved.get("a"), saved.has("b"), saved.has("c"), saved.get("d")]).toEqual([true, false, false, false]);
  expect(asked).toHaveLength(2);
  expect(progress.skipped).toBe(2);
});
