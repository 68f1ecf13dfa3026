"""`medsam2 info`: what a file or folder holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core.cli.console import millilitres, print_table, report, volume_text
from medsam2_core.cli.options import AsJson, WhenIrregular
from medsam2_core.errors import MedSAM2Error, Note

if TYPE_CHECKING:
    from medsam2_core.imaging.dicom import SeriesInfo
    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.imaging.volume import Volume

_SPACINGS = {"none": "not known", "in-plane": "{} mm, the last is not known"}


@dataclass(frozen=True)
class Info:
    """Show geometry, modality, intensities and automatic window of a volume; segments of a label map.

    Options
    -------
    volume: A volume, picture, label map or DICOM folder.
    """

    volume: Path
    series: str | None = None
    irregular: WhenIrregular = "refuse"
    as_json: AsJson = False

    def run(self) -> None:
        """Read what is there, and describe it."""
        from medsam2_core.imaging.reading import list_series, pictures_in, read_volume
        from medsam2_core.imaging.scans import irregular_notes
        from medsam2_core.imaging.segmentation_files import is_segmentation, label_counts, read_segmentation

        notes: list[Note] = []
        facts: dict[str, Any] = {"path": str(self.volume)}
        if is_segmentation(self.volume):
            segmentation = read_segmentation(self.volume)
            facts |= _label_facts(segmentation)
            notes += segmentation.notes
        elif pictures := pictures_in(self.volume):
            facts |= {"kind": "folder of pictures", "pictures": [_picture_facts(path) for path in pictures]}
        else:
            listed = [] if self.series is not None else list_series(self.volume)
            if len(listed) > 1:
                facts["series"] = [{**_series_facts(one), "text": str(one)} for one in listed]
            else:
                read = read_volume(self.volume, self.series, irregular=self.irregular)
                facts |= _volume_facts(read)
                if counts := label_counts(read):
                    labels = [{"value": value, "voxels": count} for value, count in counts.items()]
                    facts["may_be_a_label_map_of"] = labels
                notes += irregular_notes(read)
        report(facts, notes, _print, as_json=self.as_json)


def _series_facts(one: SeriesInfo) -> dict[str, Any]:
    return {
        "number": one.number,
        "uid": one.uid,
        "description": one.description,
        "modality": one.modality,
        "shape_ijk": list(one.shape_ijk),
    }


def _picture_facts(path: Path) -> dict[str, Any]:
    from medsam2_core.imaging.reading import read_volume

    try:
        read = read_volume(path)
    except MedSAM2Error as error:
        return {"path": str(path), "error": error.to_dict()}
    voxels = "colour" if read.is_colour else str(read.voxels_kji.dtype)
    return {"path": str(path), "shape_ijk": list(read.geometry.shape_ijk), "voxels": voxels}


def _grid_facts(geometry: Any) -> dict[str, Any]:
    return {
        "shape_ijk": list(geometry.shape_ijk),
        "spacing_mm": [round(float(value), 6) for value in geometry.spacing],
        "origin_ras": [round(float(value), 4) for value in geometry.origin_ras],
        "axes_run_to": geometry.axis_codes,
        "sheared": geometry.is_sheared,
        "ijk_to_ras": geometry.ijk_to_ras.tolist(),
    }


def _volume_facts(volume: Volume) -> dict[str, Any]:
    from medsam2_core.imaging.intensity import automatic_window, value_range

    window = automatic_window(volume)
    return {
        "kind": "picture" if volume.is_picture else "volume",
        "modality": volume.modality or None,
        **_grid_facts(volume.geometry),
        "known_spacing": volume.known_spacing,
        "voxels": "colour" if volume.is_colour else str(volume.voxels_kji.dtype),
        "intensity_range": list(value_range(volume) or (None, None)),
        "automatic_window": window.to_dict(),
    }


def _label_facts(segmentation: Segmentation) -> dict[str, Any]:
    """Return what the file says of its segments: what it lacks is None."""
    layers = segmentation.stored_layers()
    segments = []
    for n, (label, segment) in enumerate(zip(segmentation.labels, segmentation, strict=True)):
        segments.append(
            {
                "name": label.name,
                "value": label.value,
                "layer": layers[n],
                "voxels": segment.voxel_count,
                "millilitres": millilitres(segmentation, segment.name),
                "code": str(label.terminology.type) if label.terminology else None,
                "terminology": str(label.terminology) if label.terminology else None,
                "algorithm_type": label.tags.get("DICOM.SegmentAlgorithmType") or None,
                "algorithm_name": label.tags.get("DICOM.SegmentAlgorithmName") or None,
                "model": label.tags.get("MedSAM2.model") or None,
                "colour_rgb": None if label.colour is None else [round(part * 255) for part in label.colour],
            }
        )
    return {
        "kind": "label map",
        "segmentation_type": segmentation.kind or None,
        **_grid_facts(segmentation.geometry),
        "known_spacing": segmentation.known_spacing,
        "segments": segments,
    }


def _print(facts: dict[str, Any]) -> None:
    if "series" in facts:
        print(f"{facts['path']} holds {len(facts['series'])} series; choose one with --series")
        print("\n".join(f"  {one['text']}" for one in facts["series"]))
        return
    if "pictures" in facts:
        _print_pictures(facts)
        return
    print(facts["path"])
    modality = f", {facts['modality']}" if facts.get("modality") else ""
    stored = facts.get("segmentation_type")
    spacing = " x ".join(f"{value:g}" for value in facts["spacing_mm"])
    rows = [
        ("what", f"{facts['kind']}{modality}" + (f", DICOM SEG ({stored})" if stored else "")),
        ("voxels (i, j, k)", " x ".join(map(str, facts["shape_ijk"]))),
        ("spacing", _SPACINGS.get(facts.get("known_spacing", "all"), "{} mm").format(spacing)),
        ("axes run to", facts["axes_run_to"] + (", sheared (gantry tilt)" if facts["sheared"] else "")),
        ("first voxel (RAS)", ", ".join(f"{value:g}" for value in facts["origin_ras"]) + " mm"),
    ]
    if "intensity_range" in facts:
        low, high = facts["intensity_range"]
        window = facts["automatic_window"]
        rows += [
            ("values", f"{low:g} to {high:g} ({facts['voxels']})" if low is not None else "none finite"),
            ("automatic window", f"width {window['width']:g}, level {window['level']:g} ({window['name']})"),
        ]
    print_table([(f"  {name}", value) for name, value in rows])
    for segment in facts.get("segments", []):
        print(f"  segment {segment['value']}: {', '.join(_segment_text(segment))}")
    if labels := facts.get("may_be_a_label_map_of"):
        print(f"  labels: {', '.join(str(label['value']) for label in labels)}")


def _print_pictures(facts: dict[str, Any]) -> None:
    print(f"{facts['path']} holds {len(facts['pictures'])} pictures, each an image of its own:")
    rows = []
    for one in facts["pictures"]:
        size = " x ".join(map(str, one["shape_ijk"][:2])) if "shape_ijk" in one else "not readable"
        rows.append((f"  {Path(one['path']).name}", size, one.get("voxels", "")))
    print_table(rows)


def _segment_text(segment: dict[str, Any]) -> Iterator[str]:
    """Yield what is known of a segment, part by part."""
    yield segment["name"]
    yield volume_text(segment["millilitres"], segment["voxels"])
    if segment["code"]:
        yield segment["code"].replace("^", " ")
    if segment["algorithm_type"]:
        yield segment["algorithm_type"] + (
            f" ({segment['algorithm_name']})" if segment["algorithm_name"] else ""
        )
    if segment["colour_rgb"]:
        yield "#{:02x}{:02x}{:02x}".format(*segment["colour_rgb"])
