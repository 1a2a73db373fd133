'use strict';
// The frames of nanogrid/wire.py on a unix socket:
//   u32 size of what follows | u8 kind | u32 stream (0) | u32 size of meta | meta (JSON) | payload

const net = require('node:net');

const LOAD = 1, INVOKE = 2;
const HELLO = 16, LOADED = 17, LOAD_FAILED = 18, RESULT = 19, ERROR = 20, PROGRESS = 21, PARTIAL = 22;
const MAX_FRAME = 2 ** 30;
const COPY_LIMIT = 1 << 18; // Bytes up to which a payload is copied behind its header to leave in one write.

class Channel {
  #socket;
  #chunks = [];
  #have = 0;
  #onFrame;

  constructor(path, onConnect, onFrame) {
    this.#onFrame = onFrame;
    this.#socket = net.connect({ path }, onConnect);
    this.#socket.on('data', (chunk) => this.#feed(chunk));
    this.#socket.on('end', () => process.exit(0));
    this.#socket.on('error', (error) => {
      if (error.code === 'EPIPE' || error.code === 'ECONNRESET') process.exit(0);
      process.stderr.write(`nanogrid: the connection to the worker broke: ${error.message}\n`);
      process.exit(1);
    });
  }

  /** Keeps the process alive while it waits for the worker; off while user code is what should do so. */
  hold(on) {
    if (on) this.#socket.ref();
    else this.#socket.unref();
  }

  /** Sends one frame; meta is an object, payload a string or bytes. */
  send(kind, meta, payload = '') {
    const head = meta === null ? '{}' : JSON.stringify(meta);
    const text = typeof payload === 'string';
    const metaSize = Buffer.byteLength(head);
    const size = text ? Buffer.byteLength(payload) : payload.length;
    const joined = text || size <= COPY_LIMIT;
    const frame = Buffer.allocUnsafe(13 + metaSize + (joined ? size : 0));
    frame.writeUInt32BE(9 + metaSize + size, 0);
    frame[4] = kind;
    frame.writeUInt32BE(0, 5);
    frame.writeUInt32BE(metaSize, 9);
    frame.write(head, 13);
    if (text) frame.write(payload, 13 + metaSize);
    else if (joined) frame.set(payload, 13 + metaSize);
    this.#socket.write(frame);
    if (!joined) this.#socket.write(payload);
  }

  /** Resolves when the kernel took enough of what was sent to go on. */
  async drained() {
    if (this.#socket.writableNeedDrain) await new Promise((resolve) => this.#socket.once('drain', resolve));
  }

  /** Ends the process once all that was sent has left. */
  exit(status) {
    this.#socket.end(() => process.exit(status));
  }

  #feed(chunk) {
    this.#chunks.push(chunk);
    this.#have += chunk.length;
    while (this.#have >= 13) {
      if (this.#chunks[0].length < 13) this.#chunks = [Buffer.concat(this.#chunks)];
      const size = this.#chunks[0].readUInt32BE(0);
      if (size < 9 || size > MAX_FRAME) process.exit(1);
      if (this.#have < size + 4) return;
      const data = this.#chunks.length === 1 ? this.#chunks[0] : Buffer.concat(this.#chunks);
      const end = size + 4;
      this.#chunks = data.length > end ? [data.subarray(end)] : [];
      this.#have = data.length - end;
      const body = 13 + data.readUInt32BE(9);
      this.#onFrame(data[4], JSON.parse(data.toString('utf8', 13, body)), data.subarray(body, end));
    }
  }
}

module.exports = {
  Channel, LOAD, INVOKE, HELLO, LOADED, LOAD_FAILED, RESULT, ERROR, PROGRESS, PARTIAL, MAX_FRAME,
};
