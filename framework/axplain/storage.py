"""Explanations on disk: safetensors for arrays, JSON in its header for the rest; no pickle, nothing is executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import torch
from torch import Tensor

from axplain.cost import Cost
from axplain.errors import ArgumentError
from axplain.explanation import Explanation
from axplain.structure import Structure

FORMAT: Final = "axplain-explanation-1"
_PLAIN = ("method", "spec_version", "parameters", "target", "seconds", "notes", "provenance")


def to_dict(explanation: Explanation, *, tensors: bool) -> dict[str, Any]:
    """Return an explanation as JSON can hold it."""
    document = _header(explanation)
    document["residuals"] = {name: values.tolist() for name, values in explanation.residuals.items()}
    document["difference"] = None if explanation.difference is None else explanation.difference.tolist()
    if tensors:
        document["attributions"] = _lists(explanation.attributions, explanation.structure)
        document["standard_errors"] = _lists(explanation.standard_errors, explanation.structure)
    return document


def _header(explanation: Explanation) -> dict[str, Any]:
    """Return everything but the arrays."""
    document = {name: getattr(explanation, name) for name in _PLAIN}
    structure = {"kind": explanation.structure.kind, "names": list(explanation.structure.names)}
    return document | {"cost": attrs.asdict(explanation.cost), "structure": structure}


def _lists(packed: Any, structure: Structure) -> Any:
    """Return tensors as nested lists, in a list, or in a dict by name where there are several."""
    if packed is None:
        return None
    lists = [tensor.tolist() for tensor in structure.unpack(packed)]
    return lists if structure.kind == "tuple" else structure.pack(lists)


def save(explanation: Explanation, path: Path) -> Path:
    """Write an explanation."""
    from safetensors.torch import save as serialize

    document = _header(explanation) | {"fingerprint": fingerprint(explanation)}
    arrays = {f"residuals.{name}": values for name, values in explanation.residuals.items()}
    if explanation.difference is not None:
        arrays["difference"] = explanation.difference
    for group in ("attributions", "standard_errors"):
        packed = getattr(explanation, group)
        if packed is not None:
            tensors = explanation.structure.unpack(packed)
            arrays |= {f"{group}.{name}": t for name, t in zip(explanation.structure.names, tensors, strict=True)}
    arrays = {name: tensor.detach().cpu().contiguous() for name, tensor in arrays.items()}
    metadata = {"format": FORMAT, "explanation": json.dumps(document)}
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(serialize(arrays, metadata))  # save_file would make a file that only its owner may read
    return part.replace(path)


def load(path: Path) -> Explanation:
    """Read an explanation."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # cloned: the tensors are views of the file, and change when somebody writes it again
            arrays = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ArgumentError(
            "path", f"{path} is not a safetensors file", "a file that Explanation.save wrote"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ArgumentError("path", f"{path} has the format {metadata.get('format')!r}", FORMAT)
    document = json.loads(metadata["explanation"])
    structure = Structure(document["structure"]["kind"], tuple(document["structure"]["names"]))
    provenance = document["provenance"] | {"fingerprint": document["fingerprint"]}
    return Explanation(
        attributions=_pack(arrays, "attributions", structure),
        standard_errors=_pack(arrays, "standard_errors", structure),
        residuals={name.partition(".")[2]: t for name, t in arrays.items() if name.startswith("residuals.")},
        difference=arrays.get("difference"),
        cost=Cost(**document["cost"]),
        structure=structure,
        **{name: document[name] for name in _PLAIN} | {"provenance": provenance},
    )


def _pack(arrays: Mapping[str, Tensor], group: str, structure: Structure) -> Any:
    if f"{group}.{structure.names[0]}" not in arrays:
        return None
    return structure.pack([arrays[f"{group}.{name}"] for name in structure.names])


def fingerprint(explanation: Explanation) -> str | None:
    """Return the SHA-256 of the model's parameters and buffers as they are now; None where there is no module."""
    known: str | None = explanation.provenance.get("fingerprint")
    model = explanation.model() if explanation.model else None
    if not isinstance(model, torch.nn.Module):
        return known
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
