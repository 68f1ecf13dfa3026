"""What an Auto model finds in tests: discs by class, with predicted boxes, on slices along k."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from medsam2_core.auto.predictions import AutoPrediction
from medsam2_core.export.resampling import on_grid_of
from medsam2_core.imaging.segmentation import Segmentation
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.prompts import Box
from medsam2_core.prompts.slice_prompts import predicted_prompt

KIDNEY = (
    "Segmentation category~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~^^~Anatomic codes~^^~^^"
)


def a_model(file="organs", axis="axial", modality="", classes=("kidney", "cyst"), **more) -> dict:
    """As a worker lists it."""
    told = [{"name": name, "colour_rgb": [1, 0, 0], "terminology": ""} for name in classes]
    return {
        **{"file": file, "path": f"/models/{file}.medsam2auto", "name": file.capitalize(), "classes": told},
        **{"base": "embedded", "axis": axis, "modality": modality, "training": {"images": 10}},
        **more,
    }


def a_disc(stack, centre_ij, radius) -> np.ndarray:
    """(H, W) of a slice along k, given by i and j."""
    x, y, _ = stack.to_slice([[*centre_ij, 0]])[0]
    rows, columns = np.indices(stack.shape_hw)
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def a_prediction(stack, name, centre_ij, radius, slices, boxes=(), colour=(0.2, 0.4, 0.6), **more):
    """A disc of one class on some slices, the numbers being those of the stack."""
    mask, nothing = a_disc(stack, centre_ij, radius), np.zeros(stack.shape_hw, bool)
    i, j = centre_ij
    prompts = {}
    for n in boxes:
        k = stack.to_ijk([[0, 0, n]])[0, 2]
        corners = (i - radius, j - radius, k), (i + radius, j + radius, k)
        prompts[n] = (Box.between(*corners, predicted=True),)
    records = {
        n: SliceMask.from_mask(
            name, n, mask if n in slices else nothing, predicted_iou=0.8, prompted=n in boxes
        )
        for n in {*slices, *boxes}
    }
    return AutoPrediction(name, colour, more.pop("terminology", ""), 0.8, prompts, records)


def kidney_and_cyst(session, request):
    """A kidney on slices 3 to 7, a cyst on 5 and 6; a spleen is looked for in vain."""
    wanted = range(len(session.stack)) if request.first is None else range(request.first, request.last + 1)
    of_kidney, of_cyst = ([n for n in slices if n in wanted] for slices in (range(3, 8), (5, 6)))
    return [
        a_prediction(session.stack, "kidney", (8, 9), 4, of_kidney, of_kidney[::3], terminology=KIDNEY),
        a_prediction(session.stack, "cyst", (20, 14), 3, of_cyst, of_cyst[:1], (0.9, 0.1, 0.3)),
        AutoPrediction("spleen", (1.0, 1.0, 0.0)),
    ]


def found_again(session, request):
    """The objects of another scan, where they were: of a prior, or of the first example."""
    stack, predictions = session.stack, []
    others = [request.prior] if request.prior is not None else [one for _, one, _ in request.examples]
    for segment in (one for other in others for one in other):
        here = on_grid_of(Segmentation(others[0].geometry, (segment,)), stack.volume.geometry)
        masks = {}
        for one in here:
            masks = {n: stack.mask_of(one.part_kji, n, one.offset_ijk) for n in range(len(stack))}
        found = {n: mask for n, mask in masks.items() if mask.any()}
        records = {
            n: SliceMask.from_mask(segment.name, n, mask, predicted_iou=0.8, prompted=False)
            for n, mask in found.items()
        }
        prompts = {}
        if found:
            n = max(found, key=lambda n: (int(found[n].sum()), -n))
            prompts[n] = (predicted_prompt(None, records[n], n, stack),)
            records[n] = replace(records[n], prompted=True)
        terminology, confidence = segment.tags.get("TerminologyEntry", ""), 0.8 * bool(found)
        predictions.append(
            AutoPrediction(segment.name, segment.colour_rgb, terminology, confidence, prompts, records)
        )
    return predictions
