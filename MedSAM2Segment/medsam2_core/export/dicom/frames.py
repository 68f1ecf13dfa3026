"""Frames of a SEG, one after the other: which there are, their pixels, and how they are stored.

Pixels go to a file as they come, so that memory holds one frame, however long the series and however many
the segments.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np

from medsam2_core.errors import ExportError, Note
from medsam2_core.export.dicom.options import Compression
from medsam2_core.export.resampling import SAME_POSITION_MM
from medsam2_core.imaging.slice_mask import INSIDE, MAXIMUM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.probabilities import Probabilities
    from medsam2_core.imaging.segmentation import Segmentation

_LARGEST_OFFSET = 0xFFFFFFFF


TRANSFER_SYNTAXES = {
    Compression.NONE: "1.2.840.10008.1.2.1",  # explicit VR little endian
    Compression.RLE: "1.2.840.10008.1.2.5",
    Compression.JPEG_LS: "1.2.840.10008.1.2.4.80",
}


class FrameSource(Protocol):
    """What a SEG is made of, one frame at a time."""

    @property
    def bits(self) -> int:
        """Return 1, 8 or 16 bits a pixel."""

    def occupancy(self) -> NDArray[np.bool_]:
        """Return (S, K) where each segment has a frame; (1, K) when a frame shows them all."""

    def frame(self, n: int, k: int) -> NDArray[Any]:
        """Return the (J, I) pixels of segment ``n`` (from 0) on slice ``k``."""


@dataclass(frozen=True)
class BinaryFrames:
    """FrameSource of a binary SEG: 1 where the segment is."""

    segmentation: Segmentation
    bits: int = 1

    def occupancy(self) -> NDArray[np.bool_]:
        """Return (S, K) slices each segment is on."""
        shape = len(self.segmentation), self.segmentation.geometry.shape_ijk[2]
        found = np.zeros(shape, dtype=bool)
        for n, segment in enumerate(self.segmentation):
            first = segment.offset_ijk[2]
            found[n, first : first + len(segment.part_kji)] = np.asarray(segment.part_kji.any(axis=(1, 2)))
        return found

    def frame(self, n: int, k: int) -> NDArray[np.uint8]:
        """Return (J, I) 0 and 1."""
        pixels = np.zeros(self.segmentation.geometry.shape_ijk[1::-1], dtype=np.uint8)
        touched = self.segmentation.segments[n].on_slice(pixels, k)
        if touched is not None:
            touched[0][...] = touched[1]
        return pixels


@dataclass(frozen=True)
class LabelFrames:
    """FrameSource of a label map: the number of the segment, from 1."""

    segmentation: Segmentation

    @property
    def bits(self) -> int:
        """8, or 16 for more than 255 segments."""
        return self.segmentation.label_dtype.itemsize * 8

    def occupancy(self) -> NDArray[np.bool_]:
        """Return (1, K) slices that are not empty."""
        return np.asarray(BinaryFrames(self.segmentation).occupancy().any(axis=0))[np.newaxis]

    def frame(self, n: int, k: int) -> NDArray[Any]:
        """Return (J, I) numbers of segments."""
        return self.segmentation.label_slice(k)


class PixelDataWriter:
    """Frames written one behind the other into a file, and that file as DICOM pixel data.

    Parameters
    ----------
    compression
        NONE: native pixel data (PS3.5 8.2); else one fragment a frame (PS3.5 A.4).
    """

    def __init__(
        self, stream: BinaryIO, bits: int, compression: Compression, count: int, pixels: int
    ) -> None:
        self._stream, self._bits, self._compression = stream, bits, compression
        self._rest = np.empty(0, dtype=np.uint8)  # bits that do not fill a byte yet
        self._offsets: list[int] = []
        # Where offsets of 32 bits might not do the table stays empty, as the standard allows.
        self._places = count if count * (pixels * bits // 8 + 1024) < _LARGEST_OFFSET else 0
        if compression is not Compression.NONE:
            stream.write(bytes(8 + 4 * self._places))  # the table, once offsets are known
        self._start = stream.tell()

    def add(self, frame_ji: NDArray[Any]) -> None:
        """Write a frame."""
        if self._compression is not Compression.NONE:
            self._add_packed(frame_ji)
        elif self._bits == 1:
            # Frames follow each other bit by bit: a byte may hold the end of one and the start of the next.
            waiting = np.concatenate([self._rest, frame_ji.ravel()])
            whole = len(waiting) - len(waiting) % 8
            self._rest = waiting[whole:]
            self._stream.write(np.packbits(waiting[:whole], bitorder="little").data)
        else:
            little = frame_ji.dtype.newbyteorder("<")
            self._stream.write(np.ascontiguousarray(frame_ji, dtype=little).data)

    def finish(self) -> BinaryIO:
        """Complete the file, with its table of offsets and an even number of bytes, and rewind it."""
        stream = self._stream
        if len(self._rest):
            stream.write(np.packbits(self._rest, bitorder="little").data)
        if stream.tell() % 2:
            stream.write(b"\0")
        if self._compression is not Compression.NONE:
            stream.seek(0)
            offsets = self._offsets if self._places else []
            stream.write(_item_head(4 * len(offsets)) + struct.pack(f"<{len(offsets)}L", *offsets))
        stream.seek(0)
        return stream

    def _add_packed(self, frame_ji: NDArray[Any]) -> None:
        from highdicom.frame import encode_frame

        data = encode_frame(
            np.ascontiguousarray(frame_ji),
            transfer_syntax_uid=TRANSFER_SYNTAXES[self._compression],
            bits_allocated=self._bits,
            bits_stored=self._bits,
            photometric_interpretation="MONOCHROME2",
        )
        data += b"\0" * (len(data) % 2)
        self._offsets.append(self._stream.tell() - self._start)
        self._stream.write(_item_head(len(data)) + data)


def write_frames(pixels: FrameSource, order: Iterable[tuple[int, int]], file: PixelDataWriter) -> None:
    """Write the frames of ``pixels`` in this order of (segment from 0, slice)."""
    for n, k in order:
        file.add(pixels.frame(n, k))


def _item_head(length: int) -> bytes:
    """Return tag and length of an item of encapsulated pixel data."""
    return struct.pack("<HHL", 0xFFFE, 0xE000, length)


class ProbabilityFrames:
    """Probabilities of some objects, slice by slice.

    Parameters
    ----------
    probabilities
        As kept by `medsam2 segment --probabilities`.
    segmentation
        The objects on the series' grid: the probabilities' voxels must be in the same positions.

    Raises
    ------
    ExportError
        Another grid, or an object without probabilities.
    """

    bits = 8

    def __init__(self, probabilities: Probabilities, segmentation: Segmentation) -> None:
        names, geometry = segmentation.names, segmentation.geometry
        lacking = [name for name in names if name not in probabilities.names]
        if lacking:
            known = ", ".join(map(repr, probabilities.names)) or "none"
            raise ExportError(
                f"there are no probabilities of {lacking[0]!r}: the file has those of {known}. Keep them "
                "when segmenting again, or choose binary",
                code="no-probabilities-of-segment",
                segment=lacking[0],
                known=list(probabilities.names),
            )
        if not probabilities.geometry.same_grid(geometry, SAME_POSITION_MM):
            sizes = [" x ".join(map(str, grid.shape_ijk)) for grid in (probabilities.geometry, geometry)]
            raise ExportError(
                f"the probabilities ({sizes[0]} voxels) are not on the series' grid ({sizes[1]}): segment "
                "the DICOM series itself, or choose binary",
                code="probabilities-on-another-grid",
            )
        self._probabilities, self._segmentation = probabilities, segmentation

    def occupancy(self) -> NDArray[np.bool_]:
        """Return (S, K) where any probability is not 0."""
        found = np.zeros((len(self._segmentation), self._segmentation.geometry.shape_ijk[2]), dtype=bool)
        for n, name in enumerate(self._segmentation.names):
            found[n, list(self._probabilities.slices[name])] = True
        changed = BinaryFrames(self._segmentation).occupancy() & ~found  # painted where nothing was likely
        return found | changed

    def frame(self, n: int, k: int) -> NDArray[np.uint8]:
        """Return (J, I) probability times 255; certain where the mask was changed afterwards."""
        segment = self._segmentation.segments[n]
        values = self._probabilities.slice_ji(segment.name, k)
        mask = np.zeros(values.shape, dtype=bool)
        touched = segment.on_slice(mask, k)
        if touched is not None:
            touched[0][...] = touched[1]
        values[mask & (values < INSIDE)] = MAXIMUM
        values[~mask & (values >= INSIDE)] = 0
        return values

    def notes(self) -> Iterator[Note]:
        """Yield notes on masks that were changed after the probabilities were stored."""
        for segment in self._segmentation:
            count = self._probabilities.count_differing(segment)
            if count:
                yield Note.warning(
                    "probabilities-changed",
                    f"{segment.name!r}: {count} voxels were changed after its probabilities were kept: they "
                    "are written as certain",
                    segment=segment.name,
                    voxels=count,
                )
