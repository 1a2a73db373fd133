"""How the Python runtime finds a handler, and how it tells what went wrong in user code."""

# (No pathlib: it would cost every sandbox memory and boot time.)

import importlib
import inspect
import linecache
import os
import sys
import time
import traceback

TEXT_LIMIT = 16384
"""Characters of an error's message that are kept."""
FRAMES_LIMIT = 50
CHAIN_LIMIT = 5
OWN_FILES = frozenset(
    os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    for name in ("bootstrap.py", "channel.py", "context.py", "loading.py")
)
CHECK = "check `handler` in nanogrid.toml"


class LoadFailed(Exception):
    """No handler: `meta` is that of a LOAD_FAILED frame."""

    def __init__(self, kind, message, stack=()):
        super().__init__(message)
        self.meta = {"type": kind, "message": message, "stack": list(stack)}


def load_handler(load):
    """Makes the environment of user code and imports its handler.

    Args:
        load: the meta of the LOAD frame.

    Raises:
        LoadFailed: with the cause and what to check.
    """
    enter(load)
    code, handler = load["code"], load["handler"]
    module_name, name = split_handler(handler)
    refuse_clash(code, module_name)
    module = import_user_module(code, module_name)
    found = getattr(module, name, None)
    if found is None:
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        has = f"it has {', '.join(own[:8])}" if own else "it has none"
        raise LoadFailed("HandlerNotFound", f"module {module_name!r} has no function {name!r} ({has}): {CHECK}")
    if not callable(found):
        kind = type(found).__name__
        raise LoadFailed("HandlerNotFound", f"{handler!r} is a {kind}, not a function: {CHECK}")
    try:
        inspect.signature(found).bind(None, None)
    except TypeError:
        message = f"{handler!r} must take two arguments: def {name}(event, context)"
        raise LoadFailed("HandlerSignature", message) from None
    except ValueError:
        pass  # A builtin without a signature.
    return found


def enter(load):
    """Environment, folder and import path of user code; of the bootstrap's environment only PATH stays."""
    env = {"PATH": os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")}
    env.update({"HOME": "/tmp", "LANG": "C.UTF-8", "TMPDIR": "/tmp"})
    env.update(load.get("env") or {})
    env["NANOGRID_FUNCTION"] = str(load["function"])
    env["NANOGRID_VERSION"] = str(load["version"])
    env["NANOGRID_MEMORY_MB"] = str(load.get("memory_mb", 0))
    os.environ.clear()
    os.environ.update(env)
    if "TZ" in env:
        time.tzset()
    try:
        os.chdir(load["code"])
    except OSError as error:
        raise LoadFailed("CodeMissing", f"the code folder cannot be entered: {error}") from None
    sys.path.insert(0, load["code"])
    importlib.invalidate_caches()


def split_handler(handler):
    """`main.handler`, `pkg.mod.handler` or `dir/mod.handler` as (module, function)."""
    path, _, name = handler.rpartition(".")
    module = path.removeprefix("./").replace("/", ".")
    if not name or not all(module.split(".")):
        message = f"{handler!r} does not name a handler: write module.function, such as main.handler"
        raise LoadFailed("HandlerInvalid", message)
    return module, name


def refuse_clash(code, module):
    """A file named like a module that is loaded already would silently not be used."""
    top = module.partition(".")[0]
    if top in sys.modules and (os.path.exists(f"{code}/{top}.py") or os.path.isdir(f"{code}/{top}")):
        message = f"the handler's module has the name of a standard module, {top!r}: rename it and {CHECK}"
        raise LoadFailed("HandlerInvalid", message)


def import_user_module(code, name):
    """Imports the handler's module; whatever its top level raises becomes a LoadFailed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        stack = stack_of(error, code)
        if missing and f"{name}.".startswith(f"{missing}."):
            message = f"the code has no module {name!r} (it holds {listing(code)}): {CHECK}"
            raise LoadFailed("HandlerNotFound", message) from None
        top = missing.partition(".")[0]
        message = f"{text_of(error)}, imported by {name!r}: add {top!r} to requirements.txt and deploy again"
        raise LoadFailed("ModuleNotFoundError", message, stack) from None
    except SyntaxError as error:
        where = os.path.relpath(error.filename, code) if error.filename else name
        line = (error.text or "").strip()
        message = f"syntax error in {where}, line {error.lineno}: {error.msg}" + (f": {line}" if line else "")
        raise LoadFailed(type(error).__name__, message, stack_of(error, code)) from None
    except BaseException as error:
        told = describe(error, code)
        message = f"module {name!r} failed while it was imported: {told['type']}: {told['message']}"
        raise LoadFailed(told["type"], message, told["stack"]) from None


def listing(folder):
    """A few names of what lies in a folder, for a message."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return "nothing that can be read"
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "no files"


def text_of(error):
    """The message of any exception, as text that always encodes."""
    try:
        text = str(error)
    except Exception:
        text = "(its message cannot be read)"
    return clean(text)


def clean(text):
    """`text` without lone surrogates, cut to TEXT_LIMIT."""
    cut = text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]} ... ({len(text)} characters)"
    return cut.encode("utf-8", "backslashreplace").decode()


def describe(error, code):
    """An exception of user code as data: {"type": str, "message": str, "stack": [str]}."""
    return {"type": clean(type(error).__name__), "message": text_of(error), "stack": chain_of(error, code)}


def chain_of(error, code):
    """The stack of an exception, followed by those of its causes."""
    lines, seen = stack_of(error, code), {id(error)}
    for _ in range(CHAIN_LIMIT):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if error is None or id(error) in seen:
            break
        seen.add(id(error))
        lines.append(f"caused by {clean(type(error).__name__)}: {text_of(error)}")
        lines += stack_of(error, code)
    return lines


def stack_of(error, code):
    """The user's frames of a traceback, outermost first, as `main.py:3 in handler: raise ValueError(1)`.

    Frames of libraries outside the code folder are shown only when there is no other; ours never.
    """
    frames = [
        (frame.f_code, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename not in OWN_FILES and not frame.f_code.co_filename.startswith("<frozen")
    ]
    root = code.rstrip("/") + "/"
    frames = [frame for frame in frames if frame[0].co_filename.startswith(root)] or frames
    lines = [frame_line(at, line, root) for at, line in frames[:FRAMES_LIMIT]]
    if len(frames) > FRAMES_LIMIT:
        half = FRAMES_LIMIT // 2
        tail = [frame_line(at, line, root) for at, line in frames[-half:]]
        lines = [*lines[:half], f"... {len(frames) - 2 * half} more", *tail]
    return lines


def frame_line(at, line, root):
    """One frame as text."""
    source = linecache.getline(at.co_filename, line).strip()
    return clean(f"{at.co_filename.removeprefix(root)}:{line} in {at.co_name}" + (f": {source}" if source else ""))
