"""Checks of compressed pixels before a decoder gets them.

Decoders believe the size inside the compressed data, whatever the DICOM header has, and pydicom 3 never
returns from a JP2 box that claims to be 0 bytes long. Both are checked here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from medsam2_core.errors import VolumeError
from medsam2_core.imaging import files

_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_JPEG_2000_START = b"\xff\x4f\xff\x51"
_SMALLEST_TILE = 1 << 8  # pixels; real encoders use whole images or tiles of at least 64 x 64
# Start-of-frame markers hold the size: JPEG (ITU-T T.81, table B.1) and JPEG-LS (T.87).
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}
_START_OF_SCAN = 0xDA


def check_frames(
    path: Path, pixels: bytes | IO[bytes], syntax: str, count: int, size: tuple[int, int]
) -> None:
    """Raise VolumeError unless every frame of compressed pixel data has ``size`` (rows, columns).

    Parameters
    ----------
    path : for the message
    pixels : the value of PixelData, or a file that stands at its first byte
    syntax : UID of the transfer syntax; nothing is checked unless it is JPEG, JPEG-LS or JPEG 2000
    count : how many frames there are
    """
    from pydicom.encaps import generate_frames
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

    if syntax not in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes):
        return
    for frame in generate_frames(pixels, number_of_frames=count):
        try:
            check_size(frame, *size)
        except VolumeError as error:
            raise VolumeError(f"{path}: {error}", code=error.code, path=str(path), **error.fields) from error


def check_decoder(path: Path, syntax: Any) -> None:
    """Raise VolumeError ``no-decoder`` unless pixels of a transfer syntax (a pydicom UID) can be decoded."""
    from pydicom.pixels import get_decoder

    try:
        way_out = "" if get_decoder(syntax).is_available else ": pip install python-gdcm"
    except NotImplementedError:
        way_out = " by any package"
    if way_out:
        message = f"pixels compressed as {syntax.name!r} cannot be decoded{way_out}"
        raise files.error(path, message, "no-decoder", syntax=str(syntax))


def check_size(frame: bytes, rows: int, columns: int) -> None:
    """Raise VolumeError unless JPEG, JPEG-LS or JPEG 2000 data holds an image of this size."""
    if frame.startswith((_JP2_SIGNATURE, _JPEG_2000_START[:2])):
        found = _size_of_jpeg_2000(frame[_start_of_codestream(frame) :])
    else:
        found = _size_of_jpeg(frame)
    if found != (rows, columns):
        size_text = "no size" if found is None else f"{found[0]} x {found[1]}"
        message = f"compressed pixels hold {size_text}, the header has {rows} x {columns}: damaged"
        raise VolumeError(message, code="decoded-size-differs", rows=rows, columns=columns, found=found)


def _start_of_codestream(frame: bytes) -> int:
    if not frame.startswith(_JP2_SIGNATURE):
        return 0
    for start, length, kind in _boxes(frame):
        if kind == b"jp2c":
            return start + 8
        if length < 8:
            message = f"compressed pixels are damaged: a JP2 box of {length} bytes"
            raise VolumeError(message, code="damaged-codestream")
    raise VolumeError("compressed pixels are damaged: no image in the JP2 data", code="damaged-codestream")


def _boxes(frame: bytes) -> Iterator[tuple[int, int, bytes]]:
    start = len(_JP2_SIGNATURE) + 4
    while start + 8 <= len(frame):
        length = int.from_bytes(frame[start : start + 4], "big")
        yield start, length, frame[start + 4 : start + 8]
        start += length


def _size_of_jpeg_2000(stream: bytes) -> tuple[int, int] | None:
    """Read the size from the SIZ segment, ISO/IEC 15444-1 A.5.1."""
    if not stream.startswith(_JPEG_2000_START) or len(stream) < 40:
        return None
    numbers = [int.from_bytes(stream[n : n + 4], "big") for n in range(8, 40, 4)]
    width, height, left, top, tile_width, tile_height = numbers[:6]
    whole = min(width, tile_width) * min(height, tile_height)
    if whole < min(_SMALLEST_TILE, width * height):
        message = f"compressed pixels are damaged: tiles of {tile_width} x {tile_height} pixels"
        raise VolumeError(message, code="damaged-codestream")
    return height - top, width - left


def _size_of_jpeg(stream: bytes) -> tuple[int, int] | None:
    place = 0
    while 0 <= place < len(stream) - 9:
        if stream[place] != 0xFF or stream[place + 1] == 0xFF:
            place += 1
            continue
        marker = stream[place + 1]
        if marker in _START_OF_FRAME:
            height = int.from_bytes(stream[place + 5 : place + 7], "big")
            return height, int.from_bytes(stream[place + 7 : place + 9], "big")
        if marker == _START_OF_SCAN:
            return None
        place += 2 if marker in _WITHOUT_LENGTH else 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    return None
