"""Laws of weights' identities: other weights, another identity, and a sample is never taken for a hash."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from sa_eval.loading import weights


@pytest.fixture
def tensors():
    return {f"layers.{idx}.weight": torch.full((64, 64), float(idx)) for idx in range(5)}


def of(folder, tensors, **metadata):
    save_file(tensors, folder / "model.safetensors", metadata=metadata or None)
    return weights.identity(weights.files_of(folder))


def test_small_weights_are_hashed_whole(tmp_path, tensors):
    found = of(tmp_path, tensors)
    assert found == {"weights_sha256": hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()}


def test_large_weights_have_a_fingerprint_that_sees_every_tensor(tmp_path, tensors, monkeypatch):
    monkeypatch.setattr(weights, "HASH_LIMIT_BYTES", 1000)
    monkeypatch.setattr(weights, "BLOCK_BYTES", 256)
    found = of(tmp_path, tensors)
    assert found["weights_sha256"] is None and found["weights_fingerprint"].startswith("sampled-")
    assert of(tmp_path, tensors) == found
    seen = {found["weights_fingerprint"]}
    for name in tensors:  # each of them trained a little
        seen.add(of(tmp_path, {**tensors, name: tensors[name] + 1e-3})["weights_fingerprint"])
    seen.add(of(tmp_path, {**tensors, "more": torch.zeros(1)})["weights_fingerprint"])
    seen.add(of(tmp_path, {name: tensor.int() for name, tensor in tensors.items()})["weights_fingerprint"])
    assert len(seen) == 8


def test_a_fingerprint_reads_a_small_part(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "HASH_LIMIT_BYTES", 1000)
    save_file({"weight": torch.zeros(4 << 20)}, tmp_path / "model.safetensors")
    (tmp_path / "old.bin").write_bytes(bytes(5000))
    read = 0
    real = weights.hashlib.sha256

    class Counting:
        def __init__(self):
            self.digest = real()

        def update(self, data):
            nonlocal read
            read += len(data)
            self.digest.update(data)

        def hexdigest(self):
            return self.digest.hexdigest()

    monkeypatch.setattr(weights.hashlib, "sha256", Counting)
    weights.identity(weights.files_of(tmp_path))
    assert read < 20_000  # of 16 million


def test_a_folder_without_weights_has_none(tmp_path):
    assert weights.identity(weights.files_of(tmp_path)) == {"weights_sha256": None}
