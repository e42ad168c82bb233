"""Files that are streamed are what the format's own library reads."""

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from trainer import tensor_files
from trainer.manifest import digest_of
from trainer.tensor_files import BITS, DTYPES, NotFiniteError, write_tensors


@pytest.fixture(params=[1, 7, tensor_files.PIECE], ids=lambda size: f"pieces of {size}")
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "PIECE", request.param)
    monkeypatch.setattr(tensor_files, "BACKLOG", 64)


@pytest.mark.usefixtures("piece")
def test_the_formats_library_reads_every_bit_of_every_dtype_and_shape(tmp_path: Path) -> None:
    numbers = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 100
    tensors = {f"of {name}": numbers.to(dtype) for dtype, name in DTYPES.items()}
    tensors |= {"0-dim": torch.tensor(2.5), "empty": torch.zeros(0, 4), "zeros": torch.tensor([0.0, -0.0])}
    tensors |= {"not contiguous": numbers.t(), "a part": numbers[1:3, ::2], "Ünïcode/name": torch.ones(1)}
    written = write_tensors(tmp_path / "file", tensors, {"key": "value"})
    read = load_file(tmp_path / "file")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert file.metadata() == {"key": "value"}
    assert written == digest_of(tmp_path / "file")


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_numbers_are_refused_only_if_they_are_not_finite(tmp_path: Path, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    finite = torch.tensor([0.0, -0.0, limits.max, limits.min, limits.tiny, limits.smallest_normal / 2], dtype=dtype)
    write_tensors(tmp_path / "file", {"x": finite}, {})
    for bad in (math.nan, -math.nan, math.inf, -math.inf):
        with pytest.raises(NotFiniteError, match="^y$"):
            write_tensors(tmp_path / "file", {"x": finite, "y": torch.cat([finite, torch.tensor([bad]).to(dtype)])}, {})


def test_a_dtype_that_the_format_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="complex64"):
        write_tensors(tmp_path / "file", {"x": torch.zeros(2, dtype=torch.complex64)}, {})
