/**
 * Runs scenarios that a test asks for, in Node or in a page: the same code against the same servers.
 *
 * In Node: `node tests/agent.js http://127.0.0.1:PORT`. In a browser: `agent.html` of that address.
 */

import * as kernelbridge from "../src/index.js";
import { scenarios } from "./scenarios.js";

const inNode = globalThis.document === undefined;
const home = inNode ? process.argv[2] : location.origin;
/** Node 22 and browsers have one. */
const WebSocket = globalThis.WebSocket ?? (await import("ws")).WebSocket;

/** Faults that nobody caught, since the scenario began. */
const uncaught = [];
if (inNode) {
  process.on("unhandledRejection", (error) => uncaught.push(error));
  process.on("uncaughtException", (error) => uncaught.push(error));
} else {
  addEventListener("unhandledrejection", ({ reason }) => uncaught.push(reason));
  addEventListener("error", ({ error, message }) => uncaught.push(error ?? message));
}

/** Ask the test to do something with the server or the wire; returns what it knows of the wire. */
async function control(what, argument = null) {
  const response = await fetch(`${home}/control`, { method: "POST", body: JSON.stringify({ what, argument }) });
  if (!response.ok) throw new Error(`${what}: ${await response.text()}`);
  return response.json();
}

async function play({ scenario, options }) {
  uncaught.length = 0;
  const clients = [];
  const connect = (url, more = {}) => {
    const client = new kernelbridge.Client(url, { userId: options.user, WebSocket, reconnect: 60, ...more });
    clients.push(client);
    return client;
  };
  try {
    await scenarios[scenario]({ ...options, connect, control, inNode, kernelbridge });
    await Promise.all(clients.map((client) => client.close()));
    await new Promise((resolve) => setTimeout(resolve)); // rejections are reported after the microtasks
    if (uncaught.length > 0) throw new Error(`nobody caught: ${uncaught.map((error) => error?.stack ?? error)}`);
    return null;
  } catch (error) {
    return `${error?.stack ?? error}`;
  }
}

for (;;) {
  const response = await fetch(`${home}/next`);
  if (response.status === 204) continue; // nothing yet
  if (response.status === 410) break;
  const todo = await response.json();
  const error = await play(todo);
  await fetch(`${home}/done`, { method: "POST", body: JSON.stringify({ number: todo.number, error }) });
}
