"""Expect errors by their code and fields, not by their sentences."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from medsam2_core.errors import MedSAM2Error


@contextmanager
def raises(code: str, error_type: type[MedSAM2Error] = MedSAM2Error, **fields: Any) -> Iterator[Any]:
    """Expect an error of ``error_type`` with a code, and with at least these fields."""
    with pytest.raises(error_type) as caught:
        yield caught
    error = caught.value
    assert error.code == code, f"{error.code!r}: {error}"
    missing = {name: error.fields.get(name) for name in fields if error.fields.get(name) != fields[name]}
    assert not missing, f"{code}: fields {missing} instead of {fields}"
