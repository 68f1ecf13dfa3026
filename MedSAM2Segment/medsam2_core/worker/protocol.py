"""The worker's wire format: frames of one JSON header and named arrays, and errors as data.

Resources/docs/worker-protocol.md describes the same for clients in other languages. Input is not
trusted: lengths are checked before memory is allocated, dtypes come from a short list, compressed arrays
cannot grow beyond their announced size, and pickle is never used.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from medsam2_core import errors
from medsam2_core.errors import MedSAM2Error, ProtocolError, WorkerError

#: Supported versions of the protocol, the preferred one first.
PROTOCOLS = (3,)

#: Requests answered at once, even during a computation: none of them can have ended a worker.
IMMEDIATE = frozenset(
    {"hello", "bye", "ping", "cancel", "prefetch", "status", "close_session", "close_volume"}
)
#: Requests carried out in processes or threads of their own, beside the computation.
SEPARATE = frozenset({"train_auto", "train_finetune", "export", "measure", "compare"})
#: Requests that yield to all others.
PREEMPTIBLE = frozenset({"propagate", "auto", "find"})

MAGIC = b"MS2\x02"  # the last byte is the version of the frame layout
LARGEST_HEADER = 4 << 20  # bytes; enough for the masks of some 15,000 slices
LARGEST_BODY = 1 << 30  # bytes, compressed or not
LONGEST_BANNER = 64 << 10  # bytes of text that a login may print before the first frame
DTYPES = ("|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f4", "<f8")

_PREFIX = struct.Struct("<4sIQ")  # magic, bytes of the header, bytes of the body
_ANY_LAYOUT = re.compile(rb"MS2[\x01-\x08]")  # control characters, which a login does not print
_MOST_AXES = 8

Arrays = dict[str, NDArray[Any]]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Frame:
    """One message.

    Attributes
    ----------
    header
        Its JSON object, without the list of arrays.
    arrays
        By name; read-only and C-contiguous.
    """

    header: dict[str, Any]
    arrays: Arrays = field(default_factory=dict)
    nbytes: int = 0

    @property
    def type(self) -> str:
        """The message type."""
        return self.header["type"]


def encode(
    header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None, *, compress: bool = False
) -> list[bytes | memoryview]:
    """Encode a frame, as a list of buffers; uncompressed arrays are not copied.

    Parameters
    ----------
    header
        A JSON object with ``"type"``.
    arrays
        By name; integers of 1 to 8 bytes, floats of 4 or 8, or bool (sent as 0 and 1).
    compress
        Deflate the arrays at the fastest level if that makes them smaller.

    Raises
    ------
    ProtocolError
        The header cannot be written as JSON, or a limit of the protocol is exceeded.
    """
    full, listed, body = dict(header), [], []
    for name, array in (arrays or {}).items():
        little = _as_sendable(name, array)
        listed.append({"name": name, "dtype": little.dtype.str, "shape": list(little.shape)})
        body.append(little.reshape(-1).view(np.uint8).data if little.size else b"")
    if listed:
        full["arrays"] = listed
    size = sum(map(len, body))
    if compress and size > 64 and len(deflated := zlib.compress(b"".join(body), 1)) < size:
        full["inflated"], body, size = size, [deflated], len(deflated)
    try:
        text = json.dumps(full, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        message = f"message {_short(header.get('type'))} cannot be written as JSON: {error}"
        raise ProtocolError(message, code="frame-header") from error
    _check_size(len(text), size)
    return [_PREFIX.pack(MAGIC, len(text), size) + text, *body]


class FrameReader:
    """Incremental decoder of frames.

    Parameters
    ----------
    skip_banner
        Whether text may precede the first frame, as printed by a remote shell; it is kept in `banner`.
    """

    def __init__(self, skip_banner: bool = False) -> None:
        self.banner = b""
        self._is_banner = skip_banner
        self._buffer = bytearray()
        self._wanted = _PREFIX.size  # bytes needed for the next frame
        self._error: ProtocolError | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Return the frames completed by these bytes.

        Raises
        ------
        ProtocolError
            The stream is damaged, and remains unusable. Frames before the damage are returned first; then
            the next call raises, which may be ``feed(b"")``.
        """
        if self._error is not None:
            raise self._error
        self._buffer += data
        frames: list[Frame] = []
        try:
            while len(self._buffer) >= self._wanted and (not self._is_banner or self._skip_banner()):
                frame = self._next()
                if frame is not None:
                    frames.append(frame)
        except ProtocolError as error:
            self._error, self._buffer = error, bytearray()
            if not frames:
                raise
        return frames

    def _next(self) -> Frame | None:
        """Remove the next frame from the buffer; return None, and set `_wanted`, if it is incomplete."""
        magic, header_size, body_size = _PREFIX.unpack_from(self._buffer)
        if magic != MAGIC:
            raise _not_a_frame(bytes(self._buffer[:40]))
        _check_size(header_size, body_size)
        self._wanted = size = _PREFIX.size + header_size + body_size
        if len(self._buffer) < size:
            return None
        data = bytes(memoryview(self._buffer)[_PREFIX.size : size])
        del self._buffer[:size]
        self._wanted = _PREFIX.size
        header = _read_header(data[:header_size])
        body: bytes | memoryview = memoryview(data)[header_size:]
        if "inflated" in header:
            body = _inflated(body, header.pop("inflated"))
        return Frame(header, _read_arrays(header.pop("arrays", []), body), size)

    def _skip_banner(self) -> bool:
        """Move what precedes the first frame to `banner`; return whether a frame can be read."""
        found = _ANY_LAYOUT.search(self._buffer)
        # Otherwise the last bytes may be the first of the magic.
        end = found.start() if found else max(0, len(self._buffer) - len(MAGIC) + 1)
        self.banner += self._buffer[:end]
        del self._buffer[:end]
        self._is_banner = found is None
        if len(self.banner) > LONGEST_BANNER:
            raise ProtocolError(
                f"no worker answered within {LONGEST_BANNER} bytes of other output, which begins with "
                f"{_short(self.banner.decode(errors='replace'))}: check the command that starts the worker",
                code="no-worker",
                output=self.banner[:200].decode(errors="replace"),
            )
        return found is not None and len(self._buffer) >= self._wanted


def _check_size(header_size: int, body_size: int) -> None:
    for part, size, limit in (("header", header_size, LARGEST_HEADER), ("body", body_size, LARGEST_BODY)):
        if size > limit:
            raise ProtocolError(
                f"the {part} of a frame has {size} bytes, more than the {limit} allowed",
                code="frame-size",
                part=part,
                bytes=size,
            )


def _as_sendable(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return the array in C order with a dtype of `DTYPES`."""
    array = np.asarray(array)
    if array.dtype == bool:
        array = array.view(np.uint8) if array.flags.c_contiguous else array.astype(np.uint8)
    little = array.dtype.newbyteorder("<")
    if little.str not in DTYPES:
        raise _array_error(name, f"has the type {array.dtype}: use one of {', '.join(DTYPES)}")
    return np.ascontiguousarray(array, dtype=little).reshape(array.shape)


def _read_header(data: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        header = json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # ValueError covers wrong UTF-8 and wrong JSON
        raise ProtocolError(f"the header of a frame is not JSON: {error}", code="frame-header") from error
    if not isinstance(header, dict) or not isinstance(header.get("type"), str):
        message = f"the header of a frame must be a JSON object with a type, not {_short(header)}"
        raise ProtocolError(message, code="frame-header")
    return header


def _inflated(body: bytes | memoryview, size: Any) -> bytes:
    """Inflate a body; at most one byte more than the announced `size` is produced."""
    if not _is_count(size) or size > LARGEST_BODY:
        raise _array_error(None, f"the body cannot inflate to {_short(size)} bytes", "frame-size")
    machine = zlib.decompressobj()
    try:
        plain = machine.decompress(body, size + 1)
    except zlib.error as error:
        raise _array_error(None, f"the body cannot be inflated: {error}") from error
    if len(plain) != size or not machine.eof or machine.unused_data:
        raise _array_error(None, f"the body does not inflate to the {size} bytes announced")
    return plain


def _read_arrays(listed: Any, body: bytes | memoryview) -> Arrays:
    if not isinstance(listed, list):
        raise _array_error(None, f"{_short(listed)} is not a list of arrays")
    arrays: Arrays = {}
    at = 0
    for item in listed:
        name, dtype, shape = _description(item, arrays)
        size = math.prod(shape) * dtype.itemsize
        if size > len(body) - at or max(shape, default=0) > LARGEST_BODY:
            raise _array_error(name, f"of {shape} {dtype.str} goes beyond the body of its frame")
        array = np.frombuffer(body[at : at + size], dtype) if size else np.zeros(0, dtype)
        array = array if array.flags.aligned else array.copy()  # the header may have any length
        array = array.reshape(shape)
        array.flags.writeable = False
        arrays[name] = array
        at += size
    if at != len(body):
        raise _array_error(None, f"the arrays take {at} bytes of a body of {len(body)}")
    return arrays


def _description(item: Any, known: Arrays) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    if not isinstance(item, dict):
        raise _array_error(None, f"{_short(item)} does not describe an array")
    name, dtype, shape = item.get("name"), item.get("dtype"), item.get("shape")
    if not isinstance(name, str) or name in known:
        raise _array_error(name, "has a name that is not a text, or used twice")
    if dtype not in DTYPES:
        raise _array_error(name, f"has the type {_short(dtype)}: use one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(map(_is_count, shape)):
        raise _array_error(name, f"has the shape {_short(shape)}: use at most {_MOST_AXES} lengths")
    return name, np.dtype(dtype), tuple(shape)


def _array_error(name: Any, problem: str, code: str = "frame-array") -> ProtocolError:
    subject = "" if name is None else f"array {_short(name)} "
    return ProtocolError(f"{subject}{problem}", code=code, array=_short(name))


def _not_a_frame(data: bytes) -> ProtocolError:
    if data[:3] == MAGIC[:3]:
        outdated = "the other side" if data[3] < MAGIC[3] else "this side"
        return ProtocolError(
            f"frames of layout {data[3]} cannot be read here, only layout {MAGIC[3]}: update {outdated}",
            code="frame-layout",
            layout=data[3],
        )
    return ProtocolError(
        f"expected a frame, got {_short(data)}: something else writes into the worker's stream",
        code="not-a-frame",
        output=data.decode(errors="replace"),
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# Parts of messages ------------------------------------------------------------------------------------------


def checked(item: Mapping[str, Any], part: str, kind: type) -> Any:
    """Return a field of a message after checking its type; an integer is accepted for float.

    Raises
    ------
    ProtocolError
        ``message-field``: it is missing, of another type, or a negative integer.
    """
    value = item.get(part)
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise field_error(part, value, f"must be {kind.__name__}")
    number: Any = value
    if kind is int and number < 0:
        raise field_error(part, value, "must not be negative")
    try:
        return float(number) if kind is float else value
    except OverflowError as error:
        raise field_error(part, value, "is too large a number") from error


def optional(item: Mapping[str, Any], part: str, kind: type, default: Any = None) -> Any:
    """Return :func:`checked`, or the default where the field is missing or null."""
    return default if item.get(part) is None else checked(item, part, kind)


def field_error(part: str, value: Any, problem: str) -> ProtocolError:
    """Return the error for an invalid field of a message."""
    return ProtocolError(f"{part} {problem}, not {_short(value)}", code="message-field", field=part)


def dataclass_from_json(cls: type[T], item: Any, what: str) -> T:
    """Create a dataclass with fields of type str, bool, int, float, dict or tuple[str, ...], or None.

    A null counts as missing; ``type`` and ``id`` of a message are skipped.

    Raises
    ------
    ProtocolError
        ``message-field`` or ``unknown-field``, for the first invalid field.
    """
    if not isinstance(item, Mapping):
        raise field_error(what, item, "must be a JSON object")
    given = {name: value for name, value in item.items() if value is not None and name not in ("type", "id")}
    known = {one.name: one for one in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in sorted(set(given) - set(known)):
        raise ProtocolError(
            f"{what}: unknown field {name[:40]!r}, use {', '.join(known)}",
            code="unknown-field",
            field=name[:40],
        )
    hints, values = get_type_hints(cls), {}
    for name, one in known.items():
        kind = next(kind for kind in (get_args(hints[name]) or (hints[name],)) if kind is not NoneType)
        if get_origin(hints[name]) is tuple or get_origin(kind) is tuple:
            if name in given:
                values[name] = _texts(given, name)
        elif name in given or one.default is dataclasses.MISSING:
            values[name] = checked(given, name, get_origin(kind) or kind)
    return cls(**values)


def _texts(item: Mapping[str, Any], part: str) -> tuple[str, ...]:
    value = checked(item, part, list)
    if not all(isinstance(one, str) for one in value):
        raise field_error(part, value, "must be a list of texts")
    return tuple(value)


def add_array(arrays: Arrays, array: NDArray[Any]) -> str:
    """Add an array to a message; return its name."""
    name = f"a{len(arrays)}"
    arrays[name] = array
    return name


def named_array(
    item: Mapping[str, Any], part: str, arrays: Mapping[str, NDArray[Any]], dtype: type
) -> NDArray[Any]:
    """Return the array named by ``item[part]``. ProtocolError if it is missing or of another dtype."""
    name = checked(item, part, str)
    if name not in arrays:
        raise field_error(part, name, "must be the name of an array of the message")
    if arrays[name].dtype != dtype:
        raise field_error(part, str(arrays[name].dtype), f"must be an array of {np.dtype(dtype)}")
    return arrays[name]


# Errors -----------------------------------------------------------------------------------------------------


def error_to_json(error: BaseException, details: str = "") -> dict[str, Any]:
    """Return ``kind``, ``code``, ``fields``, ``message`` and ``details`` of an `error` message."""
    kind = next((one.__name__ for one in type(error).__mro__ if _is_known(one)), "InternalError")
    if isinstance(error, MemoryError):
        kind = "OutOfMemoryError"
    code = error.code if isinstance(error, MedSAM2Error) else _CODES.get(kind, "internal")
    try:  # a field that is not JSON must not prevent the error from being sent
        values = error.fields if isinstance(error, MedSAM2Error) else {}
        fields = json.loads(json.dumps(values, default=str, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        fields = {}
    return {"kind": kind, "code": code, "fields": fields, "message": str(error) or kind, "details": details}


def error_from_json(header: Mapping[str, Any]) -> MedSAM2Error:
    """Return the error of an `error` message: of its class if this package has it, otherwise WorkerError.

    ``kind`` and ``details`` become attributes of the error.
    """
    kind, message = str(header.get("kind", "")), str(header.get("message", ""))
    known = getattr(errors, kind, None)
    make = known if isinstance(known, type) and _is_known(known) else WorkerError
    fields = header.get("fields")
    error = make(message or f"the worker failed: {kind}", code=str(header.get("code") or ""))
    error.fields = dict(fields) if isinstance(fields, dict) else {}
    error.kind = kind
    error.details = str(header.get("details") or "")
    return error


_CODES = {"OutOfMemoryError": "out-of-memory"}


def _is_known(one: type) -> bool:
    return issubclass(one, MedSAM2Error) and getattr(errors, one.__name__, None) is one
