import { describe, expect, test, vi } from "vitest";

import { choose, pictureAddress, textOf } from "../src/outputs/choose.js";
import { remoteHosts } from "../src/outputs/remote.js";
import { Outputs, restored, stored } from "../src/outputs/outputs.js";
import { coloured } from "../src/outputs/traceback.js";
import { nameProblem, readAddress, writeAddress } from "../src/state/address.js";
import { Holder } from "../src/state/holder.js";
import { fromFile, toFile } from "../src/state/ipynb.js";
import { newCell, Notebook } from "../src/state/notebook.js";
import { parsed, storageOf } from "../src/state/storage.js";

/** A storage that holds so many characters. */
function memory(limit = Infinity): Storage {
  const values = new Map<string, string>();
  const used = () => [...values].reduce((sum, [key, value]) => sum + key.length + value.length, 0);
  return {
    getItem: (key: string) => values.get(key) ?? null,
    setItem: (key: string, value: string) => {
      if (used() + value.length > limit) throw new DOMException("full", "QuotaExceededError");
      values.set(key, value);
    },
    removeItem: (key: string) => void values.delete(key),
    clear: () => values.clear(),
    key: (index: number) => [...values.keys()][index] ?? null,
    get length() {
      return values.size;
    },
  };
}

const keep = (storage = memory()) => storageOf(() => storage, "/", null, "main");

describe("the address", () => {
  test("has a token only until it is read", () => {
    const address = readAddress("#token=kb_x%26y&session=work");
    expect(address).toEqual({ token: "kb_x&y", session: "work", user: null });
    expect(writeAddress(address)).toBe("#session=work");
    expect(writeAddress({ session: null, user: null })).toBe("");
    expect(readAddress(writeAddress({ session: "a", user: "Ann & Co" })).user).toBe("Ann & Co");
  });

  test("names of sessions", () => {
    expect(["main", "a.b-c_1", "x".repeat(128)].map(nameProblem)).toEqual(["", "", ""]);
    for (const bad of ["", ".", "..", "a b", "ä", "a/b", "x".repeat(129)]) expect(nameProblem(bad)).not.toBe("");
  });
});

describe("which tab has a session", () => {
  test("the latest one that took it", () => {
    const kept = keep();
    let now = 0;
    const [first, second] = ["1", "2"].map((tab) => new Holder(kept, tab, () => now)) as [Holder, Holder];
    expect(first.elsewhere).toBe(false);
    first.take();
    expect([first.elsewhere, second.elsewhere]).toEqual([false, true]);
    second.take();
    expect([first.elsewhere, second.elsewhere]).toEqual([true, false]);
    first.renew(); // it has lost it
    first.release();
    expect(first.elsewhere).toBe(true);
    second.release();
    expect(first.elsewhere).toBe(false);
    second.take();
    now += 60_000; // timers of a hidden tab
    expect(first.elsewhere).toBe(true);
    now += 600_000; // it died
    expect(first.elsewhere).toBe(false);
  });
});

describe("the cells", () => {
  test("are the same after a reload, except for what runs", () => {
    const storage = memory();
    const notebook = new Notebook(keep(storage), () => {});
    const first = notebook.cells.value[0]!;
    notebook.edit(first, "print(1)");
    first.outputs.text("\x1b[31mred\x1b[0m\nplain");
    first.outputs.display({ "image/png": "x" }, {}, null, false);
    first.status.value = "done";
    notebook.save();
    notebook.saveOutputs(first);
    const second = notebook.insert(1, newCell("markdown", "# T"));
    second.status.value = "running";
    second.underWay = { runId: "r", position: { created: "c", seq: 7 } };
    const third = notebook.insert(2);
    third.status.value = "waiting";
    notebook.save();

    const again = new Notebook(keep(storage), () => {});
    expect(again.cells.value.map((cell) => [cell.id, cell.kind, cell.source.value, cell.status.value])).toEqual([
      [first.id, "code", "print(1)", "done"],
      [second.id, "markdown", "# T", "running"],
      [third.id, "code", "", "unknown"],
    ]);
    expect(again.cells.value[1]!.underWay).toEqual(second.underWay);
    const [text, picture] = again.cells.value[0]!.outputs.list;
    expect(text?.kind === "text" && text.lines.text()).toBe("red\nplain");
    expect(text?.kind === "text" && text.lines.tail[0]!.lines[0]![0]!.style.classes).toBe("ansi-red");
    expect(picture?.kind === "display" && picture.data).toEqual({ "image/png": "x" });
  });

  test("what the browser cannot keep is said, and nothing is lost meanwhile", () => {
    const said = vi.fn();
    const notebook = new Notebook(storageOf(() => { throw new DOMException("denied", "SecurityError"); }, "/", null, "s"), said); // prettier-ignore
    notebook.edit(notebook.cells.value[0]!, "x");
    expect(said).toHaveBeenCalledWith("cells");
    expect(notebook.cells.value[0]!.source.value).toBe("x");
    const full = new Notebook(keep(memory(500)), said);
    full.cells.value[0]!.outputs.text("x".repeat(1000));
    full.saveOutputs(full.cells.value[0]!);
    expect(said).toHaveBeenLastCalledWith("outputs");
  });

  test("move, go and come back as they were", () => {
    const notebook = new Notebook(keep(), () => {});
    const [a, b] = [notebook.cells.value[0]!, notebook.insert(1)];
    notebook.move(b, -1);
    notebook.move(b, -1);
    expect(notebook.cells.value).toEqual([b, a]);
    notebook.remove(b);
    notebook.remove(a);
    expect(notebook.cells.value.length).toBe(1);
    expect(notebook.undelete()).toBe(a);
    expect(notebook.undelete()).toBe(null);
  });

  test("a damaged storage is an empty one", () => {
    const storage = memory();
    keep(storage).set("cells", '[{"id":1},null,{"id":"a","kind":"code"},"x"]');
    expect(new Notebook(keep(storage), () => {}).cells.value.length).toBe(1);
    keep(storage).set("cells", "{");
    expect(new Notebook(keep(storage), () => {}).cells.value.length).toBe(1);
    expect(parsed("{")).toBe(null);
  });

  test("users and servers do not see each other's", () => {
    const storage = memory();
    storageOf(() => storage, "/", "a:b", "c").set("k", "1");
    expect(storageOf(() => storage, "/", "a", "b:c").get("k")).toBe(null);
    expect(storageOf(() => storage, "/other/", "a:b", "c").get("k")).toBe(null);
  });
});

describe("outputs", () => {
  test("text is one output until something else comes", () => {
    const outputs = new Outputs();
    outputs.text("a");
    outputs.text("b", "stderr");
    outputs.display({ "text/plain": "1" }, {}, "id", true);
    outputs.text("c");
    expect(outputs.list.map((each) => each.kind)).toEqual(["text", "display", "text"]);
    expect(outputs.update("id", { "text/plain": "2" }, {})).toBe(true);
    expect(outputs.update("other", {}, {})).toBe(false);
    outputs.clear(true);
    expect(outputs.list.length).toBe(3);
    outputs.text("new");
    expect(outputs.list.length).toBe(1);
  });

  test("endless displays are bounded", () => {
    const outputs = new Outputs();
    for (let i = 0; i < 1000; i++) outputs.display({ "text/plain": String(i) }, {}, null, false);
    expect([outputs.list.length, outputs.dropped]).toEqual([80, 920]);
    const shown = outputs.list.map((each) => each.kind === "display" && each.data["text/plain"]);
    expect([shown[0], shown[79]]).toEqual(["0", "999"]);
  });

  test("what is too large to be stored says so", () => {
    const outputs = new Outputs();
    outputs.display({ "image/png": "x".repeat(300_000) }, {}, null, false);
    for (let i = 0; i < 20_000; i++) outputs.text(`a line with some text ${i}\n`);
    const kept = stored(outputs);
    expect(JSON.stringify(kept).length).toBeLessThan(400_000);
    const texts = restored(kept).list.map((each) => (each.kind === "note" ? each.text : ""));
    expect(texts[0]).toContain("image/png: too large");
  });

  test("the best form is chosen, and pictures are addresses", () => {
    expect(choose({ "text/plain": "x", "text/html": "<b>" })).toBe("text/html");
    expect(choose({ "text/html": "<b>", "application/vnd.jupyter.widget-view+json": {} })).toContain("widget");
    expect(choose({ "x/unknown": 1 })).toBe("x/unknown");
    expect(choose({})).toBe(null);
    expect(choose({ constructor: 1 })).toBe("constructor");
    expect(textOf(["a", "b"])).toBe("ab");
    expect(pictureAddress("image/png", 'x" onerror="alert(1)')).toBe("data:image/png;base64,xonerror=alert1");
    expect(pictureAddress("image/svg+xml", "<svg>\ud800")).toBe("data:image/svg+xml,%3Csvg%3E%EF%BF%BD");
  });

  test("a traceback has colours, and all of its text", () => {
    const text = 'Traceback (most recent call last):\n  File "main.py", line 1\n    1/0\n    ^\nZeroDivisionError: x';
    const pieces = coloured(text);
    expect(pieces.map((piece) => piece.text).join("\n")).toBe(text);
    expect(pieces.at(-1)!.classes).toContain("ansi-red");
  });
});

describe("what an output would load", () => {
  test("scripts, styles, pictures and imports of other hosts", () => {
    const html = `<link rel=stylesheet href="//a.example/x.css"><script src='https://B.example:8/lib.js'></script>
      <script type=module>import x from "https://c.example/y.js"</script><img alt=x src=http://d.example/p.png>`;
    expect(remoteHosts(html)).toEqual(["a.example", "b.example:8", "c.example", "d.example"]);
  });

  test("not links, own data and namespaces", () => {
    const html = `<a href="https://a.example">x</a><img src="data:image/png;base64,x"><script>const t = "https://b.example"
      </script><svg xmlns="http://www.w3.org/2000/svg"></svg><script>${"x".repeat(100_001)}; import("https://c.example")</script>`;
    expect(remoteHosts(html)).toEqual([]);
  });

  test("takes no long time over text that is made for that", () => {
    expect(remoteHosts("<script ".repeat(100_000))).toEqual([]);
    expect(remoteHosts(`<script>${"'https://".repeat(20_000)}`)).toEqual([]);
  });
});

describe("a notebook as a file", () => {
  test("comes back with what its cells have shown", () => {
    const code = newCell("code", "print(1)\n6 * 7");
    code.count.value = 3;
    code.status.value = "done";
    code.outputs.text("out\nmore ");
    code.outputs.text("err\n", "stderr");
    code.outputs.display({ "text/plain": "42" }, {}, null, true);
    code.outputs.display({ "image/png": "AAAA" }, { "image/png": { width: 3 } }, "plot", false);
    code.outputs.note("the page's words");
    const text = newCell("markdown", "# Title");
    const file = toFile([code, text]);
    expect(JSON.parse(file)).toMatchObject({
      cells: [
        {
          cell_type: "code",
          execution_count: 3,
          source: ["print(1)\n", "6 * 7"],
          outputs: [
            { output_type: "stream", name: "stdout", text: ["out\n", "more "] },
            { output_type: "stream", name: "stderr", text: ["err\n"] },
            { output_type: "execute_result", execution_count: 3, data: { "text/plain": "42" } },
            { output_type: "display_data", data: { "image/png": "AAAA" }, metadata: { "image/png": { width: 3 } } },
          ],
        },
        { cell_type: "markdown", source: ["# Title"] },
      ],
      nbformat: 4,
      nbformat_minor: 5,
    });
    expect(file.endsWith("}\n")).toBe(true);
    const [first, second] = fromFile(file);
    expect([first!.kind, first!.source.value, first!.count.value, first!.status.value]).toEqual([
      "code",
      "print(1)\n6 * 7",
      3,
      "done",
    ]);
    expect([second!.kind, second!.source.value, second!.status.value]).toEqual(["markdown", "# Title", "done"]);
    expect(first!.id).not.toBe(code.id);
    const again = JSON.parse(toFile([first!, second!]));
    expect(again.cells.map(({ id, ...rest }: { id: string }) => rest)).toEqual(
      JSON.parse(file).cells.map(({ id, ...rest }: { id: string }) => rest),
    );
  });

  test("has errors in Jupyter's form", () => {
    const cell = newCell("code", "1 / 0");
    const traceback = 'Traceback (most recent call last):\n  File "x"\nZeroDivisionError: division: by zero\n';
    cell.outputs.display({ "application/vnd.kernelbridge.traceback": traceback }, {}, null, false);
    const [output] = JSON.parse(toFile([cell])).cells[0].outputs;
    expect(output).toMatchObject({ output_type: "error", ename: "ZeroDivisionError", evalue: "division: by zero" });
    expect(fromFile(toFile([cell]))[0]!.status.value).toBe("failed");
  });

  test.each([
    ["no", "it is not JSON"],
    ["[]", "it has no cells"],
    ['{"cells": 1}', "it has no cells"],
    ['{"cells": [], "nbformat": 3}', "it has format 3, expected 4"],
  ])("%s is refused with a reason", (text, reason) => {
    expect(() => fromFile(text)).toThrow(reason);
  });

  test("takes what other programs write, and nothing of the page's own", () => {
    const found = fromFile(
      JSON.stringify({
        nbformat: 4,
        cells: [
          null,
          { cell_type: "raw", source: "raw" },
          { cell_type: "code", source: ["a\n", 7, "b"], outputs: [{ output_type: "odd" }, 3, { data: 4 }] },
          {
            cell_type: "code",
            execution_count: "x",
            outputs: [{ output_type: "display_data", data: { "application/vnd.kernelbridge.traceback": "x" } }],
          },
        ],
      }),
    );
    expect(found.map((cell) => [cell.kind, cell.source.value, cell.count.value])).toEqual([
      ["markdown", "raw", null],
      ["code", "a\nb", null],
      ["code", "", null],
    ]);
    expect(found[2]!.outputs.list).toMatchObject([{ kind: "display", data: {} }]);
  });
});
