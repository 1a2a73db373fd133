'use strict';
// What a handler is given of its invocation. Its names are those of AWS Lambda where that has one.

const FAR_MS = 10 * 365 * 24 * 3600 * 1000; // Ten years: the time left when the function has no time limit.

class Context {
  #load;
  #deadlineMs;
  #say;
  callbackWaitsForEmptyEventLoop = true;

  /** `say` is an object with progress(context, value) and emit(context, chunk). */
  constructor(load, meta, say) {
    this.#load = load;
    this.#deadlineMs = meta.deadline_ms || 0;
    this.#say = say;
    this.id = meta.id ?? '';
    this.attempt = meta.attempt ?? 1;
    this.contentType = meta.type ?? 'application/json';
  }

  get awsRequestId() {
    return this.id;
  }

  get invocationId() {
    return this.id;
  }

  get functionName() {
    return this.#load.function;
  }

  /** The version's number as text. */
  get functionVersion() {
    return String(this.#load.version);
  }

  /** MiB. */
  get memoryLimitInMB() {
    return this.#load.memory_mb ?? 0;
  }

  get invokedFunctionArn() {
    return `arn:aws:lambda:local:000000000000:function:${this.functionName}:${this.functionVersion}`;
  }

  /** When the attempt times out, in ms since the epoch; null without a time limit. */
  get deadline() {
    return this.#deadlineMs || null;
  }

  /** Milliseconds until the time limit, never below 0; ten years when there is none. */
  getRemainingTimeInMillis() {
    return this.#deadlineMs ? Math.max(0, this.#deadlineMs - Date.now()) : FAR_MS;
  }

  /** Reports progress: anything JSON can hold. Does nothing once the invocation is over. */
  progress(value) {
    this.#say.progress(this, value);
  }

  /** Sends a piece of the output at once: text or bytes as they are, else one line of JSON. */
  emit(chunk) {
    this.#say.emit(this, chunk);
  }
}

module.exports = { Context };
