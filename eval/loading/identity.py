"""What was evaluated, so that somebody else can check that they hold the same weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelIdentity:
    """A hub model is known by its commit, a local one by its bytes, a GGUF file also by its number formats.

    Attributes:
        parameters: how many numbers; tied ones count once.
        revision: the commit that a hub model was loaded from.
        weights_sha256: of all weight files in name order; None where hashing takes long, then there is a fingerprint.
        quantization: of a GGUF file, the number of tensors by format, as in {"Q4_1": 210, "F32": 61}.
    """

    name: str
    model_class: str
    parameters: int
    dtype: str
    layers: int
    hub_id: str | None = None
    revision: str | None = None
    file: str | None = None
    quantization: dict[str, int] | None = None
    weights_sha256: str | None = None
    weights_fingerprint: str | None = None

    def to_dict(self) -> dict[str, object]:
        """As the manifest holds it: only what such a model has."""
        found: dict[str, object] = {
            "name": self.name,
            "class": self.model_class,
            "parameters": self.parameters,
            "dtype": self.dtype,
            "layers": self.layers,
        }
        if self.hub_id is not None:
            return {**found, "hub_id": self.hub_id, "revision": self.revision}
        if self.file is not None:
            found |= {"file": self.file, "quantization": self.quantization}
        found["weights_sha256"] = self.weights_sha256
        if self.weights_fingerprint is not None:
            found["weights_fingerprint"] = self.weights_fingerprint
        return found
