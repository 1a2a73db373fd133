"""What a Python function may tell the grid while it works.

    import nanogrid
    nanogrid.progress(0.4)
    nanogrid.emit("a piece of the output\\n")

Outside a sandbox, and outside an invocation, both do nothing, so that code that uses them can be tested
anywhere.
"""


def progress(value):
    """Reports how far the running invocation is.

    Args:
        value: anything that JSON can hold, such as a number from 0 to 1, a text or a dict.

    Raises:
        TypeError, ValueError: `value` is not JSON.
    """


def emit(chunk):
    """Sends a piece of the output at once to whoever follows the invocation; the result stays what it is.

    Args:
        chunk: text or bytes, sent as they are; anything else is sent as one line of JSON.

    Raises:
        TypeError, ValueError: `chunk` is neither text, bytes nor JSON.
    """
