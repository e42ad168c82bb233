"""Files that are streamed are what the format's own library reads."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from trainer import tensor_files
from trainer.tensor_files import DTYPES, write_tensors


@pytest.fixture(params=[1, 7, 1 << 22], ids=lambda size: f"pieces of {size}")
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "PIECE", request.param)


@pytest.mark.usefixtures("piece")
def test_the_formats_library_reads_every_bit_of_every_dtype_and_shape(tmp_path: Path) -> None:
    numbers = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 100
    tensors = {f"of {name}": numbers.to(dtype) for dtype, name in DTYPES.items()}
    tensors |= {"0-dim": torch.tensor(2.5), "empty": torch.zeros(0, 4), "nan": torch.tensor([float("nan"), -0.0])}
    tensors |= {"not contiguous": numbers.t(), "a part": numbers[1:3, ::2], "Ünïcode/name": torch.ones(1)}
    written = write_tensors(tmp_path / "file", tensors, {"key": "value"})
    read = load_file(tmp_path / "file")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert file.metadata() == {"key": "value"}
    content = (tmp_path / "file").read_bytes()
    assert written == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_dtype_that_the_format_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="complex64"):
        write_tensors(tmp_path / "file", {"x": torch.zeros(2, dtype=torch.complex64)}, {})
