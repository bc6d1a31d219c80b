/** The core has the conversations of `tests/vectors`, as the Python client's core has them. */

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { Core } from "../src/core.js";
import { ConnectionLost } from "../src/errors.js";

const folder = fileURLToPath(new URL("../../../tests/vectors/", import.meta.url));
const files = readdirSync(folder).filter((name) => name.endsWith(".json"));
const all = files.flatMap((name) => JSON.parse(readFileSync(folder + name, "utf8")).conversations);
const conversations = new Map(all.map((each) => [each.name, each]));

/** A core, and the names of its requests. */
class Conversation {
  core = new Core("me");
  requests = new Map();
  ids = new Map();

  play({ after, steps }) {
    if (after !== undefined) this.play(conversations.get(after));
    for (const step of steps) {
      const [verb] = Object.keys(step);
      assert.ok(Object.hasOwn(verbs, verb), `unknown step: ${verb}`);
      verbs[verb](this, step);
    }
  }

  takeAll() {
    const taken = [];
    for (let frame = this.core.take(); frame !== null; frame = this.core.take()) taken.push(frame);
    return taken;
  }

  /** Put ids in the place of names. */
  filled(frame) {
    if (Array.isArray(frame)) return frame.map((each) => this.filled(each));
    if (typeof frame === "object" && frame !== null) {
      return Object.fromEntries(Object.entries(frame).map(([name, value]) => [name, this.filled(value)]));
    }
    if (typeof frame !== "string" || !frame.startsWith("$")) return frame;
    assert.ok(this.ids.has(frame.slice(1)), `unknown name: ${frame}`);
    return this.ids.get(frame.slice(1));
  }

  /** Compare what is expected of a frame that was taken, and name it if its name is new. */
  compare(found, expected) {
    const name = expected.requestId?.slice(1);
    if (name && !this.ids.has(name)) this.ids.set(name, found.requestId);
    for (const [field, value] of Object.entries(this.filled(expected))) {
      assert.deepEqual(found[field] ?? null, value, JSON.stringify(found));
    }
  }

  effects(found, { effects: expected = [] }, received) {
    assert.equal(found.length, expected.length, JSON.stringify(found));
    for (const [at, effect] of found.entries()) {
      const { happened, settled, error, says = "", ...fields } = expected[at];
      assert.equal(effect.kind, happened === undefined ? "settled" : "happened");
      assert.equal(effect.request, this.requests.get(happened ?? settled));
      if (error === undefined) {
        assert.equal(effect.frame ?? effect.outcome, received);
        continue;
      }
      assert.equal(effect.outcome.name, error);
      assert.ok(effect.outcome.message.includes(says), effect.outcome.message);
      for (const [name, value] of Object.entries(fields)) assert.equal(effect.outcome[name], value);
    }
  }
}

const verbs = {
  use: ({ core }, { use, options, ownLinger }) => core.use(use, options, { ownLinger }),
  leave: ({ core }, { leave }) => core.leave(leave),
  submit(conversation, { submit, kind, as, error }) {
    const frame = conversation.filled(submit);
    if (error !== undefined) return void assert.throws(() => conversation.core.submit(frame, kind), { name: error });
    const request = conversation.core.submit(frame, kind);
    conversation.requests.set(as, request);
    conversation.ids.set(as, request.id);
  },
  takes(conversation, { takes }) {
    const taken = conversation.takeAll();
    assert.equal(taken.length, takes.length, JSON.stringify(taken));
    taken.forEach((frame, at) => conversation.compare(frame, takes[at]));
  },
  takesOne: (conversation, { takesOne }) => conversation.compare(conversation.core.take(), takesOne),
  receive(conversation, step) {
    const received = conversation.filled(step.receive);
    conversation.effects(conversation.core.receive(received), step, received);
  },
  up: ({ core }) => core.linkUp(),
  down: (conversation, step) => conversation.effects(conversation.core.linkDown(step.down), step),
  giveUp(conversation, step) {
    const error = new ConnectionLost(step.giveUp, step.why);
    conversation.effects(conversation.core.giveUp(error, step.why), step);
  },
  abandon: ({ core, requests }, { abandon }) => core.abandon(requests.get(abandon)),
  notify({ core, requests }, { notify, frame, sent }) {
    assert.equal(core.notify(requests.get(notify), frame), sent);
  },
  reply: ({ core, requests }, { reply, inputId, value }) => core.answerQuestion(requests.get(reply), inputId, value),
  idle: ({ core }, { idle }) => assert.equal(core.idle, idle),
  sessions: ({ core }, { sessions }) => assert.equal(core.sessions, sessions),
};

for (const conversation of conversations.values()) {
  test(conversation.name, () => new Conversation().play(conversation));
}
