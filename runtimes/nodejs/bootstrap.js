'use strict';
// The Node.js runtime inside a sandbox: loads a handler and serves invocations on a unix socket.
//
// Started as `node --max-old-space-size=<MiB> --max-semi-space-size=<MiB> bootstrap.js` (Node 18 or newer), with
// NANOGRID_SOCKET naming the socket and stdout and stderr already on the log pipe. In order: connect, HELLO,
// wait for LOAD (loading.js), then one INVOKE at a time until the worker closes the connection.
//
// - Results leave on the socket alone, so nothing printed can forge one. Descriptors close on exec.
// - A handler takes (event, context) and returns a value, a promise, or a generator, whose items are streamed; or it
//   takes (event, context, callback). Results are encoded by the rules of JSON.stringify, so NaN becomes null.
// - While a handler works, only what it started keeps the event loop alive. When nothing is left and it has not
//   finished, it never will: that is an error, and not a wait for ever.
// - An exception that nobody catches ends the invocation with an error, and then the process.

const { Channel, ...kinds } = require('./channel.js');
const { Context } = require('./context.js');
const { describe, textOf } = require('./failures.js');
const { loadHandler, LoadFailed } = require('./loading.js');
const nanogrid = require('./nanogrid.js');

const { LOAD, INVOKE, HELLO, LOADED, LOAD_FAILED, RESULT, ERROR, PROGRESS, PARTIAL, MAX_FRAME } = kinds;
const PROTOCOL = 1;
const OCTETS = { type: 'application/octet-stream' };
const UNFINISHED =
  'its promise or callback was never settled, and nothing is left that could settle it: look for a missing ' +
  'resolve(), callback() or await';

class ResultInvalid extends Error {}

/** Text or bytes as they are; undefined for what is neither. */
function raw(value) {
  if (Buffer.isBuffer(value) || typeof value === 'string') return value;
  if (ArrayBuffer.isView(value)) return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
  return value instanceof ArrayBuffer ? Buffer.from(value) : undefined;
}

/** `value` as JSON; throws ResultInvalid. */
function encode(value, what) {
  let text;
  try {
    text = JSON.stringify(value);
  } catch (error) {
    throw new ResultInvalid(`${what} is not JSON: ${textOf(error).split('\n')[0]}`);
  }
  if (text === undefined && value !== undefined) throw new ResultInvalid(`${what} is not JSON: it is a ${typeof value}`);
  return text ?? 'null';
}

/** The event as the handler gets it: decoded JSON, or a Buffer when it has another content type. */
function eventOf(meta, payload) {
  const kind = meta.type?.split(';')[0].trim().toLowerCase() ?? 'application/json';
  if (kind !== 'application/json' && !kind.endsWith('+json')) return payload;
  if (payload.length === 0) return null;
  try {
    return JSON.parse(payload.toString());
  } catch (error) {
    const invalid = new Error(`the event is not JSON: ${error.message}; send JSON, or name its Content-Type`);
    invalid.name = 'EventInvalid';
    invalid.stack = '';
    throw invalid;
  }
}

/** Calls the handler, whichever of the two shapes it has. */
function call(handler, event, context) {
  if (handler.length < 3) return handler(event, context);
  return new Promise((resolve, reject) => {
    const callback = (error, value) => (error === null || error === undefined ? resolve(value) : reject(error));
    const returned = handler(event, context, callback);
    if (typeof returned?.then === 'function') returned.then(resolve, reject);
  });
}

function isStream(value) {
  if (value === null || typeof value !== 'object') return false;
  return Symbol.asyncIterator in value || (typeof value.next === 'function' && Symbol.iterator in value);
}

/** What the items of a stream are together: text, bytes, or a list. */
function joined(items) {
  if (items.length === 0 || items.some((item) => raw(item) === undefined)) return items;
  if (items.every((item) => typeof item === 'string')) return items.join('');
  return Buffer.concat(items.map((item) => Buffer.from(raw(item))));
}

class Server {
  #channel;
  #load = null;
  #handler = null;
  #running = null; // The context of the running invocation.
  #loading = false;

  constructor(path) {
    const hello = { pid: process.pid, runtime: 'nodejs', protocol: PROTOCOL };
    this.#channel = new Channel(
      path,
      () => this.#channel.send(HELLO, hello),
      (kind, meta, payload) => {
        if (kind === INVOKE && this.#handler !== null) this.#invoke(meta, payload);
        else if (kind === LOAD && this.#load === null) this.#open(meta);
      },
    );
    nanogrid.progress = (value) => this.progress(this.#running, value);
    nanogrid.emit = (chunk) => this.emit(this.#running, chunk);
    globalThis.nanogrid = nanogrid;
    process.on('uncaughtException', (error) => this.#onUncaught(error));
    process.on('beforeExit', () => this.#onIdle());
  }

  progress(context, value) {
    const text = JSON.stringify(value === undefined ? null : value);
    if (context !== null && context === this.#running) this.#channel.send(PROGRESS, { progress: JSON.parse(text ?? 'null') });
  }

  emit(context, chunk) {
    const data = raw(chunk) ?? `${encode(chunk, 'the chunk')}\n`;
    if (context !== null && context === this.#running) this.#channel.send(PARTIAL, null, data);
  }

  async #open(load) {
    const started = performance.now();
    this.#load = load;
    this.#loading = true;
    this.#channel.hold(false);
    try {
      this.#handler = await loadHandler(load);
    } catch (error) {
      this.#refuse(error instanceof LoadFailed ? error.meta : describe(error, load.code));
      return;
    }
    this.#loading = false;
    this.#channel.hold(true);
    this.#channel.send(LOADED, { init_ms: performance.now() - started });
  }

  #refuse(meta) {
    this.#loading = false;
    this.#channel.send(LOAD_FAILED, meta);
    this.#channel.exit(1);
  }

  async #invoke(meta, payload) {
    const context = new Context(this.#load, meta, this);
    this.#running = context;
    this.#channel.hold(false);
    try {
      let value = await call(this.#handler, eventOf(meta, payload), context);
      if (isStream(value)) value = await this.#stream(value, context);
      const bytes = typeof value === 'string' ? undefined : raw(value);
      const body = bytes ?? encode(value, "the handler's result");
      if (body.length > MAX_FRAME - 1024) throw new ResultInvalid(`the handler's result has over ${MAX_FRAME - 1024} bytes`);
      this.#finish(context, RESULT, bytes === undefined ? null : OCTETS, body);
    } catch (error) {
      this.#fail(context, error);
    }
  }

  /** Sends each item at once; a value that the generator returns is the result instead of the items. */
  async #stream(value, context) {
    const items = [];
    const iterator = value[Symbol.asyncIterator]?.() ?? value[Symbol.iterator]();
    for (;;) {
      const { value: item, done } = await iterator.next();
      if (done) return item === undefined ? joined(items) : item;
      try {
        this.emit(context, item);
      } catch (error) {
        iterator.return?.();
        throw new ResultInvalid(`item ${items.length} of the stream: ${error.message}`);
      }
      items.push(item);
      await this.#channel.drained();
    }
  }

  #fail(context, error) {
    if (error instanceof ResultInvalid) {
      this.#finish(context, ERROR, { type: 'ResultInvalid', message: error.message, stack: [], class: 'RESULT_INVALID' });
    } else {
      this.#finish(context, ERROR, describe(error, this.#load.code));
    }
  }

  /** The first end of an invocation counts. */
  #finish(context, kind, meta, body) {
    if (this.#running !== context) return;
    this.#running = null;
    this.#channel.hold(true);
    this.#channel.send(kind, meta, body);
  }

  #onUncaught(error) {
    process.stderr.write(`Uncaught ${String(error?.stack ?? error)}\n`);
    if (this.#loading) {
      this.#refuse(describe(error, this.#load.code));
      return;
    }
    if (this.#running !== null) this.#fail(this.#running, error);
    this.#channel.exit(1);
  }

  #onIdle() {
    if (this.#loading) {
      this.#refuse({ type: 'NeverFinished', message: `the module did not finish loading: ${UNFINISHED}`, stack: [] });
    } else if (this.#running !== null) {
      const message = `the handler did not finish: ${UNFINISHED}`;
      this.#finish(this.#running, ERROR, { type: 'NeverFinished', message, stack: [] });
    }
  }
}

if (require.main === module) {
  if (process.pid === 1) {
    // The kernel ignores a default SIGTERM to the first process of a namespace. User code may add its own listener.
    process.on('SIGTERM', () => {
      if (process.listenerCount('SIGTERM') === 1) process.exit(143);
    });
  }
  new Server(process.env.NANOGRID_SOCKET ?? '/run/nanogrid/s');
}
