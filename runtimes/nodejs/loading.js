'use strict';
// How the Node.js runtime finds a handler: environment and folder of user code, then CommonJS or ES module.

const fs = require('node:fs');
const Module = require('node:module');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const { describe } = require('./failures.js');

const CHECK = 'check `handler` in nanogrid.toml';
const NANOGRID = path.join(__dirname, 'nanogrid.js');

/** No handler: `meta` is that of a LOAD_FAILED frame. */
class LoadFailed extends Error {
  constructor(type, message, stack = []) {
    super(message);
    this.meta = { type, message, stack };
  }
}

/** Makes the environment of user code and loads its handler; rejects with LoadFailed. */
async function loadHandler(load) {
  enter(load);
  provideModule();
  const [modulePath, name] = split(load.handler);
  const file = find(load.code, modulePath);
  const loaded = await importFile(load.code, file);
  const handler = loaded[name] ?? loaded.default?.[name];
  const where = path.relative(load.code, file);
  if (handler === undefined) {
    const all = { ...loaded.default, ...loaded };
    const own = Object.keys(all).filter((key) => typeof all[key] === 'function' && key !== 'default');
    const has = own.length ? `it exports ${own.slice(0, 8).join(', ')}` : 'it exports no function';
    throw new LoadFailed('HandlerNotFound', `${where} does not export '${name}' (${has}): ${CHECK}`);
  }
  if (typeof handler !== 'function') {
    throw new LoadFailed('HandlerNotFound', `'${name}' in ${where} is a ${typeof handler}, not a function: ${CHECK}`);
  }
  return handler;
}

/** Environment and working folder of user code; of the bootstrap's environment only PATH stays. */
function enter(load) {
  const env = { PATH: process.env.PATH ?? '/usr/local/bin:/usr/bin:/bin' };
  Object.assign(env, { HOME: '/tmp', LANG: 'C.UTF-8', TMPDIR: '/tmp' }, load.env ?? {});
  env.NANOGRID_FUNCTION = String(load.function);
  env.NANOGRID_VERSION = String(load.version);
  env.NANOGRID_MEMORY_MB = String(load.memory_mb ?? 0);
  for (const key of Object.keys(process.env)) delete process.env[key];
  Object.assign(process.env, env);
  try {
    process.chdir(load.code);
  } catch (error) {
    throw new LoadFailed('CodeMissing', `the code folder cannot be entered: ${error.message}`);
  }
}

/** Makes `require('nanogrid')` work everywhere, and `import` of it where Node has synchronous hooks. */
function provideModule() {
  const resolve = Module._resolveFilename;
  Module._resolveFilename = function (request, ...rest) {
    return request === 'nanogrid' ? NANOGRID : resolve.call(this, request, ...rest);
  };
  Module.registerHooks?.({
    resolve: (request, context, next) =>
      request === 'nanogrid' ? { url: pathToFileURL(NANOGRID).href, shortCircuit: true } : next(request, context),
  });
}

/** `index.handler` or `dir/file.handler` as [path without ending, name of the function]. */
function split(handler) {
  const dot = handler.lastIndexOf('.');
  const modulePath = handler.slice(0, Math.max(dot, 0)).replace(/^\.\//, '');
  const name = handler.slice(dot + 1);
  if (!modulePath || !name || path.isAbsolute(modulePath) || modulePath.split('/').includes('..')) {
    const message = `'${handler}' does not name a handler: write file.function, such as index.handler`;
    throw new LoadFailed('HandlerInvalid', message);
  }
  return [modulePath, name];
}

function find(code, modulePath) {
  for (const base of [modulePath, modulePath.replaceAll('.', '/')]) {
    for (const ending of ['.js', '.mjs', '.cjs', '/index.js', '/index.mjs', '/index.cjs']) {
      const file = path.join(code, base + ending);
      if (fs.existsSync(file)) return file;
    }
  }
  const names = fs.readdirSync(code).sort();
  const more = names.length > 8 ? ` and ${names.length - 8} more` : '';
  const holds = names.slice(0, 8).join(', ') + more || 'no files';
  throw new LoadFailed('HandlerNotFound', `the code has no ${modulePath}.js, .mjs or .cjs (it holds ${holds}): ${CHECK}`);
}

async function importFile(code, file) {
  try {
    if (file.endsWith('.mjs')) return await import(pathToFileURL(file).href);
    try {
      return require(file);
    } catch (error) {
      if (error?.code !== 'ERR_REQUIRE_ESM' && error?.code !== 'ERR_REQUIRE_ASYNC_MODULE') throw error;
      return await import(pathToFileURL(file).href);
    }
  } catch (error) {
    throw importFailure(error, code, path.relative(code, file));
  }
}

/** What the author of a module that does not load should read. */
function importFailure(error, code, where) {
  const told = describe(error, code);
  if (error?.code === 'MODULE_NOT_FOUND' || error?.code === 'ERR_MODULE_NOT_FOUND') {
    const missing = /Cannot find (?:module|package) '([^']+)'/.exec(told.message)?.[1] ?? 'a module';
    let advice = `add '${missing}' to the dependencies in package.json and deploy again`;
    if (missing === 'nanogrid') advice = 'an ES module uses the global `nanogrid` instead of an import';
    else if (/^[./]/.test(missing)) advice = 'check the path and that the file is deployed';
    return new LoadFailed('ModuleNotFound', `${where} needs '${missing}', which the code does not have: ${advice}`, told.stack);
  }
  if (error instanceof SyntaxError) {
    const line = /^(\S+:\d+)\n/.exec(String(error.stack))?.[1].replace('file://', '').replace(`${code}/`, '');
    const esm = /import statement|Unexpected token 'export'/.test(told.message);
    const advice = esm ? '; for ES modules name the file .mjs or set "type": "module" in package.json' : '';
    return new LoadFailed('SyntaxError', `syntax error in ${line ?? where}: ${told.message}${advice}`, told.stack);
  }
  return new LoadFailed(told.type, `${where} failed while it was loaded: ${told.type}: ${told.message}`, told.stack);
}

module.exports = { loadHandler, LoadFailed };
