/** What the client promises, played against a real server, over a wire that can break. */

/** A cell that notes each run, and ends when there is a file `go`. */
const GATED = `\
open('runs', 'a').write('x'); print('begun', flush=True)
import os, time
while not os.path.exists('go'): time.sleep(0.01)
print('done')
`;

function check(condition, what) {
  if (!condition) throw new Error(`not so: ${what}`);
}

function equal(found, expected, what = "") {
  const [one, other] = [found, expected].map((value) => JSON.stringify(value));
  if (one !== other) throw new Error(`${what} found ${one}, expected ${other}`);
}

/** Return the error with which a promise ends, which must be of this kind. */
async function fails(promise, kind) {
  try {
    await promise;
  } catch (error) {
    if (kind === undefined || error instanceof kind) return error;
    throw error;
  }
  throw new Error(`no error, expected ${kind?.name}`);
}

/** Wait for a state of a server or a connection, which tells nobody when it changes. */
async function until(condition) {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 10));
}

/** Start a run, and return it when it has begun. */
async function begin(session, code = GATED, options = {}) {
  let text = "";
  let run;
  await new Promise((resolve, reject) => {
    const onOutput = (output) => {
      text += output.text;
      resolve();
    };
    run = session.run(code, { onOutput, ...options });
    run.catch(reject);
  });
  return { run, seen: () => text };
}

async function sha256(bytes) {
  const digest = await globalThis.crypto.subtle.digest("SHA-256", bytes);
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const scenarios = {
  async everything_of_a_session({ url, connect, kernelbridge }) {
    const client = connect(url);
    const session = client.session("s", { env: { GREETING: "hello" }, limits: { pids: 128 } });
    const result = await session.run("print('hi')\n6 * 7", { timeout: 20 });
    equal([result.text, result.success, result.error, result.data["text/plain"]], ["hi\n42\n", true, null, "42"]);
    equal([result.executionCount, result.stdout, result.cause, result.statePreserved], [1, "hi\n", null, true]);
    equal((await session.sh("echo $GREETING; cd /tmp")).text, "hello\n");
    const command = await session.sh("pwd; exit 3");
    equal([command.text, command.exitCode, command.success], ["/tmp\n", 3, false]);

    const events = [];
    const code = "from IPython.display import display, HTML\nfor i in range(2): print(i)\ndisplay(HTML('<b>x</b>'))\n7";
    for await (const event of session.stream(code)) events.push(event);
    equal([events[0].type, events.at(-1).type], ["started", "result"]);
    equal(
      events
        .filter((event) => event.type === "output")
        .map((event) => event.text)
        .join(""),
      "0\n1\n",
    );
    equal(
      events.filter((event) => event.type === "display").map(({ bundle }) => bundle.html ?? bundle.text),
      ["<b>x</b>", "7"],
    );
    equal(
      events.at(-1).displays.map((bundle) => bundle.isResult),
      [false, true],
    );

    const failed = await fails(session.run("1/0", { check: true }), kernelbridge.CodeError);
    equal([failed.code, failed.summary], ["code_failed", "ZeroDivisionError: division by zero"]);
    check(failed.reason.includes("main.py"), failed.reason);
    await fails(session.run("import time; time.sleep(60)", { timeout: 0.3, check: true }), kernelbridge.RunTimeout);
    await fails(session.sh("false", { check: true }), kernelbridge.CommandFailed);
    const refused = await fails(session.run("1", { timeout: 1e9 }), kernelbridge.RequestRefused);
    equal([refused.code, refused.request, refused.retryable], ["invalid_field", "execute_code", false]);

    const found = await session.complete("'😀'; impor");
    equal([found.matches, "'😀'; impor".slice(found.start, found.end)], [["import"], "impor"]);
    check((await session.inspect("print")).includes("print"), "help");
    equal((await session.info()).terminals, []);
    check(
      (await client.sessions()).some((each) => each.sessionId === "s"),
      "the list of sessions",
    );

    const asked = [];
    const onInput = async (prompt, secret) => (asked.push([prompt, secret]), prompt.toUpperCase());
    const input = "from getpass import getpass\nprint(input('a'), getpass('b'))";
    equal((await session.run(input, { onInput })).text, "A B\n");
    equal(asked, [
      ["a", false],
      ["b", true],
    ]);
    equal(
      (
        await fails(
          session.run("input()", {
            onInput: () => {
              throw new Error("mine");
            },
          }),
        )
      ).message,
      "mine",
    );

    await session.run("x = 1");
    await session.restart();
    equal((await session.run("'x' in globals()")).text, "False\n");
    await session.close({ deleteFiles: true });

    const temporary = client.session();
    await temporary.run("open('f', 'w').write('x')");
    await temporary[Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]();
    check(!(await client.sessions()).some((each) => each.sessionId === temporary.sessionId), "it is deleted");
  },

  async files({ url, connect, kernelbridge }) {
    const { files } = connect(url).session("s");
    const saved = await files.write("data/ä b.txt", "héllo", { create: true });
    equal([saved.path, saved.size], ["data/ä b.txt", 6]);
    equal(await files.readText("data/ä b.txt"), "héllo");
    equal(
      (await fails(files.write("data/ä b.txt", "x", { create: true }), kernelbridge.RequestRefused)).code,
      "exists",
    );
    const other = "0".repeat(64);
    equal(
      (await fails(files.write("data/ä b.txt", "x", { ifMatch: other }), kernelbridge.RequestRefused)).code,
      "conflict",
    );
    await files.write("data/ä b.txt", new Uint8Array([0, 255]), { ifMatch: saved.sha256 });
    equal([...(await files.read("data/ä b.txt"))], [0, 255]);
    equal((await fails(files.read("nothing"), kernelbridge.RequestRefused)).code, "not_found");
    equal((await fails(files.read("../other/files/x"), kernelbridge.RequestRefused)).code, "invalid_field");
    await files.makeDirectory("a/b");
    await files.rename("data/ä b.txt", "a/c");
    const list = await files.list("", { recursive: true });
    equal(
      list.map(({ path, kind, size }) => [path, kind, size]),
      [
        ["a", "directory", null],
        ["a/b", "directory", null],
        ["a/c", "file", 2],
        ["data", "directory", null],
      ],
    );
    equal(list.truncated, false);
    equal((await fails(files.delete("a"), kernelbridge.RequestRefused)).code, "not_empty");
    await files.delete("a", { recursive: true });
    await files.write("empty", "");
    equal((await files.read("empty")).length, 0);

    const content = new Uint8Array(9 * 2 ** 20 + 7);
    for (let at = 0; at < content.length; at += 2 ** 16)
      globalThis.crypto?.getRandomValues(content.subarray(at, Math.min(at + 2 ** 16, content.length)));
    const moved = [];
    const large = await files.write("large", new Blob([content]), {
      progress: (done, size) => moved.push([done, size]),
    });
    equal(moved.at(-1), [content.length, content.length]);
    let [size, at] = [0, 0];
    for await (const piece of files.stream("large", { progress: (done) => (at = done) })) size += piece.length;
    equal([size, at], [content.length, content.length]);
    if (globalThis.crypto !== undefined) equal(await sha256(await files.read("large")), large.sha256);
    const stop = new AbortController();
    const progress = () => stop.abort(new Error("mine"));
    equal((await fails(files.read("large", { signal: stop.signal, progress }))).message, "mine");
    const failing = () => {
      throw new TypeError("of progress");
    };
    equal((await fails(files.write("large", new Blob([content]), { progress: failing }))).message, "of progress");
    equal((await fails(files.read("large", { progress: failing }))).message, "of progress");
  },

  async a_run_goes_on_while_the_link_is_lost({ url, wireUrl, connect, control }) {
    const broken = connect(wireUrl).session("s");
    const direct = connect(url).session("s");
    const { run, seen } = await begin(broken);
    const waiting = broken.run("open('second', 'a').write('x'); 'second'");
    await until(async () => (await direct.info()).queuedCells === 1);
    await control("cut");
    await direct.files.write("go", "");
    equal((await run).text, "begun\ndone\n");
    equal(seen(), "begun\ndone\n", "events go on without a gap, each once");
    equal((await waiting).text, "'second'\n");
    equal([await direct.files.readText("runs"), await direct.files.readText("second")], ["x", "x"]);
    equal((await control("look")).connections, 2);
  },

  async an_answer_that_breaks_with_the_link_is_kept({ url, wireUrl, connect, control }) {
    const broken = connect(wireUrl).session("s");
    await broken.run("pass");
    await control("cutBefore", "execution_result");
    equal((await broken.run("open('runs', 'a').write('x')")).text, "1\n");
    await control("cutBefore", "terminal_output");
    equal((await broken.sh("printf x >> runs; echo 1")).text, "1\n");
    equal(await connect(url).session("s").files.readText("runs"), "xx");
  },

  async an_answer_that_nobody_has_any_more_is_unknown({ url, wireUrl, connect, control, kernelbridge }) {
    const broken = connect(wireUrl).session("s");
    const direct = connect(url).session("s");
    await broken.run("pass");
    await control("cutBeforeAndRefuse", "execution_result");
    const run = broken.run("open('runs', 'a').write('x')");
    run.catch(() => {});
    await control("untilCut");
    for (let n = 0; n < 10; n += 1) await direct.run("pass"); // pushes it out of the journal
    await control("accept");
    const error = await fails(run, kernelbridge.OutcomeUnknown);
    check(error instanceof kernelbridge.ConnectionLost && error.message.includes("may have run"), error.message);
    equal([error.code, error.request.code], ["outcome_unknown", "open('runs', 'a').write('x')"]);
    equal(await direct.files.readText("runs"), "x");
  },

  async a_session_that_is_closed_meanwhile_is_lost({ url, wireUrl, connect, control, kernelbridge }) {
    const { OutcomeUnknown, SessionLost } = kernelbridge;
    let lost;
    const broke = new Promise((resolve) => (lost = resolve));
    const broken = connect(wireUrl, { onConnection: (connected) => connected || lost() }).session("s");
    const { run } = await begin(broken);
    run.catch(() => {});
    await control("refuse");
    await control("cut");
    await broke;
    const later = broken.run("x");
    later.catch(() => {});
    await connect(url).session("s").close();
    await control("accept");
    check((await fails(run, OutcomeUnknown)).reason.includes("is gone"), "it says why");
    equal((await fails(later, SessionLost)).sessionId, "s");
    equal((await broken.run("'x' in globals()")).text, "False\n");
  },

  async a_silent_peer_is_noticed({ url, wireUrl, connect, control, kernelbridge }) {
    const connections = [];
    const onConnection = (connected, why) => connections.push([connected, why]);
    const { run } = await begin(connect(wireUrl, { heartbeat: 1, reconnect: 1, onConnection }).session("s"));
    run.catch(() => {});
    await control("stall");
    check((await fails(run, kernelbridge.OutcomeUnknown)).message.includes("may have run"), "it says so");
    equal(connections.slice(0, 2), [
      [true, ""],
      [false, "the server gave no sign of life"],
    ]);
    await control("flow");
    await connect(url).session("s").interrupt();
  },

  async a_long_silent_cell_is_no_reason_to_drop({ wireUrl, connect, control }) {
    const session = connect(wireUrl, { heartbeat: 1.5 }).session("s");
    equal((await session.run("import time; time.sleep(2.5); 'slept'")).text, "'slept'\n");
    equal((await control("look")).connections, 1);
  },

  async a_terminal_goes_on_without_a_gap({ wireUrl, connect, control, kernelbridge }) {
    let terminal, cut;
    let cols = 80;
    const refused = [];
    const onConnection = (connected) => {
      if (connected || cut === undefined) return;
      fails((async () => terminal.write("lost"))()).then((error) => refused.push(error.name), cut);
      cols += 1;
      terminal.resize({ rows: 20, cols });
      cut();
    };
    const session = connect(wireUrl, { onConnection }).session("s");
    terminal = await session.terminal({ rows: 30, cols: 100, name: "main" });
    terminal.write("PS1=; stty -echo; stty size; for i in 1 2 3; do echo line-$i; read x; stty size; done; exit 3\r");
    let text = "";
    for (const number of [1, 2, 3]) {
      while (!text.includes(`line-${number}\r\n`)) text += await terminal.read({ wait: 60 });
      const broken = new Promise((resolve) => (cut = resolve));
      await control("cut");
      await broken;
      await until(() => {
        try {
          terminal.write("\r");
          return true;
        } catch {
          return false;
        }
      });
    }
    cut = undefined;
    equal(refused, ["ConnectionLost", "ConnectionLost", "ConnectionLost"]);
    for await (const more of terminal) text += more;
    equal([terminal.exitCode, terminal.cause], [3, "exited"]);
    check(text.includes("30 100"), "the size is set when it opens");
    for (const size of ["20 81", "20 82", "20 83"]) check(text.includes(size), `${size}: it is set again`);
    equal(
      [1, 2, 3].map((number) => text.split(`line-${number}\r\n`).length - 1),
      [1, 1, 1],
    );
    await fails((async () => terminal.write("x"))(), kernelbridge.Closed);

    const one = await session.terminal({ name: "kept" });
    one.write("PS1=; echo $((40 + 2)); x=7\r");
    for (let seen = ""; !seen.includes("42"); seen += await one.read());
    await fails(one.read({ wait: 0.05 }), kernelbridge.WaitTimeout);
    one.detach();
    equal([await one.read(), one.cause], ["", "detached"]);
    const other = await session.terminal({ name: "kept" });
    other.write("echo $((x + 1)); cat\r");
    for (let seen = ""; !seen.includes("8"); seen += await other.read());
    await other.close();
    await other.close();
    equal(await other.read(), "");
  },

  async a_transfer_breaks_with_the_link({ url, wireUrl, connect, control, kernelbridge }) {
    const direct = connect(url).session("s");
    const broken = connect(wireUrl).session("s");
    const content = new Uint8Array(12 * 2 ** 20).map((_, at) => (at * at) >> 7);
    const { sha256: expected } = await direct.files.write("large", content);
    let cuts = 0;
    const progress = async (done, size) => {
      equal(size, content.length);
      if (done > ((cuts + 1) * size) / 4 && cuts < 2) {
        cuts += 1;
        await control("cut");
      }
    };
    await direct.files.write("copy", await broken.files.blob("large", { progress }));
    const { sha256: found } = await direct.files.write("copy", await broken.files.read("large"));
    equal(found, expected);
    const { ranges } = await control("look");
    check(ranges >= 1, "it went on");

    await direct.files.write("file", "old");
    await control("cutAfterAndRefuse", 4 * 2 ** 20); // browsers send it again by themselves
    const error = await fails(broken.files.write("file", content), kernelbridge.OutcomeUnknown);
    check(error.message.includes("old one or the new one"), error.message);
    await control("accept");
    equal(await direct.files.readText("file"), "old");
  },

  async a_run_outlives_a_server_that_is_killed({ wireUrl, connect, control }) {
    const session = connect(wireUrl).session("s", { linger: 60 });
    await session.run("x = 'kept'");
    const { run, seen } = await begin(session);
    await control("kill");
    await control("start");
    await session.files.write("go", "");
    equal((await run).text, "begun\ndone\n");
    check(seen().endsWith("done\n"), seen());
    equal(await session.files.readText("runs"), "x");
    equal((await session.run("x")).text, "'kept'\n");
  },

  async a_frozen_server_is_found_again({ url, connect, control }) {
    let lost;
    const dropped = new Promise((resolve) => (lost = resolve));
    const onConnection = (connected, why) => connected || lost(why);
    const session = connect(url, { heartbeat: 1, onConnection }).session("s");
    const { run } = await begin(session);
    await control("freeze");
    equal(await dropped, "the server gave no sign of life");
    await control("thaw");
    await session.files.write("go", "");
    equal((await run).text, "begun\ndone\n");
    equal(await session.files.readText("runs"), "x");
  },

  async a_run_that_nobody_waits_for_is_interrupted_or_withdrawn({ url, connect, kernelbridge }) {
    const client = connect(url);
    const session = client.session("s");
    const stop = new AbortController();
    const { run } = await begin(session, GATED, { signal: stop.signal });
    const waiting = session.run("open('second', 'w')", { signal: stop.signal });
    const other = session.run("'other'");
    stop.abort(new Error("enough"));
    for (const promise of [run, waiting]) equal((await fails(promise)).message, "enough");
    equal((await other).text, "'other'\n");
    equal((await fails(session.run("1", { signal: stop.signal }))).message, "enough", "it is not even sent");
    equal(
      (await session.files.list()).map(({ path }) => path),
      ["runs"],
    );

    const late = await fails(session.run(GATED, { wait: 0.5 }), kernelbridge.WaitTimeout);
    check(late.message.includes("not within 0.5 s"), late.message);
    await session.files.write("go", "");
    equal((await session.run("open('runs').read()")).text, "'xx'\n", "it went on");
    await session.files.delete("go");

    for await (const event of session.stream(GATED)) if (event.type === "output") break;
    equal((await session.run("'free'")).text, "'free'\n", "leaving the loop interrupts");

    const { run: last } = await begin(session, GATED);
    equal(await session.interrupt(), "sigint");
    equal((await last).cause, "interrupted");
    const mine = await fails(
      session.run("print(1, flush=True)\n" + GATED, {
        onOutput: () => {
          throw new Error("mine");
        },
      }),
    );
    equal(mine.message, "mine");
    equal((await session.run("1")).text, "1\n");
  },

  async closing_ends_every_call_at_once({ url, wireUrl, connect, control, kernelbridge }) {
    const { Closed } = kernelbridge;
    const client = connect(wireUrl);
    const session = client.session("s");
    const { run } = await begin(session);
    const terminal = await session.terminal();
    const content = new Blob([new Uint8Array(32 * 2 ** 20)]);
    await session.files.write("large", content);
    const reading = (async () => {
      for (;;) if (!(await terminal.read())) return;
    })();
    const events = (async () => {
      for await (const _ of session.stream("2"));
    })();
    const calls = [run, session.run("1"), session.sh("sleep 60"), reading, events];
    let moving;
    const moves = new Promise((resolve) => (moving = resolve));
    calls.push(
      session.files.read("large", { progress: () => (moving(), new Promise((resolve) => setTimeout(resolve, 50))) }),
    );
    for (const call of calls) call.catch(() => {});
    await moves;
    await control("stall"); // the server cannot answer the close
    await client.close();
    for (const call of calls) await fails(call, Closed);
    for (const call of [
      () => session.run("1"),
      () => client.connect(),
      () => session.files.read("f"),
      () => session.terminal(),
    ]) {
      await fails(call(), Closed);
    }
    await client.close();
    await control("flow");
    const connecting = connect(url);
    const early = connecting.session("s").run("1");
    early.catch(() => {});
    await connecting.close();
    await fails(early, Closed);
    await connect(url).session("s").interrupt();
  },

  async no_server_is_an_error_at_once({ wireUrl, connect, control, kernelbridge }) {
    await control("refuse");
    const error = await fails(connect(wireUrl, { reconnect: Infinity }).connect(), kernelbridge.ConnectionLost);
    check(error.message.includes("does a server run there"), error.message);
    await control("accept");
    await control("garble");
    await fails(connect(wireUrl).sessions(), kernelbridge.ConnectionLost);
    equal((await fails((async () => connect("localhost:8001"))(), TypeError)) instanceof TypeError, true);
    equal((await fails((async () => connect("ws://x/?user_id=1"))(), TypeError)) instanceof TypeError, true);
  },

  async what_cannot_be_sent_is_refused_here({ url, connect, kernelbridge }) {
    const session = connect(url, { maxMessage: 4096 }).session("s");
    const error = await fails(session.run("#".repeat(5000)), kernelbridge.RequestRefused);
    equal([error.code, error.message.includes("4096")], ["frame_too_large", true]);
    await fails(session.run("'\ud800'"), TypeError);
    await fails(session.run("1", { timeout: NaN }), TypeError);
    equal((await session.run("'\u{1f600}'")).text, "'\u{1f600}'\n");
    const polluted = await session.run(
      "from IPython.display import display\n" +
        "display({'text/plain': 'x', '__proto__': {'polluted': 1}, 'constructor': 'y'}, raw=True)",
    );
    equal([{}.polluted, polluted.displays[0].text, polluted.displays[0].html], [undefined, "x", null]);
    equal(Object.getPrototypeOf(polluted.displays[0].data) === Object.prototype, true);
    for await (const event of session.stream("print('x')")) equal(event.polluted, undefined);
    await session.run("pass", { filename: "__proto__" });
    const odd = connect(url).session("__proto__");
    equal((await odd.run("1")).text, "1\n");
    await odd.close({ deleteFiles: true });
  },

  async a_token_is_the_first_message({ tokenUrl, token, connect, control, kernelbridge }) {
    const { LoginRefused } = kernelbridge;
    const wrong = connect(tokenUrl, { userId: undefined, token: "w".repeat(43) });
    const refused = await fails(wrong.connect(), LoginRefused);
    equal(refused.code, "unauthorized");
    const stranger = connect(tokenUrl, { userId: "grace", token });
    check((await fails(stranger.connect(), LoginRefused)).message.includes("user_id"), "the wrong user");
    const file = await fails(wrong.session("s").files.read("f"), LoginRefused);
    equal(file.status, 401);

    let [current, asked] = [token, 0];
    const client = connect(tokenUrl, { userId: undefined, token: async () => ((asked += 1), current) });
    const session = client.session("s");
    equal((await session.run("40 + 2")).text, "42\n");
    await session.files.write("a", "b");
    equal(await session.files.readText("a"), "b");
    await control("cutToken");
    equal((await client.sessions()).length, 1);
    check(asked >= 4, "for each connection, and for each transfer");
    await session.close({ deleteFiles: true });
    current = "w".repeat(43);
    await control("cutToken");
    const until = async () => {
      for (;;) await client.sessions();
    };
    const last = await fails(until());
    check(last instanceof LoginRefused || last instanceof kernelbridge.ConnectionLost, last);
    await fails(client.sessions(), LoginRefused);
    const failing = connect(tokenUrl, { token: () => Promise.reject(new Error("no token today")) });
    check((await fails(failing.connect())).message.includes("no token today"), "it says why");
    const seen = await control("tokenRequests");
    equal(seen.withToken, 0, "no token is in an address");
    check(seen.requests > 3, "the wire has seen requests");
  },

  async a_page_connects_at_once_when_the_network_is_back({ wireUrl, connect, control }) {
    let heard;
    const states = [];
    const onConnection = (connected) => (states.push(connected), heard?.());
    const session = connect(wireUrl, { onConnection }).session("s");
    equal((await session.run("x = 1; x")).text, "1\n");
    const { setTimeout } = globalThis;
    globalThis.setTimeout = () => 0; // a tab that is so throttled that no timer ever comes
    try {
      for (const [target, type] of [
        [globalThis, "online"],
        [globalThis, "pageshow"],
        [document, "visibilitychange"],
      ]) {
        for (const step of [() => control("cut"), () => target.dispatchEvent(new Event(type))]) {
          const changed = new Promise((resolve) => (heard = resolve));
          await step();
          await changed;
        }
      }
    } finally {
      globalThis.setTimeout = setTimeout;
    }
    equal(states, [true, false, true, false, true, false, true]);
    equal((await session.run("x")).text, "1\n");
  },

  async a_page_of_the_documentation_works({ html, url }) {
    const frame = document.createElement("iframe");
    frame.srcdoc = html.replaceAll("ws://localhost:8001", url);
    document.body.append(frame);
    const shown = () => frame.contentDocument?.body?.innerText ?? "";
    await until(
      () => shown().includes("done") && [...frame.contentDocument.images].some((image) => image.naturalWidth > 99),
    );
    equal(shown().includes("Hello from Python"), true, shown());
    frame.remove();
  },

  async a_page_uploads_nothing_to_where_a_redirect_leads({ connect, control, kernelbridge }) {
    const { url } = await control("redirect");
    const { files } = connect(url).session("s");
    const error = await fails(files.write("x", "secret"), kernelbridge.ConnectionLost);
    equal([error.code, error.message.includes("redirected")], ["connection_lost", true], error.message);
    equal(await control("arrived"), { there: "" });
  },
};
