"""Frames: one JSON header and some arrays, as bytes on a stream. See Resources/docs/worker-protocol.md.

Nothing here trusts what it reads: every length is checked before anything of that length is made, types are
taken from a short list, and compressed arrays may not grow beyond what their header says.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.errors import ProtocolError

MAGIC = b"MS2\x01"
LARGEST_HEADER = 4 << 20  # bytes; the records of some 15,000 slices
LARGEST_BODY = 1 << 30  # bytes, compressed or not
LONGEST_BANNER = 64 << 10  # bytes a login may print before the first frame
DTYPES = ("|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f4", "<f8")

_PREFIX = struct.Struct("<4sIQ")
_ANY_LAYOUT = re.compile(rb"MS2[\x01-\x08]")  # in no text: a frame, maybe of another version
_DEEPEST = 32
_MOST_ARRAYS = 1 << 16
_MOST_AXES = 8
_LONGEST_NAME = 200


@dataclass(frozen=True, eq=False)
class Frame:
    """One message.

    Attributes
    ----------
    header
        Its JSON object, without the list of arrays.
    arrays
        By name, read-only, C-contiguous.
    nbytes
        How many bytes it took on the stream.
    """

    header: dict[str, Any]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    nbytes: int = 0

    @property
    def type(self) -> str:
        """What kind of message it is."""
        return self.header["type"]


def encode(
    header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None, *, compress: bool = False
) -> list[bytes | memoryview]:
    """A frame as pieces of bytes, in order; raw arrays are not copied.

    Parameters
    ----------
    header
        What JSON can say, with ``"type"``.
    arrays
        By name; integers of 1 to 8 bytes, floats of 4 or 8, or bool (sent as 0 and 1).
    compress
        Whether arrays are deflated, fast rather than small; one that would not get smaller stays raw.

    Raises
    ------
    ProtocolError
        When the header is not JSON, or a limit of the protocol is exceeded.
    """
    told, body = [], []
    for name, array in (arrays or {}).items():
        little = _plain(name, array)
        data: bytes | memoryview = memoryview(little.reshape(-1).view(np.uint8)) if little.size else b""
        coding = "raw"
        if compress and len(data) > 64:
            smaller = zlib.compress(data, 1)
            if len(smaller) < len(data):
                data, coding = smaller, "zlib"
        shape = list(little.shape)
        told.append(
            {"name": name, "dtype": little.dtype.str, "shape": shape, "coding": coding, "bytes": len(data)}
        )
        body.append(data)
    full = {**header, "arrays": told} if told else dict(header)
    try:
        text = json.dumps(full, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ProtocolError(
            f"message {_short(header.get('type'))} cannot be written as JSON: {error}"
        ) from error
    size = sum(len(part) for part in body)
    _check_size(len(text), size)
    return [_PREFIX.pack(MAGIC, len(text), size) + text, *body]


class FrameReader:
    """Makes frames of bytes that arrive in any pieces.

    Parameters
    ----------
    skip_banner
        Whether text may come before the first frame, as a remote shell prints it; it is kept in `banner`.
    """

    def __init__(self, skip_banner: bool = False) -> None:
        self.banner = b""
        self._is_banner = skip_banner
        self._parts: list[bytes] = []
        self._start = 0  # in the first part: before it lie frames already given
        self._held = 0  # bytes from there on
        self._wanted = _PREFIX.size  # no frame can be read before so many bytes are there
        self._error: ProtocolError | None = None

    @property
    def is_in_frame(self) -> bool:
        """Whether the stream may not end here: a part of a frame has come."""
        return self._held > 0 and not self._is_banner

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that are complete with these bytes.

        Raises
        ------
        ProtocolError
            When the stream is damaged; from then on always. Frames that came whole before the damage are
            still given: then the next call raises (``feed(b"")`` asks).
        """
        if self._error is not None:
            raise self._error
        if len(data):
            self._parts.append(bytes(data))
            self._held += len(data)
        frames: list[Frame] = []
        try:
            while self._held >= self._wanted and (not self._is_banner or self._skip_banner()):
                frame = self._next()
                if frame is not None:
                    frames.append(frame)
        except ProtocolError as error:
            self._error = error
            self._parts, self._start, self._held = [], 0, 0
            if not frames:
                raise
        if self._start:
            self._parts, self._start = [self._joined()[self._start :]], 0
        return frames

    def _next(self) -> Frame | None:
        """The next frame; None when more bytes are needed, so many as `_wanted` says then."""
        data, start = self._joined(), self._start
        magic, header_size, body_size = _PREFIX.unpack_from(data, start)
        if magic != MAGIC:
            raise ProtocolError(_not_a_frame(data[start : start + 40]))
        _check_size(header_size, body_size)
        self._wanted = _PREFIX.size + header_size + body_size
        if self._held < self._wanted:
            return None
        body_at, end = start + _PREFIX.size + header_size, start + self._wanted
        header = _header(data[start + _PREFIX.size : body_at])
        arrays = _arrays(header.pop("arrays", []), memoryview(data)[body_at:end])
        frame = Frame(header, arrays, self._wanted)
        self._start, self._held, self._wanted = end, self._held - self._wanted, _PREFIX.size
        return frame

    def _joined(self) -> bytes:
        if len(self._parts) != 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0]

    def _skip_banner(self) -> bool:
        """Whether the first frame has begun; drops what came before it."""
        data = self._joined()
        found = _ANY_LAYOUT.search(data)
        start = found.start() if found else -1
        # Without one, its first letters may be the last that came.
        end = start if start >= 0 else max(0, len(data) - len(MAGIC) + 1)
        self.banner += data[:end]
        self._parts, self._held = [data[end:]], len(data) - end
        self._is_banner = start < 0
        if len(self.banner) > LONGEST_BANNER:
            raise ProtocolError(
                f"no worker answered within {LONGEST_BANNER} bytes of other output, which begins with "
                f"{_short(self.banner.decode(errors='replace'))}: check the command that starts the worker"
            )
        return start >= 0 and self._held >= self._wanted


def _check_size(header_size: int, body_size: int) -> None:
    for what, size, limit in (("header", header_size, LARGEST_HEADER), ("body", body_size, LARGEST_BODY)):
        if size > limit:
            raise ProtocolError(
                f"a frame's {what} of {size} bytes is larger than the {limit} that are allowed"
            )


def _plain(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """The array in C order with a type of `DTYPES`."""
    array = np.asarray(array)
    if array.dtype == bool:
        array = array.view(np.uint8) if array.flags.c_contiguous else array.astype(np.uint8)
    little = array.dtype.newbyteorder("<")
    if little.str not in DTYPES:
        raise ProtocolError(
            f"array {_short(name)} of type {array.dtype} cannot be sent: use {', '.join(DTYPES)}"
        )
    return np.ascontiguousarray(array, dtype=little).reshape(array.shape)


def _header(data: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        header = json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # ValueError covers wrong UTF-8 and wrong JSON
        raise ProtocolError(f"a frame's header is not JSON: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("type"), str):
        raise ProtocolError(f"a frame's header must be a JSON object with a type, not {_short(header)}")
    _check_depth(header)
    return header


def _check_depth(header: dict[str, Any]) -> None:
    level: list[Any] = [header]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for value in level:
            below += value.values() if isinstance(value, dict) else value
        level = [value for value in below if isinstance(value, dict | list)]
        if not level:
            return
    raise ProtocolError(f"a frame's header is nested deeper than {_DEEPEST} levels")


def _arrays(told: Any, body: memoryview) -> dict[str, NDArray[Any]]:
    if not isinstance(told, list) or len(told) > _MOST_ARRAYS:
        raise ProtocolError(f"a frame's arrays must be a list of at most {_MOST_ARRAYS}, not {_short(told)}")
    arrays: dict[str, NDArray[Any]] = {}
    at, room = 0, LARGEST_BODY
    for item in told:
        name, dtype, shape, coding, nbytes = _description(item, arrays)
        size = math.prod(max(1, length) for length in shape) * dtype.itemsize
        if size > room:
            raise ProtocolError(
                f"array {name!r} of {shape} {dtype.str}: arrays are larger than {LARGEST_BODY} bytes"
            )
        size = math.prod(shape) * dtype.itemsize
        room -= size
        if nbytes > len(body) - at:
            raise ProtocolError(f"array {name!r} of {nbytes} bytes goes beyond its frame's body")
        data = body[at : at + nbytes]
        at += nbytes
        arrays[name] = _array(
            name, dtype, shape, data if coding == "raw" else _inflated(name, data, size), size
        )
    if at != len(body):
        raise ProtocolError(f"a frame's arrays take {at} bytes of a body of {len(body)}")
    return arrays


def _array(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], data: bytes | memoryview, size: int
) -> NDArray[Any]:
    if len(data) != size:
        raise ProtocolError(f"array {name!r} of {shape} {dtype.str} needs {size} bytes and has {len(data)}")
    array = np.frombuffer(data, dtype) if size else np.zeros(0, dtype)
    if not array.flags.aligned:  # headers have any length, and what computes with the array wants it aligned
        array = array.copy()
    array = array.reshape(shape)
    array.flags.writeable = False
    return array


def _description(item: Any, known: Mapping[str, Any]) -> tuple[str, np.dtype[Any], tuple[int, ...], str, int]:
    """Name, type, shape, coding and bytes of an array, each of the kind it must be."""
    if not isinstance(item, dict):
        raise ProtocolError(f"an array is described by a JSON object, not {_short(item)}")
    name, dtype, shape, coding = (item.get(part) for part in ("name", "dtype", "shape", "coding"))
    nbytes = item.get("bytes")
    if not isinstance(name, str) or len(name) > _LONGEST_NAME or name in known:
        raise ProtocolError(f"array name {_short(name)} is no text, too long, or used twice")
    if dtype not in DTYPES:
        raise ProtocolError(f"array {name!r} has type {_short(dtype)}: use one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(map(_is_count, shape)):
        raise ProtocolError(f"array {name!r} has the shape {_short(shape)}: use at most {_MOST_AXES} lengths")
    if coding not in ("raw", "zlib"):
        raise ProtocolError(f"array {name!r} is coded as {_short(coding)}: use raw or zlib")
    if not _is_count(nbytes):
        raise ProtocolError(f"array {name!r} has {_short(nbytes)} bytes")
    return name, np.dtype(dtype), tuple(shape), coding, nbytes


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _inflated(name: str, data: memoryview, size: int) -> bytes:
    """The array's bytes; never more than one beyond `size` are made."""
    machine = zlib.decompressobj()
    try:
        plain = machine.decompress(data, size + 1)
    except zlib.error as error:
        raise ProtocolError(f"array {name!r} is damaged: {error}") from error
    if not machine.eof or machine.unused_data or machine.unconsumed_tail:
        raise ProtocolError(f"array {name!r} inflates to something else than the {size} bytes announced")
    return plain


def _not_a_frame(data: bytes) -> str:
    if data[:3] == MAGIC[:3]:
        newer = "the other side" if data[3] < MAGIC[3] else "this side"
        return f"frames of layout {data[3]} cannot be read here, only layout {MAGIC[3]}: update {newer}"
    return f"expected a frame, got {_short(data)}: something else writes into the worker's stream"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
