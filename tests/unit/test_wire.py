"""Frames survive any cutting of the stream, and hostile headers end the connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogrid import wire

Frames = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=40), st.binary(max_size=300))
)


@given(frames=Frames, cuts=st.lists(st.integers(1, 50), min_size=1))
def test_frames_survive_any_cutting(frames: list[tuple[int, int, bytes, bytes]], cuts: list[int]) -> None:
    got: list[tuple[int, int, bytes, bytes]] = []
    reader = wire.FrameReader(lambda *frame: got.append(frame))
    stream = b"".join(wire.encode(kind, meta, payload, number) for kind, number, meta, payload in frames)
    at = turn = 0
    while at < len(stream):
        step = cuts[turn % len(cuts)]
        reader.feed(stream[at : at + step])
        at, turn = at + step, turn + 1
    assert got == frames


@pytest.mark.parametrize(
    "head",
    [
        wire.HEADER.pack(8, 1, 0, 0),
        wire.HEADER.pack(9, 1, 0, 1),
        wire.HEADER.pack(2000, 1, 0, 0),
    ],
    ids=["too small", "meta larger than the frame", "over the limit"],
)
def test_bad_headers_are_refused(head: bytes) -> None:
    reader = wire.FrameReader(lambda *frame: None, limit=1000)
    with pytest.raises(wire.FrameError):
        reader.feed(head)


def test_a_frame_over_the_limit_is_refused_before_it_is_buffered() -> None:
    reader = wire.FrameReader(lambda *frame: None, limit=1000)
    reader.feed(b"\x7f\xff")
    with pytest.raises(wire.FrameError):
        reader.feed(b"\xff\xff")
