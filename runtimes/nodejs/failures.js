'use strict';
// What went wrong in user code, as data: {type, message, stack: [text]}.

const TEXT_LIMIT = 16384;
const FRAMES_LIMIT = 50;
const CHAIN_LIMIT = 5;

/** Describes anything that was thrown; `code` is the code folder, whose frames are shown. */
function describe(error, code) {
  try {
    const stack = stackOf(error, code);
    let cause = error?.cause;
    for (let n = 0; n < CHAIN_LIMIT && cause instanceof Error; n += 1, cause = cause.cause) {
      stack.push(`caused by ${typeOf(cause)}: ${textOf(cause)}`, ...stackOf(cause, code));
    }
    return { type: typeOf(error), message: textOf(error), stack };
  } catch {
    return { type: 'Error', message: '(the error cannot be read)', stack: [] };
  }
}

function typeOf(error) {
  if (!isError(error)) return 'Error';
  const name = String(error.name ?? 'Error');
  return clean(name === 'Error' ? error.constructor?.name || name : name);
}

function textOf(error) {
  if (isError(error)) return clean(String(error.message));
  let text;
  if (typeof error === 'string') text = error;
  else text = `${typeof error === 'object' ? JSON.stringify(error) : String(error)} was thrown, which is not an Error`;
  return clean(text);
}

function isError(error) {
  return error instanceof Error || (typeof error === 'object' && error !== null && 'message' in error);
}

/** Without lone surrogates, cut to the limit. */
function clean(text) {
  const cut = text.length <= TEXT_LIMIT ? text : `${text.slice(0, TEXT_LIMIT)} ... (${text.length} characters)`;
  return Buffer.from(cut, 'utf8').toString('utf8');
}

/** The user's frames, innermost first, as `handler (index.js:3:9)`; those of others only when there are none. */
function stackOf(error, code) {
  const lines = String(error?.stack ?? '').split('\n');
  const frames = lines
    .filter((line) => /^\s+at /.test(line) && !line.includes(__dirname) && !line.includes('node:internal'))
    .map((line) => clean(line.trim().slice(3).replaceAll('file://', '')));
  const own = frames.filter((line) => line.includes(`${code}/`));
  return (own.length ? own : frames).slice(0, FRAMES_LIMIT).map((line) => line.replaceAll(`${code}/`, ''));
}

module.exports = { describe, textOf, clean };
