/** Any order of sending, losing, finishing and closing: every run is sent at most once and settled exactly once. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Core } from "../src/core.js";

const CELL = { type: "execute_code", sessionId: "s", code: "1" };

/** A server that may lose anything but what it says. */
class SmallServer {
  life = 0;
  seq = 0;
  seen = new Set();
  waiting = [];
  kept = [];
  followed = false;

  result(requestId, seq) {
    return { type: "execution_result", sessionId: "s", requestId, seq, success: true };
  }

  handle(frame) {
    const ids = { sessionId: "s", requestId: frame.requestId };
    if (frame.type === "open_session") {
      this.life ||= 1;
      return [{ type: "session_ready", ...ids, created: String(this.life), lastSeq: this.seq }];
    }
    if (frame.type === "resume") {
      this.followed = true;
      const kept = this.kept.filter(([seq]) => seq > frame.after);
      const known = new Set([...this.waiting, ...kept.map(([, id]) => id)]);
      const unknownRequests = frame.requestIds.filter((id) => !known.has(id));
      const answer = { type: "resumed", ...ids, created: String(this.life), unknownRequests };
      return [answer, ...kept.map(([seq, id]) => this.result(id, seq))];
    }
    assert.ok(!this.seen.has(frame.requestId), "sent twice");
    this.seen.add(frame.requestId);
    this.waiting.push(frame.requestId);
    return [];
  }

  finish() {
    if (this.waiting.length === 0) return [];
    this.seq += 1;
    const id = this.waiting.shift();
    this.kept.push([this.seq, id]);
    return [this.result(id, this.seq)];
  }

  close() {
    this.life += 1;
    this.seq = 0;
    this.waiting = [];
    this.kept = [];
  }
}

/** A client and a server, and what is between them; each method is a step. */
class Play {
  core = new Core("me");
  server = new SmallServer();
  up = false;
  toClient = [];
  runs = [];
  settled = new Map();

  constructor() {
    this.core.use("s", {}, { ownLinger: true });
  }

  note(effects) {
    for (const { kind, request, outcome } of effects) {
      if (kind !== "settled") continue;
      assert.ok(!this.settled.has(request.id), "settled twice");
      this.settled.set(request.id, outcome);
    }
  }

  run() {
    try {
      this.runs.push(this.core.submit(CELL, "run"));
    } catch (error) {
      assert.equal(error.name, "SessionLost");
    }
  }

  send() {
    const frame = this.up ? this.core.take() : null;
    if (frame !== null) this.toClient.push(...this.server.handle(frame));
  }

  deliver() {
    if (this.up && this.toClient.length > 0) this.note(this.core.receive(this.toClient.shift()));
  }

  finish() {
    const answers = this.server.finish();
    if (this.up) this.toClient.push(...answers);
  }

  cut() {
    if (!this.up) return;
    this.up = this.server.followed = false;
    this.toClient = [];
    this.core.take(); // it is written into the broken connection
    this.note(this.core.linkDown("cut"));
  }

  connect() {
    if (this.up) return;
    this.up = true;
    this.core.linkUp();
  }

  forget() {
    this.server.kept = [];
  }

  /** The journal drops what it has, also what a follower has not read. */
  overflow() {
    if (!this.up || !this.server.followed) return;
    this.forget();
    this.toClient = this.toClient.filter((frame) => frame.type !== "execution_result");
    const lost = { from: 2, to: 9 };
    this.toClient.push({ type: "resumed", sessionId: "s", created: String(this.server.life), lost });
  }

  close() {
    if (!this.up) this.server.close();
  }
}

const STEPS = ["run", "send", "deliver", "finish", "cut", "connect", "forget", "overflow", "close"];

/** The same numbers in each run (a linear congruential generator). */
function* numbers(seed) {
  for (let state = seed; ;) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    yield state / 2 ** 32;
  }
}

test("every run is sent at most once and settled exactly once", () => {
  const outcomes = new Map();
  for (let seed = 1; seed <= 3000; seed += 1) {
    const random = numbers(seed);
    const play = new Play();
    const length = Math.floor(random.next().value * 60);
    const steps = Array.from({ length }, () => STEPS[Math.floor(random.next().value * STEPS.length)]);
    for (const step of steps) play[step]();
    play.connect(); // in the end everything works
    for (let n = 0; n < 5 * length + 10; n += 1) for (const step of ["send", "deliver", "finish"]) play[step]();
    const story = `${seed}: ${steps}`;
    assert.ok(play.core.idle, story);
    assert.deepEqual([...play.settled.keys()].sort(), play.runs.map((run) => run.id).sort(), story);
    for (const [id, outcome] of play.settled) {
      const name = outcome.name ?? "answer";
      if (name === "SessionLost") assert.ok(!play.server.seen.has(id), story);
      if (name === "answer") assert.ok(play.server.seen.has(id), story);
      outcomes.set(name, (outcomes.get(name) ?? 0) + 1);
    }
  }
  assert.deepEqual([...outcomes.keys()].sort(), ["OutcomeUnknown", "SessionLost", "answer"], "all of them came about");
});

test("runs of an earlier client are followed as after a lost connection", () => {
  const core = new Core("b");
  core.use("s", {}, { ownLinger: false });
  core.linkUp();
  const [request] = core.adopt("s", { created: "1", seq: 7 }, [{ ...CELL, requestId: "a-3" }]);
  const resume = core.take();
  assert.equal(resume.type, "resume");
  assert.deepEqual([resume.after, resume.requestIds], [7, ["a-3"]]);
  assert.equal(core.take(), null, "the run itself is not sent again");
  const ids = { sessionId: "s", requestId: resume.requestId };
  core.submit({ type: "complete", sessionId: "s", code: "x" }, "question");
  assert.deepEqual(core.receive({ type: "resumed", ...ids, created: "1", unknownRequests: [] }), []);
  assert.equal(core.take().type, "complete");
  const [output] = core.receive({ type: "execution_output", sessionId: "s", requestId: "a-3", seq: 8, text: "x" });
  assert.equal(output.request, request);
  const [settled] = core.receive({ type: "execution_result", sessionId: "s", requestId: "a-3", seq: 9 });
  assert.equal(settled.kind, "settled");
  assert.deepEqual(core.position("s"), { created: "1", seq: 9 });
  assert.throws(() => core.adopt("s", { created: "1", seq: 9 }, []), /is open already/);
});

test("runs of an earlier client in a session that was closed have an unknown outcome", () => {
  const core = new Core("b");
  core.use("s", {}, { ownLinger: false });
  core.adopt("s", { created: "1", seq: 7 }, [{ ...CELL, requestId: "a-3" }]);
  core.linkUp();
  const resume = core.take();
  const answer = { type: "resumed", sessionId: "s", requestId: resume.requestId, created: "2", anew: true };
  const [settled] = core.receive(answer);
  assert.equal(settled.outcome.code, "outcome_unknown");
  assert.equal(core.position("s"), null);
});
