'use strict';
// What a JavaScript function may tell the grid while it works. It is `require('nanogrid')`, and the global
// `nanogrid` for ES modules. Between invocations both do nothing.
//
//   nanogrid.progress(0.4)        anything that JSON can hold
//   nanogrid.emit('a piece\n')    text, Buffer or Uint8Array as they are, else one line of JSON

module.exports = { progress() {}, emit() {} };
