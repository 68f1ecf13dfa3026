"""A command line to try: runs in this process, and tells exit code, stdout, stderr and the error."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from medsam2_core.cli import app, main
from medsam2_core.errors import MedSAM2Error
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume

# Where the bright ball of `a_scan` is, in array indices.
CENTRE_IJK = (20, 26, 12)
RADIUS = 7
BALL_BOX = "13,19,27,33@12"


@dataclass
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str
    error: MedSAM2Error | None = None  # that ended it, for its code and fields

    @property
    def facts(self):
        """What ``--json`` printed."""
        return json.loads(self.out)

    def refused(self, code: str, **fields: Any) -> bool:
        """Whether it ended with exit code 2, this error with at least these fields, and one line."""
        assert self.code == 2, self
        assert self.error is not None, self.err
        assert self.error.code == code, self.err
        assert {name: self.error.fields.get(name) for name in fields} == fields, self.err
        assert self.err.splitlines()[-1].startswith("medsam2: "), self.err
        return True


class CommandLine:
    """Call it with the words of a command line."""

    def __init__(self, capsys) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> Answer:
        self._capsys.readouterr()
        with mock.patch.object(app, "print_error", side_effect=app.print_error) as print_error:
            code = main([str(word) for word in words])
        said = self._capsys.readouterr()
        error = print_error.call_args.args[0] if print_error.called else None
        return Answer(code, said.out, said.err, error)


def ball_kji() -> np.ndarray:
    """(24, 48, 40) true mask of the ball."""
    k, j, i = np.mgrid[:24, :48, :40]
    a, b, c = CENTRE_IJK
    return (i - a) ** 2 + (j - b) ** 2 + ((k - c) * 2) ** 2 <= RADIUS**2


def write_nrrd(path: Path, voxels_kji: np.ndarray) -> Path:
    """Voxels of 1 x 1 x 2 mm, stored with i to Left, j to Posterior, k to Superior."""
    import nrrd

    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag([1.0, 1.0, 2.0]),
        "space origin": np.array([-10.0, 5.0, 100.0]),
    }
    nrrd.write(str(path), np.ascontiguousarray(voxels_kji.T), header)
    return path


def ball_in_noise() -> np.ndarray:
    """(24, 48, 40) int16 voxels: a bright ball in noise."""
    noise = np.random.default_rng(3).normal(100, 10, (24, 48, 40))
    return (noise + 300 * ball_kji()).astype(np.int16)


def a_scan() -> Volume:
    """A bright ball in noise, as a session gets it."""
    return Volume(ball_in_noise(), Geometry(np.diag([-1.0, -1.0, 2.0, 1.0]), (40, 48, 24)), modality="MR")


def write_scan(path: Path) -> Path:
    """A bright ball in noise."""
    return write_nrrd(path, ball_in_noise())


def write_photo(path: Path) -> Path:
    """The middle slice of the ball, without noise, as a picture."""
    from PIL import Image

    Image.fromarray((ball_kji()[12] * 200 + 20).astype(np.uint8)).save(path)
    return path


def write_untrained_model(folder: Path, side: int = 96) -> Path:
    """A checkpoint with the embedded model's architecture, never trained, for small images.

    It is prompted as the embedded model is. It predicts every object to be present, so that tracking does
    not end at once.
    """
    import torch
    from medsam2_core.engine.card import ModelCard
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.model import build_module
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path = folder / "small-embedded.safetensors"
    state = build_module("embedded").state_dict()
    state["sam_mask_decoder.pred_obj_score_head.layers.2.bias"].fill_(5.0)
    entry = Catalogue.load().find("embedded")
    card = ModelCard("embedded", "", entry.config, side, entry.recipe, entry.postprocessing)
    save_file({key: value.contiguous() for key, value in state.items()}, path, card.metadata())
    return path
