"""The waiter of compiled and command functions.

It boots with the sandbox, says HELLO and waits for LOAD. A go or cpp function replaces it: the waiter
execs the built program, which inherits the socket and answers LOADED itself. A command function keeps
it: every INVOKE starts the handler afresh with the event on stdin and the result on stdout.

Started as `python3 -I -S bootstrap.py`, so no user site or startup hook is in the way.
"""

# Importing pathlib would make every boot slower.
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

PROTOCOL = 1
LOAD, INVOKE = 1, 2
HELLO, LOADED, LOAD_FAILED, RESULT, ERROR = 16, 17, 18, 19, 20
JSON_TYPE = "application/json"
STACK_LINES = 20


class Channel:
    """Frames on a blocking socket; it never reads beyond the frame it returns, so an exec loses nothing."""

    def __init__(self, sock):
        self.sock = sock

    def send(self, kind, meta, payload=b""):
        """One frame; `meta` is JSON text in UTF-8."""
        head = (9 + len(meta) + len(payload)).to_bytes(4, "big") + bytes((kind, 0, 0, 0, 0))
        self.sock.sendall(head + len(meta).to_bytes(4, "big") + meta + payload)

    def receive(self):
        """The next (kind, meta, payload); None at the end of the stream."""
        head = self._exactly(13)
        if head is None:
            return None
        size, meta_size = int.from_bytes(head[:4], "big"), int.from_bytes(head[9:13], "big")
        if size < 9 or meta_size > size - 9:
            return None
        body = self._exactly(size - 9)
        return None if body is None else (head[4], bytes(body[:meta_size]), bytes(body[meta_size:]))

    def _exactly(self, count):
        data = bytearray(count)
        view, at = memoryview(data), 0
        while at < count:
            got = self.sock.recv_into(view[at:])
            if not got:
                return None
            at += got
        return data


def main():
    """Connects, waits for LOAD, then becomes the program or serves the command."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(os.environ.get("NANOGRID_SOCKET", "/run/nanogrid/s"))
    channel = Channel(sock)
    hello = {"pid": os.getpid(), "runtime": "native", "protocol": PROTOCOL}
    channel.send(HELLO, json.dumps(hello).encode())
    frame = channel.receive()
    if frame is None or frame[0] != LOAD:
        return 1
    started = time.monotonic()
    load = json.loads(frame[1])
    try:
        program = handler_path(load)
        os.chdir(load["code"])
        if load["runtime"] == "command":
            channel.send(LOADED, json.dumps({"init_ms": (time.monotonic() - started) * 1000}).encode())
            return Command(channel, program, user_env(load)).serve()
        env = user_env(load)
        env["NANOGRID_FD"] = str(sock.fileno())
        env["NANOGRID_LOAD"] = frame[1].decode()
        os.set_inheritable(sock.fileno(), True)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(program, [program], env)
    except (OSError, KeyError, LoadError) as error:
        failed = {"type": type(error).__name__, "message": load_message(load, error), "stack": []}
        channel.send(LOAD_FAILED, json.dumps(failed).encode())
    return 1


class LoadError(Exception):
    """The code folder does not hold what the handler names."""


def handler_path(load):
    """The executable of this function inside its code folder."""
    name = "bootstrap" if load["runtime"] in ("go", "cpp") else load.get("handler") or "bootstrap"
    root = os.path.realpath(load["code"])
    program = os.path.realpath(os.path.join(root, name))
    if os.path.commonpath((root, program)) != root:
        raise LoadError(f"handler {name!r} lies outside the code folder")
    if not os.path.isfile(program):
        raise LoadError(f"the code has no file {name!r}: set `handler` to the path of an executable in it")
    if not os.access(program, os.X_OK):
        raise LoadError(f"{name!r} is not executable: deploy it with its executable bit (chmod +x)")
    return program


def load_message(load, error):
    """What is wrong, in the words of the function's author."""
    if isinstance(error, OSError) and error.errno == 8:
        return "the program cannot be started: it is no Linux executable of this machine, nor a #! script"
    if isinstance(error, OSError) and error.errno == 2:
        return f"the program cannot be started: its #! interpreter or loader is not in the sandbox ({error})"
    return str(error)


def user_env(load):
    """The whole environment that user code sees."""
    env = {"PATH": os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")}
    env.update({"HOME": "/tmp", "LANG": "C.UTF-8", "TMPDIR": "/tmp"})
    env.update(load.get("env") or {})
    env["NANOGRID_FUNCTION"] = str(load["function"])
    env["NANOGRID_VERSION"] = str(load["version"])
    env["NANOGRID_MEMORY_MB"] = str(load.get("memory_mb", 0))
    return env


class Command:
    """Starts the handler once an invocation and turns what it does into a frame."""

    def __init__(self, channel, program, env):
        self.channel, self.program, self.env = channel, program, env
        self.process = None

    def serve(self):
        """Until the worker closes the channel."""
        signal.signal(signal.SIGTERM, self.stop)
        threading.Thread(target=self.watch, daemon=True).start()
        while (frame := self.channel.receive()) is not None:
            if frame[0] == INVOKE:
                self.invoke(json.loads(frame[1]), frame[2])
        return 0

    def stop(self, number, _frame):
        """SIGTERM: an idle waiter ends at once, one at work ends with its command, which may clean up."""
        if self.process is None:
            os._exit(128 + number)
        self.process.send_signal(number)

    def watch(self):
        """Ends everything when the worker is gone, even while a command is at work."""
        poll = select.poll()
        poll.register(self.channel.sock, select.POLLRDHUP)
        poll.poll()
        if self.process is not None:
            self.process.kill()
        os._exit(0)

    def invoke(self, meta, event):
        """One process: event on stdin, result from stdout, stderr to the log."""
        env = dict(self.env)
        env["NANOGRID_INVOCATION_ID"] = str(meta.get("id", ""))
        env["NANOGRID_ATTEMPT"] = str(meta.get("attempt", 1))
        env["NANOGRID_DEADLINE_MS"] = str(meta.get("deadline_ms", 0))
        env["NANOGRID_EVENT_TYPE"] = str(meta.get("type", JSON_TYPE))
        pipe = subprocess.PIPE
        try:
            self.process = process = subprocess.Popen(
                [self.program], stdin=pipe, stdout=pipe, stderr=pipe, env=env, close_fds=True
            )
        except OSError as error:
            self.fail("StartError", load_message({}, error), [])
            return
        stderr = Relay(process.stderr)
        threading.Thread(target=feed, args=(process.stdin, event), daemon=True).start()
        output = process.stdout.read()
        process.stdout.close()
        code = process.wait()
        self.process = None
        stderr.finish()
        reap()
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"exited with status {code}"
            name = os.path.basename(self.program)
            last = f": {stderr.tail[-1]}" if stderr.tail else ""
            self.fail("ExitError", f"{name} {how}{last}", list(stderr.tail))
        else:
            self.succeed(output)

    def succeed(self, output):
        """JSON on stdout is the result as it is; anything else is text."""
        meta, body = {}, output.strip() or b"null"
        try:
            json.loads(body, parse_constant=refuse)
        except ValueError:
            meta, body = {"type": "text/plain; charset=utf-8"}, output
        self.channel.send(RESULT, json.dumps(meta).encode(), body)

    def fail(self, kind, message, stack):
        """The attempt's failure, as structured data."""
        meta = {"type": kind, "message": message, "stack": stack}
        self.channel.send(ERROR, json.dumps(meta).encode())


def refuse(name):
    """NaN and Infinity are not JSON."""
    raise ValueError(name)


class Relay:
    """Copies a command's stderr to the log as it comes and keeps its last lines for the error."""

    def __init__(self, pipe):
        self.pipe, self.tail, self.rest = pipe, [], b""
        self.thread = threading.Thread(target=self._copy, daemon=True)
        self.thread.start()

    def _copy(self):
        while data := os.read(self.pipe.fileno(), 65536):
            view = memoryview(data)
            while view:
                view = view[os.write(2, view) :]
            *lines, self.rest = (self.rest + data).split(b"\n")
            self.rest = self.rest[-4096:]
            self._keep(lines)

    def _keep(self, lines):
        texts = [line[:4096].decode("utf-8", "replace") for line in lines if line.strip()]
        self.tail = (self.tail + texts)[-STACK_LINES:]

    def finish(self):
        """Everything written by the command itself; a child that it left behind is not waited for."""
        self.thread.join(0.5)
        if self.rest:
            self._keep([self.rest])
            self.rest = b""


def feed(stdin, event):
    """Writes the event; a command that does not read its input is no error."""
    try:
        stdin.write(event)
        stdin.close()
    except OSError:
        pass


def reap():
    """Collects orphans that have ended, for which the first process of a sandbox is responsible."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    sys.exit(main())
