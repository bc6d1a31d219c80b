/** The parts of the client around its core, without a server. */

import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { Call } from "../src/calls.js";
import { Link, size, Target } from "../src/connection.js";
import { Core, Request } from "../src/core.js";
import { ConnectionLost, LoginRefused, RequestRefused, WaitTimeout } from "../src/errors.js";
import { Files, Transfer } from "../src/files.js";
import { Heartbeat } from "../src/heartbeat.js";
import { Client, CommandResult, Result, Session } from "../src/index.js";
import { Patience } from "../src/patience.js";
import { Bundle } from "../src/results.js";
import { Terminal } from "../src/terminal.js";

// -- time that a test moves --------------------------------------------------------

/** The clock and the timers of a test. */
class Time {
  now = 1000;
  timers = new Map();
  #next = 1;

  constructor(t) {
    mock.method(performance, "now", () => this.now);
    mock.method(globalThis, "setTimeout", (call, time = 0) => {
      this.timers.set(this.#next, { call, at: this.now + time });
      return this.#next++;
    });
    mock.method(globalThis, "clearTimeout", (id) => void this.timers.delete(id));
    t.after(() => mock.restoreAll());
  }

  /** Let time pass; timers that are due come in order, each `late` milliseconds late. */
  pass(time, late = 0) {
    const end = this.now + time;
    for (;;) {
      const [id, next] = [...this.timers].sort(([, one], [, other]) => one.at - other.at)[0] ?? [];
      if (next === undefined || next.at + late > end) break;
      this.timers.delete(id);
      this.now = next.at + late;
      next.call();
    }
    this.now = end;
  }
}

function heart(t) {
  const time = new Time(t);
  const seen = { asked: 0, dead: 0, left: 0, time };
  const ask = () => (seen.asked += 1);
  seen.heartbeat = new Heartbeat(20_000, { ask, isDead: () => (seen.dead += 1), left: () => seen.left });
  seen.heartbeat.start();
  return seen;
}

test("a server that is silent is asked, and dead when it stays silent", (t) => {
  const seen = heart(t);
  seen.time.pass(19_000);
  seen.heartbeat.heard();
  seen.time.pass(19_000);
  assert.equal(seen.asked, 0);
  seen.time.pass(1_500);
  assert.deepEqual([seen.asked, seen.dead], [1, 0]);
  seen.time.pass(9_000);
  seen.heartbeat.heard();
  seen.time.pass(20_000);
  assert.deepEqual([seen.asked, seen.dead], [2, 0]);
  seen.time.pass(10_001);
  assert.deepEqual([seen.asked, seen.dead], [2, 1]);
  seen.time.pass(100_000);
  assert.deepEqual([seen.asked, seen.dead, seen.time.timers.size], [2, 1, 0], "it is said once, and nothing is left");
});

test("a throttled tab or a machine that slept gets the time once more, and a dead server is still noticed", (t) => {
  const seen = heart(t);
  seen.time.pass(20_000);
  assert.equal(seen.asked, 1);
  seen.time.pass(60_000 + 10_000, 60_000); // the timer comes a minute late
  assert.equal(seen.dead, 0);
  seen.heartbeat.heard(); // what had arrived while nobody looked
  seen.time.pass(20_000);
  assert.deepEqual([seen.asked, seen.dead], [2, 0]);
  seen.time.pass(140_000, 60_000); // each timer comes a minute late
  assert.equal(seen.dead, 1);
});

test("a connection is alive while bytes leave", (t) => {
  const seen = heart(t);
  seen.time.pass(20_000);
  for (let n = 0; n < 5; n += 1) {
    seen.left += 1e6;
    seen.time.pass(10_000);
  }
  assert.equal(seen.dead, 0);
  seen.time.pass(10_000);
  assert.equal(seen.dead, 1, "it stands still");
});

test("a connection after one that was dropped has more time, until an answer is quick again", (t) => {
  const seen = heart(t);
  seen.time.pass(30_000);
  assert.equal(seen.dead, 1);
  seen.heartbeat.start();
  seen.time.pass(39_000);
  assert.equal(seen.dead, 1);
  seen.heartbeat.heard(); // late: a large message
  seen.time.pass(39_000);
  assert.equal(seen.dead, 1);
  seen.time.pass(1_001);
  assert.equal(seen.dead, 2);
  seen.heartbeat.start();
  seen.time.pass(21_000);
  seen.heartbeat.heard(); // at once
  seen.time.pass(30_001);
  assert.equal(seen.dead, 3);
  for (let n = 0; n < 20; n += 1) {
    seen.heartbeat.start();
    seen.time.pass(20_000 + 16 * 10_000 + 1);
    assert.equal(seen.dead, 4 + n, "the time that it has is bounded");
  }
});

test("a thread that was blocked reads what has come before it decides", (t) => {
  const seen = heart(t);
  seen.time.pass(20_000);
  seen.time.pass(10_300, 200); // a little late is late
  assert.deepEqual([seen.asked, seen.dead], [1, 0]);
  seen.time.pass(10_300, 200);
  assert.equal(seen.dead, 1);
});

test("asking at once does not wait for silence", (t) => {
  const seen = heart(t);
  seen.heartbeat.askNow();
  seen.heartbeat.askNow();
  assert.equal(seen.asked, 1);
  seen.time.pass(10_001);
  assert.equal(seen.dead, 1);
  seen.heartbeat.askNow();
  assert.deepEqual([seen.asked, seen.time.timers.size], [1, 0], "it is not watched any more");
});

// -- connections ------------------------------------------------------------------------

/** A WebSocket that does what the test says. */
class FakeSocket {
  static made = [];
  sent = [];
  bufferedAmount = 0;
  ended = false;

  constructor(url) {
    this.url = url;
    FakeSocket.made.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.ended = true;
  }

  gets(...frames) {
    for (const frame of frames) this.onmessage?.({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
  }
}

const turns = async () => {
  for (let n = 0; n < 20; n += 1) await null;
};

function linked(more = {}, target = new Target("ws://host:1", null, null)) {
  FakeSocket.made = [];
  const core = new Core("me");
  const outcomes = [];
  const connections = [];
  const link = new Link(target, core, {
    deliver: (effects) => outcomes.push(...effects),
    onConnection: (connected, why) => connections.push([connected, why]),
    WebSocket: FakeSocket,
    heartbeat: 20,
    reconnect: Infinity,
    ...more,
  });
  return { core, link, outcomes, connections, sockets: FakeSocket.made };
}

test("a lost connection is tried again at once when the network is back", async (t) => {
  const time = new Time(t);
  const { link, sockets } = linked();
  const connecting = link.connect();
  await turns();
  sockets[0].gets({ type: "connected" });
  await connecting;
  sockets[0].onclose({ code: 1006, reason: "" });
  for (let n = 1; n <= 8; n += 1) {
    await turns();
    time.pass(5_000);
    await turns();
    assert.equal(sockets.length, n + 1);
    sockets[n].onclose({ code: 1006, reason: "" });
  }
  await turns();
  assert.equal(sockets.length, 9);
  link.hurry();
  await turns();
  assert.equal(sockets.length, 10, "no time has passed");
  await link.close();
  await turns();
  assert.equal(time.timers.size, 0);
});

test("a connection is tried again without a limit, or until it is reached", async (t) => {
  const time = new Time(t);
  for (const [reconnect, least] of [
    [Infinity, 500],
    [7, 1],
  ]) {
    const { core, link, outcomes, sockets } = linked({ reconnect });
    const connecting = link.connect();
    await turns();
    sockets[0].gets({ type: "connected" });
    await connecting;
    core.submit({ type: "list_sessions" }, "question");
    link.flush();
    sockets[0].onclose({ code: 1006, reason: "" });
    for (let n = 0; n < 600; n += 1) {
      await turns();
      time.pass(5_000);
      await turns();
      sockets.at(-1).onclose?.({ code: 1006, reason: "" });
    }
    assert.ok(sockets.length >= least, `${sockets.length} attempts`);
    assert.equal(link.usable, reconnect === Infinity);
    assert.deepEqual(
      outcomes.map(({ outcome }) => outcome.name),
      reconnect === Infinity ? [] : ["ConnectionLost"],
    );
    await link.close();
    await turns();
  }
  assert.equal(time.timers.size, 0);
});

test("a server that ends each connection soon is not stormed", async (t) => {
  const time = new Time(t);
  const { link, sockets } = linked();
  const connecting = link.connect();
  for (let n = 0; n < 100; n += 1) {
    await turns();
    sockets.at(-1).gets({ type: "connected" });
    await turns();
    sockets.at(-1).onclose?.({ code: 1009, reason: "" });
    await turns();
    time.pass(1_000);
  }
  await connecting;
  assert.ok(sockets.length < 50, `${sockets.length} connections in 100 s`);
  await link.close();
});

test("a machine that slept longer than it may try again still tries once", async (t) => {
  const time = new Time(t);
  const { link, sockets, outcomes, core } = linked({ reconnect: 7 });
  const connecting = link.connect();
  await turns();
  sockets[0].gets({ type: "connected" });
  await connecting;
  core.submit({ type: "list_sessions" }, "question");
  link.flush();
  sockets[0].onclose({ code: 1006, reason: "" });
  await turns();
  time.pass(3_600_000, 3_500_000);
  await turns();
  assert.equal(sockets.length, 2);
  sockets[1].gets({ type: "connected" });
  await turns();
  assert.deepEqual([sockets[1].sent.map(({ type }) => type), outcomes], [["list_sessions"], []]);
  const closing = link.close();
  time.pass(2_001); // the server does not answer that either
  await closing;
});

/** A client whose connections are fake, and its session `s`; `answer` answers what needs no test. */
function client(more = {}) {
  FakeSocket.made = [];
  const made = new Client("ws://host:1", { WebSocket: FakeSocket, reconnect: Infinity, ...more });
  const sockets = FakeSocket.made;
  const open = async () => {
    await turns();
    sockets.at(-1).gets({ type: "connected" });
    await turns();
    for (const { type, requestId, sessionId } of sockets.at(-1).sent) {
      const ids = { requestId, sessionId, created: "then" };
      if (type === "open_session") sockets.at(-1).gets({ type: "session_ready", ...ids, lastSeq: 1 });
      if (type === "resume") sockets.at(-1).gets({ type: "resumed", ...ids });
    }
    await turns();
    return sockets.at(-1).sent.at(-1);
  };
  return { client: made, session: made.session("s"), sockets, open };
}

test("a token that cannot be had for a while is asked for again; one that is refused is not", async (t) => {
  const time = new Time(t);
  let [asked, fault] = [0, null];
  const token = async () => {
    asked += 1;
    if (fault !== null) throw fault;
    return "t";
  };
  const { client: made, session, sockets, open } = client({ token });
  const run = session.run("1");
  await turns();
  sockets[0].onopen();
  assert.deepEqual(sockets[0].sent, [{ type: "authenticate", token: "t" }]);
  const { requestId } = await open();
  fault = new TypeError("fetch failed");
  sockets[0].onclose({ code: 1006, reason: "" });
  for (let n = 0; n < 5; n += 1) {
    await turns();
    time.pass(5_000);
  }
  assert.deepEqual([asked >= 4, sockets.length], [true, 1]);
  fault = null;
  await turns();
  time.pass(5_000);
  await open();
  sockets[1].gets({ type: "execution_result", sessionId: "s", requestId, success: true, output: "1" });
  assert.equal((await run).text, "1");
  fault = new LoginRefused("Nobody is logged in", "log in");
  const other = assert.rejects(session.run("2"), { name: "OutcomeUnknown" });
  await turns();
  sockets[1].onclose({ code: 1006, reason: "" });
  await turns();
  time.pass(5_000);
  await other;
  await made.close();
});

test("a token that never comes is waited for as long as for a server", async (t) => {
  const time = new Time(t);
  const { client: made, session } = client({ token: () => new Promise(() => {}) });
  const run = assert.rejects(session.run("1"), { name: "ConnectionLost" });
  await turns();
  time.pass(10_001);
  await run;
  const stop = new AbortController();
  const writing = assert.rejects(session.files.write("f", "x", { signal: stop.signal }), /enough/);
  const reading = assert.rejects(session.files.read("f"), { name: "Closed" });
  await turns();
  stop.abort(new Error("enough"));
  await writing;
  await made.close();
  await reading;
  assert.equal(time.timers.size, 0);
});

test("a token that cannot be sent is in no error", async () => {
  for (const token of ["kb_SECRET\n# a comment", "kb_SECRET\0", " kb_SECRET", "", undefined, 7]) {
    const { session, client: made, sockets } = client({ token: () => token });
    for (const work of [session.run("1"), session.files.write("f", "x"), session.files.read("f")]) {
      const error = await work.catch((error) => error);
      assert.equal(error.name, "LoginRefused");
      assert.ok(!`${error.stack} ${error.cause}`.includes("SECRET"));
    }
    assert.equal(sockets.length, 0);
    await made.close();
  }
});

test("a request that is made while the link gives up gets another link", async (t) => {
  const time = new Time(t);
  for (let later = 0; later < 8; later += 1) {
    const { client: made, session, sockets, open } = client({ reconnect: 1 });
    const first = assert.rejects(session.run("1"), { name: "OutcomeUnknown" });
    await open();
    sockets[0].onclose({ code: 1006, reason: "" });
    for (let n = 0; n < 3; n += 1) {
      await turns();
      time.pass(1_500);
    }
    await turns();
    sockets.at(-1).onclose?.({ code: 1006, reason: "" }); // the last attempt
    for (let n = 0; n < later; n += 1) await null;
    const second = session.run("2").catch((error) => error.name);
    await first;
    for (let n = 0; n < 3; n += 1) {
      await turns();
      time.pass(10_001);
    }
    assert.equal(await second, "ConnectionLost");
    await made.close();
  }
});

test("nobody waits for a callback that never returns", async () => {
  const never = () => new Promise(() => {});
  const output = (requestId) => ({ type: "execution_output", sessionId: "s", requestId, text: "x", stream: "stdout" });
  const { client: made, session, sockets, open } = client();
  const stop = new AbortController();
  const aborted = assert.rejects(session.run("1", { onOutput: never, signal: stop.signal }), /enough/);
  const { requestId } = await open();
  sockets[0].gets(output(requestId));
  await turns();
  stop.abort(new Error("enough"));
  await aborted;
  await turns();
  assert.deepEqual([sockets[0].sent.at(-1).type, sockets[0].sent.at(-1).runId], ["interrupt", requestId]);

  const answered = session.run("2", { onOutput: never, wait: 0.005 });
  await turns();
  const second = sockets[0].sent.at(-1).requestId;
  sockets[0].gets(output(second));
  await turns();
  sockets[0].gets({ type: "execution_result", sessionId: "s", requestId: second, success: true, output: "2" });
  assert.equal((await answered).text, "2", "it has come in time");

  const streamed = session.stream("3", { signal: stop.signal });
  await assert.rejects(streamed.next(), /enough/);
  const again = new AbortController();
  const events = session.stream("4", { signal: again.signal });
  const event = events.next();
  await turns();
  const third = sockets[0].sent.at(-1).requestId;
  sockets[0].gets(output(third));
  assert.equal((await event).value.text, "x");
  again.abort(new Error("enough"));
  assert.equal(sockets[0].sent.at(-1).runId, third, "also while the loop does something else");
  await assert.rejects(events.next(), /enough/);

  const closed = assert.rejects(session.run("5", { onOutput: never }), { name: "Closed" });
  await turns();
  sockets[0].gets(output(sockets[0].sent.at(-1).requestId));
  await turns();
  const closing = made.close();
  await closed;
  sockets[0].onclose({ code: 1000 });
  await closing;
});

test("an input() without an answer, or a size that is none, is an error of the caller", async () => {
  const { client: made, session, sockets, open } = client();
  const run = assert.rejects(session.run("input()", { onInput: () => null }), TypeError);
  const { requestId } = await open();
  const question = { type: "input_request", sessionId: "s", requestId, inputId: "i", prompt: "", password: false };
  sockets[0].gets(question);
  await run;
  const opening = session.terminal();
  await turns();
  const frame = sockets[0].sent.at(-1);
  sockets[0].gets({ type: "terminal_opened", sessionId: "s", requestId: frame.requestId, reattached: false });
  const terminal = await opening;
  for (const size of [{ rows: NaN, cols: 80 }, { rows: 0, cols: 80 }, { rows: 24, cols: 1.5 }, { rows: 24 }]) {
    assert.throws(() => terminal.resize(size), RangeError);
  }
  assert.deepEqual([frame.rows, frame.cols], [24, 80]);
  const closing = made.close();
  sockets[0].onclose({ code: 1000 });
  await closing;
});

test("a transfer that is over starts no timer", async (t) => {
  const time = new Time(t);
  const transfer = new Transfer(new Set(), undefined);
  assert.equal(time.timers.size, 1);
  transfer.end();
  await transfer.report(undefined, 1, 2);
  assert.equal(time.timers.size, 0);
});

for (const text of ['["no", "object"]', "null", "no JSON", '{"no": "type"}', '{"type": 1}']) {
  test(`what is no message ends the connection, and every call: ${text}`, async (t) => {
    const time = new Time(t);
    const { core, link, outcomes, sockets } = linked();
    const connecting = link.connect();
    await turns();
    sockets[0].gets({ type: "connected" });
    await connecting;
    core.use("s", {}, { ownLinger: true });
    core.submit({ type: "execute_code", sessionId: "s" }, "run");
    link.flush();
    sockets[0].gets(text);
    assert.deepEqual(
      outcomes.map(({ outcome }) => outcome.name),
      ["ConnectionLost"],
    );
    assert.deepEqual([link.usable, sockets[0].ended, core.ready, time.timers.size], [false, true, false, 0]);
  });
}

test("a server that says nothing, or something else, is an error in bounded time", async (t) => {
  const time = new Time(t);
  const silent = linked();
  const connecting = assert.rejects(silent.link.connect(), /no answer within 10 s/);
  await turns();
  time.pass(10_001);
  await connecting;
  assert.equal(silent.sockets[0].ended, true);
  const other = linked();
  const refused = assert.rejects(other.link.connect(), /does not say `connected`/);
  await turns();
  other.sockets[0].gets({ type: "welcome" });
  await refused;
  assert.equal(time.timers.size, 0);
});

test("a member __proto__ of a message pollutes nothing", async () => {
  const { core, link, outcomes, sockets } = linked();
  const connecting = link.connect();
  await turns();
  sockets[0].gets({ type: "connected" });
  await connecting;
  core.submit({ type: "list_sessions" }, "question");
  link.flush();
  const evil = '{"__proto__": {"polluted": 1}, "constructor": {"prototype": {"polluted": 1}}}';
  sockets[0].gets(
    `{"type": "session_status", "sessionId": "__proto__", "status": "closed", "detail": ${evil}, "seq": 9}`,
    `{"type": "error", "requestId": "__proto__", "__proto__": {"polluted": 1}, "message": "x", "error": ${evil}}`,
    `{"type": "list_sessions_reply", "requestId": "me-1", "sessions": [], "__proto__": {"polluted": 1}}`,
  );
  assert.deepEqual(
    outcomes.map(({ outcome }) => outcome.sessions),
    [[]],
  );
  assert.equal({}.polluted, undefined);
  assert.equal(outcomes[0].outcome.polluted, undefined);
  await Promise.all([link.close(), turns().then(() => sockets[0].onclose({ code: 1000 }))]);
});

/** Connect a link, and return it with its first socket. */
async function connected(more, target) {
  const made = linked(more, target);
  const connecting = made.link.connect();
  await turns();
  made.sockets[0].gets({ type: "connected" });
  await connecting;
  return made;
}

const cut = (socket) => socket.onclose({ code: 1006, reason: "" });

test("a message that cannot be written ends the link, and is no error of whoever reads", async () => {
  const { core, link, outcomes, sockets } = await connected();
  core.submit({ type: "list_sessions", value: NaN }, "question");
  sockets[0].gets({ type: "pong" });
  assert.deepEqual([outcomes[0].outcome.name, link.usable], ["ConnectionLost", false]);
});

test("a connection that is closed as it is opened is an error", async () => {
  const { link, sockets } = linked();
  const connecting = assert.rejects(link.connect(), { name: "Closed" });
  await turns();
  sockets[0].gets({ type: "connected" });
  await Promise.all([link.close(), connecting]);
  assert.equal(sockets[0].ended, true);
});

test("a handshake that the package ws says was refused is a refused login", async () => {
  const { link, sockets } = linked();
  const refused = assert.rejects(link.connect(), { name: "LoginRefused", status: 403 });
  await turns();
  sockets[0].onerror({ message: "Unexpected server response: 403" });
  cut(sockets[0]);
  await refused;
});

test("a connection is kept while bytes leave, also when more is added", async (t) => {
  const time = new Time(t);
  const { core, link, sockets } = await connected();
  const socket = sockets[0];
  socket.send = ({ length }) => (socket.bufferedAmount += length);
  time.pass(20_000);
  for (let n = 0; n < 6; n += 1) {
    socket.bufferedAmount = Math.max(0, socket.bufferedAmount - 50);
    core.submit({ type: "list_sessions", text: "x".repeat(200) }, "question");
    link.flush();
    time.pass(10_000);
  }
  assert.equal(socket.ended, false);
  time.pass(10_000);
  assert.equal(socket.ended, true, "nothing left");
  await link.close();
  await turns();
});

test("an address that is refused is not shown", () => {
  for (const url of ["wsx://ada:SECRET@host", "host:1?token=SECRET", "ws://ada:SECRET@host"]) {
    assert.throws(
      () => new Target(url, null, null),
      (error) => error instanceof TypeError && !error.message.includes("SECRET"),
    );
  }
});

/** A server that opens sessions, and does what the test says with other requests. */
class FakeServer extends FakeSocket {
  static answer = () => {};

  constructor(url) {
    super(url);
    queueMicrotask(() => this.gets({ type: "connected" }));
  }

  send(text) {
    super.send(text);
    const { type, sessionId, requestId } = this.sent.at(-1);
    const gets = (frame) => queueMicrotask(() => this.gets({ sessionId, requestId, ...frame }));
    if (type === "open_session") gets({ type: "session_ready", created: "then", lastSeq: 0 });
    else if (type === "close_session") gets({ type: "close_session_reply" });
    else FakeServer.answer(this.sent.at(-1), gets);
  }

  close() {
    super.close();
    this.onclose?.({ code: 1000, reason: "" });
  }

  types() {
    return this.sent.map(({ type }) => type);
  }
}

function served(answer, options = {}) {
  FakeSocket.made = [];
  FakeServer.answer = answer;
  return { client: new Client("ws://host:1", { WebSocket: FakeServer, ...options }), sockets: FakeSocket.made };
}

const ends = ({ type }, gets) => {
  if (type !== "execute_code") return;
  gets({ type: "execution_output", text: "x", stream: "stdout" });
  gets({ type: "execution_result", success: true, output: "x" });
};

test("a session without a name is forgotten when it is closed", async () => {
  const seen = [];
  const client = {
    ask: async ({ type }) => void seen.push(type),
    leaveSession: (sessionId) => seen.push(`left ${sessionId}`),
  };
  await new Session(client, "tmp-1", () => {}, true).close({ deleteFiles: true });
  await new Session(client, "named", () => {}, false).close();
  assert.deepEqual(seen, ["close_session", "left tmp-1", "close_session"]);
});

test("an option that is null is absent", async (t) => {
  const use = mock.method(Core.prototype, "use");
  t.after(() => mock.restoreAll());
  const { client } = served(ends);
  await client.session("s", { linger: null }).run("1");
  assert.deepEqual([use.mock.calls[0].arguments[1].linger, use.mock.calls[0].arguments[2].ownLinger], [180, true]);
  await client.close();
  const time = new Time(t);
  const patience = new Patience({ wait: null });
  time.pass(1_000);
  assert.equal(patience.over, null);
});

test("questions and terminals can be waited for, and aborted", async () => {
  const { client, sockets } = served(() => {});
  const session = client.session("s");
  const isLate = { name: "WaitTimeout" };
  await assert.rejects(session.complete("x", 1, { wait: 0.01 }), isLate);
  await assert.rejects(session.inspect("x", 1, { wait: 0.01 }), isLate);
  await assert.rejects(session.files.list("", { wait: 0.01 }), isLate);
  await assert.rejects(session.terminal({ wait: 0.01 }), isLate);
  assert.deepEqual(sockets[0].types().slice(-2), ["open_terminal", "close_terminal"], "no shell is left behind");
  const stop = new AbortController();
  const aborted = session.complete("y", 1, { signal: stop.signal });
  await turns();
  stop.abort(new Error("enough"));
  await assert.rejects(aborted, /enough/);
  await client.close();
});

test("a call that is aborted already does not connect", async () => {
  const { client, sockets } = served(ends);
  await assert.rejects(client.session("s").run("1", { signal: AbortSignal.abort(new Error("enough")) }), /enough/);
  assert.equal(sockets.length, 0);
});

const files = (token = null) =>
  new Files({ sessionId: "s", target: new Target("http://host:1", token, null), transfers: new Set() });

for (const [cause, name] of [
  [{ code: "ENOTFOUND", syscall: "getaddrinfo" }, "ConnectionLost"],
  [{ code: "EHOSTUNREACH", syscall: "connect" }, "ConnectionLost"],
  [{ errors: [{ code: "ECONNREFUSED", syscall: "connect" }] }, "ConnectionLost"],
  [{ code: "UND_ERR_CONNECT_TIMEOUT" }, "ConnectionLost"],
  [{ code: "ECONNRESET", syscall: "read" }, "OutcomeUnknown"],
  [{ code: "UND_ERR_SOCKET" }, "OutcomeUnknown"],
]) {
  test(`an upload is unknown only if there was a connection: ${JSON.stringify(cause)}`, async (t) => {
    mock.method(globalThis, "fetch", () => Promise.reject(new TypeError("fetch failed", { cause })));
    t.after(() => mock.restoreAll());
    await assert.rejects(files().write("x", "y"), { name });
  });
}

test("a text that UTF-8 cannot hold is not saved as another one", async () => {
  await assert.rejects(files().write("x", "a\ud800b"), TypeError);
});

/** The upload of a browser, which another address answers. */
class OtherAnswer {
  static responseURL = "";
  static responseText = "{}";
  upload = {};
  status = 200;

  open() {}

  setRequestHeader() {}

  send() {
    Object.assign(this, { responseURL: OtherAnswer.responseURL, responseText: OtherAnswer.responseText });
    queueMicrotask(() => this.onload());
  }
}

for (const [url, text, says] of [
  ["http://other/stolen", "{}", /redirected to http:\/\/other/],
  ["http://host:1/api/sessions/s/files/x", "<html>Log in", /no kernelbridge server/],
  ["http://host:1/api/sessions/s/files/x", '{"sha256": "0", "size": 2}', /no kernelbridge server/],
]) {
  test(`an upload that something else answered was not saved: ${text}`, async (t) => {
    globalThis.XMLHttpRequest = OtherAnswer;
    mock.method(globalThis, "fetch", async () => ({ type: "basic", status: 404 }));
    t.after(() => (mock.restoreAll(), delete globalThis.XMLHttpRequest));
    Object.assign(OtherAnswer, { responseURL: url, responseText: text });
    await assert.rejects(files().write("x", "y"), { name: "OutcomeUnknown", message: says });
  });
}

test("an upload of a page asks once whether its address is redirected", async (t) => {
  globalThis.XMLHttpRequest = OtherAnswer;
  const ask = mock.method(globalThis, "fetch", async () => ({ type: "opaqueredirect", status: 0 }));
  t.after(() => (mock.restoreAll(), delete globalThis.XMLHttpRequest));
  Object.assign(OtherAnswer, { responseURL: "http://host:1/api/sessions/s/files/x", responseText: "{}" });
  const asked = files("kb_x");
  await assert.rejects(asked.write("x", "y"), { name: "ConnectionLost", message: /is redirected/ });
  ask.mock.mockImplementation(async () => Promise.reject(new TypeError("Failed to fetch")));
  await assert.rejects(asked.write("x", "y"), { name: "ConnectionLost", message: /was not saved/ });
  ask.mock.mockImplementation(async () => ({ type: "cors", status: 404 }));
  for (let n = 0; n < 2; n += 1) await assert.rejects(asked.write("x", "y"), { name: "OutcomeUnknown" });
  assert.equal(ask.mock.callCount(), 3);
  assert.equal(ask.mock.calls[0].arguments[1].headers.Authorization, "Bearer kb_x");
});

// -- addresses --------------------------------------------------------------------------

const target = new Target("ws://host:1/below/ws", null, "ada");

test("an address keeps the path below which a proxy has the server", () => {
  assert.equal(target.socket, "ws://host:1/below/ws?stream=true&user_id=ada");
  assert.equal(new Target(new URL("https://host/"), null, null).socket, "wss://host/ws?stream=true");
  const written = "http://host:1/below/api/sessions/mine/files/a%20b/%C3%A4%3F%23%5C..?user_id=ada";
  assert.equal(target.file("mine", ".//./a b/ä?#\\.."), written);
  assert.equal(target.file("mine", "..%2Fa"), "http://host:1/below/api/sessions/mine/files/..%252Fa?user_id=ada");
  for (const url of ["host:1", "ftp://host", "ws://user@host", "ws://host?token=x", "ws://host#x", "", "ws://"]) {
    assert.throws(() => new Target(url, null, null), TypeError);
  }
});

for (const [session, path] of [
  ["mine", "../../other/files/secret"],
  ["mine", "a/../../../other/files/secret"],
  ["mine", "./../x"],
  ["mine", "a/./b"],
  ["mine", ".."],
  ["mine", "."],
  ["mine", "./"],
  ["mine", ""],
  ["mine", "/etc/passwd"],
  ["mine", "\ud800"],
  ["..", "x"],
  ["a/../b", "x"],
  ["a\n", "x"],
  ["a b", "x"],
  ["\ud800", "x"],
  [".", "x"],
  ["", "x"],
]) {
  test(`no address of a file leads out of its session: ${session} ${JSON.stringify(path)}`, () => {
    assert.throws(() => target.file(session, path), { name: "RequestRefused", code: "invalid_field" });
  });
}

test("an address that is accepted is that of a file of the session, whatever a browser makes of it", () => {
  const odd = ["%2e%2e/x", "a\\..\\..\\x", "\t..", "..\n/x", "a//b", " ", "…", ".. /x", "..;/x"];
  for (const path of odd) {
    const { pathname } = new URL(target.file("mine", path));
    const prefix = "/below/api/sessions/mine/files/";
    assert.ok(pathname.startsWith(prefix), pathname);
    assert.equal(decodeURIComponent(pathname.slice(prefix.length)), path);
  }
});

// -- calls ------------------------------------------------------------------------------

const call = () => new Call(new Request({ type: "execute_code", requestId: "me-1" }, "run"));

test("events come in order, then the answer; what is over its limit is counted", async () => {
  const made = call();
  const text = "x".repeat(2 ** 20);
  for (let n = 0; n < 70; n += 1) made.put({ type: "execution_output", text, n });
  for (let n = 0; n < 64; n += 1) assert.equal((await made.next()).n, n);
  made.put({ type: "execution_output", text: "é", leftOut: 1 });
  assert.equal((await made.next()).leftOut, 1 + 6 * 2 ** 20);
  made.put({ type: "execution_output", text: "x" });
  assert.equal((await made.next()).leftOut, undefined);
  for (let n = 0; n < 64; n += 1) made.put({ type: "terminal_data", data: text });
  made.put({ type: "terminal_data", data: "x", leftOut: 1000 });
  for (let n = 0; n < 64; n += 1) await made.next();
  made.put({ type: "terminal_data", data: "y" });
  assert.equal((await made.next()).leftOut, 1001, "also what the server left out before what is left out here");
  const waits = made.next();
  made.settle({ type: "execution_result" });
  assert.equal(await waits, null);
  assert.equal((await made.answer()).type, "execution_result");
});

test("what a terminal leaves out is counted once, and not twice with a replay", async () => {
  const made = new Call(new Request({ type: "open_terminal", requestId: "me-1" }, "terminal"));
  const terminal = new Terminal({ sessionId: "s" }, made, "t");
  const data = (text, more = {}) => made.put({ type: "terminal_data", data: text, ...more });
  const large = "x".repeat(64 * 2 ** 20);
  made.put({ type: "terminal_opened", reattached: false });
  data(large);
  data("A", { leftOut: 1000 }); // is left out, with what the server left out
  assert.equal((await terminal.read()).length, large.length);
  data("B");
  assert.equal(await terminal.read(), "B");
  assert.equal(terminal.leftOut, 1001);
  data(large);
  data("C"); // is left out, and comes with the replay
  made.put({ type: "terminal_opened", reattached: true });
  data("BxC", { replay: true, leftOut: 2 * large.length + 1001 - 1 });
  assert.equal((await terminal.read()).length, large.length);
  assert.equal(await terminal.read(), "C");
  data("DE");
  assert.equal(await terminal.read(), "DE");
  made.put({ type: "terminal_opened", reattached: true });
  data("DEF", { replay: true, leftOut: 2 * large.length + 1003 });
  assert.equal(await terminal.read(), "F");
  assert.equal(terminal.leftOut, 1001);
  made.put({ type: "terminal_opened", reattached: true });
  data("H", { replay: true, leftOut: 2 * large.length + 1007 });
  assert.equal(await terminal.read(), "H");
  assert.equal(terminal.leftOut, 1002, "G was written without a connection, and is not kept any more");
});

test("displays that wait are bounded and counted like output", async () => {
  const made = call();
  const text = "x".repeat(2 ** 20);
  for (let n = 0; n < 70; n += 1) made.put({ type: "update_display_data", data: { "image/png": text, n } });
  for (let n = 0; n < 10_000; n += 1) made.put({ type: "clear_output", wait: true });
  made.put({ type: "input_request", inputId: "i" });
  made.settle({ type: "execution_result" });
  const seen = { update_display_data: 0, clear_output: 0, input_request: 0 };
  for (let frame = await made.next(); frame !== null; frame = await made.next()) seen[frame.type] += 1;
  assert.deepEqual([seen.update_display_data, seen.input_request], [63, 1]);
  assert.ok(seen.clear_output < 3000, `${seen.clear_output}`);
  made.put({ type: "execution_output", text: "x" });
  assert.equal((await made.next()).leftOut, 7 * (2 ** 20 + 2));
});

test("a reader that waits no longer loses no event", async () => {
  const made = call();
  const patience = new Patience({ wait: 0.001, what: "nothing", why: "ask again" });
  await assert.rejects(made.next(patience), { name: "WaitTimeout", message: "nothing: not within 0.001 s; ask again" });
  made.put({ type: "execution_output", text: "1" });
  assert.equal((await made.next()).text, "1");
  const stop = new AbortController();
  const aborted = new Patience({ signal: stop.signal });
  const waits = made.next(aborted);
  stop.abort(new Error("enough"));
  await assert.rejects(waits, /enough/);
  assert.ok(!(aborted.over.error instanceof WaitTimeout));
});

test("what was left out before a replay is shown by it, and not counted", async () => {
  const made = new Call(new Request({ type: "open_terminal", requestId: "me-1" }, "terminal"));
  const terminal = new Terminal({ sessionId: "s" }, made, "t");
  const text = "x".repeat(64 * 2 ** 20);
  made.put({ type: "terminal_opened", reattached: false });
  made.put({ type: "terminal_data", data: text });
  made.put({ type: "terminal_data", data: "BCDE" });
  assert.equal((await terminal.read()).length, text.length);
  made.put({ type: "terminal_opened", reattached: true });
  made.put({ type: "terminal_data", data: "xBCDE", replay: true, leftOut: text.length - 1 });
  made.put({ type: "terminal_data", data: "F" });
  assert.deepEqual([await terminal.read(), await terminal.read(), terminal.leftOut], ["BCDE", "F", 0]);
  made.put({ type: "terminal_opened", reattached: true });
  made.put({ type: "terminal_data", data: "EFG", replay: true, leftOut: text.length + 3 });
  assert.equal(await terminal.read(), "G");
});

test("what a terminal replays is shown once", async () => {
  const made = new Call(new Request({ type: "open_terminal", requestId: "me-1" }, "terminal"));
  const terminal = new Terminal({ sessionId: "s" }, made, "t");
  const data = (text, more = {}) => made.put({ type: "terminal_data", data: text, ...more });
  made.put({ type: "terminal_opened", reattached: false });
  await terminal.opened();
  data("abé", { leftOut: 2 });
  assert.equal(await terminal.read(), "abé");
  made.put({ type: "terminal_opened", reattached: true });
  data("bé", { replay: true, leftOut: 3 });
  data("cd", { replay: true });
  assert.equal(await terminal.read(), "cd");
  assert.deepEqual([terminal.replayed, terminal.leftOut], [true, 2]);
  data("e");
  assert.equal(await terminal.read(), "e");
  made.put({ type: "terminal_opened", reattached: false });
  await assert.rejects(terminal.read(), { name: "SessionLost", sessionId: "s" });
});

// -- results and frames -------------------------------------------------------------------

test("frames are measured in bytes, and what JSON has not is refused", () => {
  assert.equal(size({ type: "x", text: "é漢😀" }), '{"type":"x","text":""}'.length + 9);
  for (const value of [NaN, Infinity, "\ud800", "a\udc00b", 1n, ["\udfff"]]) {
    assert.throws(() => size({ type: "x", value }), TypeError);
  }
});

test("pictures are addresses that cannot leave their attribute", () => {
  const png = new Bundle({ "image/png": 'iVBOR"><script>', "text/plain": ["a", "b"] }, {}, false);
  assert.equal(png.src, "data:image/png;base64,iVBORscript");
  assert.deepEqual([png.mime, png.png, png.text, png.html], ["image/png", null, "ab", null]);
  const svg = new Bundle({ "image/svg+xml": '<svg onload="x()">\ud800</svg>' }, {}, true);
  assert.equal(svg.src, "data:image/svg+xml,%3Csvg%20onload%3D%22x()%22%3E%EF%BF%BD%3C%2Fsvg%3E");
  assert.deepEqual(new Bundle({ "image/png": "AAH/" }, {}, false).png, new Uint8Array([0, 1, 255]));
  assert.equal(new Bundle({}, {}, false).src, null);
  assert.equal(new Bundle({ "application/json": { a: 1 } }, {}, false).mime, null);
});

test("results say what happened, and raise when they are asked to", () => {
  const frame = {
    type: "execution_result",
    success: false,
    output: "x\n",
    error: "E: y",
    traceback: "T",
    durationMs: 5,
  };
  const result = new Result(frame);
  assert.deepEqual([String(result), result.duration, result.stdout, result.data], ["x\nT", 0.005, "x\n", {}]);
  assert.throws(() => result.check(), { name: "CodeError", summary: "E: y", reason: "T", result });
  assert.throws(() => new Result({ ...frame, cause: "timeout" }).check(), { name: "RunTimeout" });
  assert.throws(() => new Result({ ...frame, cause: "kernel_died" }).check(), { name: "RunEnded", code: "run_ended" });
  const command = new CommandResult({ type: "terminal_output", output: "no", exitCode: 2 });
  assert.throws(() => command.check(), { name: "CommandFailed", message: "The command ended with 2: no" });
});

test("without a WebSocket the error says what to give", (t) => {
  const own = globalThis.WebSocket;
  t.after(() => (globalThis.WebSocket = own));
  globalThis.WebSocket = undefined; // Node 22 has one
  assert.throws(() => new Client("ws://host"), /package `ws`/);
});

test("errors are one tree", () => {
  const error = new RequestRefused("What", "why", { code: "c", retryable: true, request: "r" });
  assert.deepEqual(
    [error.name, error.message, error.code, error.retryable],
    ["RequestRefused", "What: why", "c", true],
  );
  assert.ok(error instanceof Error);
  assert.equal(new ConnectionLost("What", "why").retryable, true);
});
