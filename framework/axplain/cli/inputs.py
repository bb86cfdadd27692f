"""What a command line names, as values: objects by `pkg.mod:name`, arrays by file, parameters by type."""

from __future__ import annotations

import csv
import importlib
import inspect
import io
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from axplain.discovery import catalog
from axplain.errors import ArgumentError, near_names
from axplain.parameters import find_spec
from axplain.reader import RESERVED
from axplain.seats.neurons import Neuron, neuron
from axplain.specs import Parameter, Spec

IMPORTABLE = "The current directory is importable."


@contextmanager
def importable(folder: str) -> Iterator[None]:
    """Let a command line name modules of a folder, for as long as its question takes."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:  # what the user imported may have rebuilt the path
            sys.path.remove(folder)


def load_object(reference: str, option: str) -> Any:
    """Return what `pkg.mod:name` names.

    Raises:
        ArgumentError: the module cannot be imported or has no such name.
    """
    module_name, _, path = reference.partition(":")
    if not module_name or not path:
        raise ArgumentError(option, f"{reference!r} came", "pkg.mod:name", IMPORTABLE)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        reason = f"importing {module_name!r} failed: {_reason(error)}"
        raise ArgumentError(option, reason, "a module that can be imported", IMPORTABLE) from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            near = near_names(name, vars(found) if isinstance(found, type | type(importlib)) else ())
            hint = f"Did you mean {near}?" if near else ""
            raise ArgumentError(option, f"{module_name} has no {path!r}", "a name in it", hint) from error
    return found


def load_model(reference: str, option: str = "--model") -> Callable[..., Any]:
    """Return the model that `pkg.mod:name` is, or returns when it is called without arguments.

    Raises:
        ArgumentError: it cannot be imported, fails, or gives nothing that can be called.
    """
    found = load_object(reference, option)
    if _is_factory(found):
        try:
            found = found()
        except Exception as error:
            expected = "a callable without arguments that returns the model"
            raise ArgumentError(option, f"calling {reference} failed: {_reason(error)}", expected) from error
    if not callable(found):
        raise ArgumentError(option, f"{reference} gave {type(found).__name__}", "a torch.nn.Module or a callable")
    model: Callable[..., Any] = found
    return model


def _is_factory(found: Any) -> bool:
    """Whether it is to be called for the model: a class, or a function that needs no argument; a model needs one."""
    if isinstance(found, torch.nn.Module) or not callable(found):
        return False
    if isinstance(found, type):
        return True
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError):  # it needs arguments, or is a builtin without a signature
        return False
    return True


@attrs.frozen
class Frame:
    """Where a model computes and in which floating type, where it is of one mind; files are brought into it."""

    device: torch.device | None
    dtype: torch.dtype | None

    @classmethod
    def of(cls, model: Any) -> Frame:
        """Read the frame from the parameters."""
        parameters = list(model.parameters()) if isinstance(model, torch.nn.Module) else []
        devices = {parameter.device for parameter in parameters}
        dtypes = {parameter.dtype for parameter in parameters if parameter.is_floating_point()}
        return cls(devices.pop() if len(devices) == 1 else None, dtypes.pop() if len(dtypes) == 1 else None)

    def fit(self, tensor: Tensor) -> Tensor:
        """Return a tensor where the model is and, if it is floating, in its type."""
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)


@attrs.frozen(eq=False)
class Inputs:
    """What files gave: `x`, names of its columns where a file has a header, and notes on what had to be changed."""

    x: Any
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_inputs(paths: Sequence[Path], frame: Frame, option: str = "--input") -> Inputs:
    """Read one file as a tensor, a tuple or a dict of keyword inputs, and several as a tuple of tensors.

    Raises:
        ArgumentError: a file cannot be read, or one of several holds more than one array.
    """
    inputs = [_read_input(path, frame, option) for path in paths]
    if len(inputs) == 1:
        return inputs[0]
    for path, given in zip(paths, inputs, strict=True):
        if not isinstance(given.x, Tensor):
            raise ArgumentError(
                option, f"{path} holds several arrays and is not the only file", "one array in each file"
            )
    return Inputs(tuple(given.x for given in inputs), notes=tuple(note for given in inputs for note in given.notes))


def _read_input(path: Path, frame: Frame, option: str) -> Inputs:
    value, columns = _read(path, option)
    if path.suffix.lower() in _TEXT:  # numbers in text have no type of their own
        return Inputs(frame.fit(value) if frame.dtype else value.to(frame.device, torch.get_default_dtype()), columns)
    before = list(_tensors(value))
    value = _each(frame.fit, value)
    pairs = zip(before, _tensors(value), strict=True)
    changed = {f"{_name(old)} to {_name(new)}" for old, new in pairs if old.dtype != new.dtype}
    notes = [f"{path} was converted from {change}, the type of the model's parameters" for change in sorted(changed)]
    return Inputs(value, columns, tuple(notes))


def _read(path: Path, option: str) -> tuple[Any, tuple[str, ...]]:
    suffix = path.suffix.lower()
    reader = _READERS.get(suffix) or _TEXT.get(suffix)
    if reader is None:
        expected = f"a file that ends in {', '.join(sorted(_READERS | _TEXT))}"
        cure = "Pictures need --modality image and --transform pkg.mod:function."
        raise ArgumentError(option, f"{path} came", expected, cure)
    try:
        value = reader(path)
    except ImportError as error:
        raise ArgumentError(option, f"{path} needs numpy to be read", "numpy", "pip install numpy") from error
    except pickle.UnpicklingError as error:
        cure = "Nothing in a file is executed."
        raise ArgumentError(
            option, f"{path} holds more than tensors", "tensors, a tuple or a dict of them", cure
        ) from error
    except Exception as error:
        raise ArgumentError(option, f"{path} cannot be read: {_reason(error)}", f"a {suffix} file") from error
    value, columns = value if suffix in _TEXT else (value, ())
    if not all(isinstance(item, Tensor) for item in _leaves(value)):
        raise ArgumentError(option, f"{path} holds {type(value).__name__}", "a tensor, a tuple or a dict of tensors")
    return value, columns


def _npy(path: Path) -> Tensor:
    import numpy

    return torch.from_numpy(numpy.load(path))


def _npz(path: Path) -> Any:
    import numpy

    with numpy.load(path) as archive:
        return _alone({name: torch.from_numpy(archive[name]) for name in archive.files})


def _safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return _alone(load_file(path))


def _torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _alone(arrays: dict[str, Tensor]) -> Any:
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def _csv(path: Path) -> tuple[Tensor, tuple[str, ...]]:
    text = path.read_text("utf-8-sig")
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    return _table(list(csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)))


def _txt(path: Path) -> tuple[Tensor, tuple[str, ...]]:
    return _table([line.replace(",", " ").split() for line in path.read_text("utf-8-sig").splitlines()])


def _table(lines: list[list[str]]) -> tuple[Tensor, tuple[str, ...]]:
    """Return one example per line in float64; a first line without any number names the columns."""
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line and not line[0].startswith("#")]
    columns: tuple[str, ...] = ()
    if numbered and all(_number(field) is None for field in numbered[0][1]):
        columns = tuple(field.strip() for field in numbered.pop(0)[1])
    if not numbered:
        raise ValueError("it holds no numbers")
    width = len(numbered[0][1])
    rows = []
    for number, line in numbered:
        row = [_number(field) for field in line]
        if None in row:
            raise ValueError(f"line {number}: {line[row.index(None)]!r} is no number")
        if len(row) != width:
            raise ValueError(f"line {number} has {len(row)} numbers and the first has {width}")
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64), columns if len(columns) == width else ()


_READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".pt": _torch,
    ".pth": _torch,
}
_TEXT: dict[str, Callable[[Path], Any]] = {".csv": _csv, ".txt": _txt}


def parse_target(text: str) -> Any:
    """Return a target: 3, one index per example (3,1,2), an index tuple ((3,7)), a neuron, or what pkg.mod:name names.

    Raises:
        ArgumentError: it is none of these.
    """
    plain = text.strip()
    is_tuple = plain.startswith("(") and plain.endswith(")")
    try:
        indices = [int(part) for part in plain.strip("()").strip(", ").split(",")]
    except ValueError:
        unit = parse_neuron(plain)
        if unit is not None:
            return unit
        if ":" in plain:
            return load_object(plain, "--target")
        expected = (
            "an index (3), one per example (3,1,2), an index tuple ('(3,7)'), a neuron (features.3:7,2,2) or "
            "pkg.mod:function"
        )
        raise ArgumentError("--target", f"{text!r} came", expected) from None
    if is_tuple:
        return tuple(indices)
    return indices if "," in plain else indices[0]


def parse_neuron(text: str) -> Neuron | None:
    """Return the neuron that `features.3:7,2,2` means, a layer and an index into it; None where a text means none.

    A `:` in the index stands for all of that dimension. No name of Python begins with a digit, so pkg.mod:name differs.
    """
    parts = _NEURON.fullmatch(text.strip())
    if parts is None:
        return None
    return neuron(parts[1], tuple(slice(None) if part == ":" else int(part) for part in parts[2].split(",")))


_NEURON = re.compile(r"([^:]+):((?:-?\d+|:)(?:,(?:-?\d+|:))*)")


class Settings:
    """The values of -p: `name=value` for the method, `owner.name=value` for what is inside or beside it."""

    def __init__(self, pairs: Iterable[str]) -> None:
        self._groups: dict[str, dict[str, str]] = {}
        for pair in pairs:
            key, equals, text = pair.partition("=")
            owner, _, name = key.strip().rpartition(".")
            if not equals or not name:
                raise ArgumentError("-p", f"{pair!r} came", "name=value, such as n_steps=50")
            if name in self._groups.setdefault(owner, {}):
                raise ArgumentError("-p", f"{key.strip()} came twice", "one value")
            if not owner and name in RESERVED:
                raise ArgumentError(
                    "-p", f"{name} came", "a parameter of the method", "That is an argument of explain."
                )
            self._groups[owner][name] = text.strip()

    def of_method(self, spec: Spec) -> dict[str, Any]:
        """Return the parameters of a method, with those of the methods inside it."""
        values = dict(_parsed(self._groups.pop("", {}), spec))
        for name, parameter in spec.parameters.items():
            if parameter.type == "method" and name in self._groups:
                inner = find_spec(values.get(name, parameter.default), name)
                values[name] = {"use": values.get(name, parameter.default), **self._take(name, inner)}
        return values

    def of_component(self, owner: str, name: str, kind: str, key: str = "use") -> Any:
        """Return a component as explain takes it: its name, or a dict with its parameters."""
        if owner not in self._groups:
            return name
        return {key: name, **self._take(owner, catalog().find(name, kind))}

    def check_all_taken(self) -> None:
        """Refuse values that nothing has taken.

        Raises:
            ArgumentError: their owner is not part of this call.
        """
        for owner, values in self._groups.items():
            came = f"{owner}.{next(iter(values))} came and nothing here is called {owner!r}"
            raise ArgumentError("-p", came, "the name of a parameter, or its owner's name before a dot")

    def _take(self, owner: str, spec: Spec) -> dict[str, Any]:
        return dict(_parsed(self._groups.pop(owner), spec))


def _parsed(texts: Mapping[str, str], spec: Spec) -> Iterator[tuple[str, Any]]:
    """Yield values of the declared types; what does not parse stays text, for the door to refuse by name."""
    for name, text in texts.items():
        parameter = spec.parameters.get(name)
        yield name, text if parameter is None else parse(text, parameter, f"-p {name}")


def parse(text: str, parameter: Parameter, option: str) -> Any:
    """Return the value that a text means for a parameter; the text itself where it means none."""
    if parameter.optional and text.lower() == "none":
        return None
    if parameter.type == "shape":
        return _shape(text)
    if parameter.per_input and "," in text:
        single = attrs.evolve(parameter, per_input=False)
        return tuple(parse(part.strip(), single, option) for part in text.split(","))
    match parameter.type:
        case "int" | "float":
            number = _number(text)
            return text if number is None else number
        case "bool":
            return _SWITCHES.get(text.lower(), text)
        case "values":
            number = _number(text)
            named = Path(text).suffix.lower() in _READERS | _TEXT
            return number if number is not None else _read(Path(text), option)[0] if named else text
        case "tensor":
            return _read(Path(text), option)[0]
        case "callable":
            return load_object(text, option)
        case "neuron":
            unit = parse_neuron(text)
            if unit is None:
                raise ArgumentError(option, f"{text!r} came", "layer:index, such as features.3:7,2,2", parameter.doc)
            return unit
        case _:
            return text


def _shape(text: str) -> Any:
    """Return 8 for every dimension, 3,8,8 for the last ones, or 3,8,8;4 for several inputs; else the text itself."""
    found = []
    for part in text.split(";"):
        try:
            sizes = tuple(int(size) for size in part.strip(" ()").strip(" ,").split(","))
        except ValueError:
            return text
        found.append(sizes if "," in part else sizes[0])
    return found[0] if len(found) == 1 else tuple(found)


_SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse_baselines(text: str, settings: Settings, frame: Frame) -> Any:
    """Return baselines: a number, the arrays of a file, what pkg.mod:name names, or the name of a baseline plugin."""
    number = _number(text)
    if number is not None:
        return float(number)
    path = Path(text)
    if path.suffix.lower() in _READERS | _TEXT:
        if not path.exists():
            raise ArgumentError("--baselines", f"{text} does not exist", "the path of a file with arrays")
        return _read_input(path, frame, "--baselines").x
    if ":" in text:
        return load_object(text, "--baselines")
    return settings.of_component("baselines", text, "baseline")


def read_call(method: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """Return the arguments of `axplain.explain`, names of the columns of x, and notes; what is not given is left out.

    Raises:
        ArgumentError: an option cannot be used; the message names it.
        UnknownMethod: the method, noise mode, baseline or modality is not installed.
    """
    settings = Settings(options["pairs"])
    call: dict[str, Any] = settings.of_method(find_spec(method)) | {"method": method}
    call["noise"] = options["noise"] and settings.of_component("noise", options["noise"], "noise", key="mode")
    call["target"] = options["target"] and parse_target(options["target"])
    call["modality"] = _modality(options, settings)
    call["model"] = load_model(options["model"])
    frame = Frame.of(call["model"])
    if options["modality"]:
        paths = [str(path) for path in options["inputs"]]
        inputs = Inputs(paths[0] if len(paths) == 1 else paths)
    else:
        inputs = read_inputs(options["inputs"], frame)
    call["x"] = inputs.x
    call["baselines"] = options["baselines"] and parse_baselines(options["baselines"], settings, frame)
    settings.check_all_taken()
    layers = options["layer"] or ()
    call["layer"] = None if not layers else layers[0] if len(layers) == 1 else list(layers)
    call["feature_mask"] = options["feature_mask"] and _mask(options["feature_mask"], inputs.x)
    call |= {name: options[name] for name in ("batch_size", "tolerance", "seed")}
    call = {name: value for name, value in call.items() if value is not None}
    if options["seed"] == "fresh":
        call["seed"] = None
    columns = inputs.columns if not layers else ()
    return call | {"verify": not options["no_verify"]}, columns, inputs.notes


def _mask(path: Path, x: Any) -> Tensor:
    """Return a mask of whole numbers, (1, ...) where the file has one for all examples.

    Raises:
        ArgumentError: the file holds fractions, or several arrays.
    """
    mask = _read(path, "--feature-mask")[0]
    if not isinstance(mask, Tensor) or (mask.is_floating_point() and not torch.equal(mask, mask.round())):
        raise ArgumentError("--feature-mask", f"{path} came", "one array of whole numbers")
    like = next(_tensors(x), mask)
    return mask.long() if mask.ndim == like.ndim else mask.long().unsqueeze(0)


def _modality(options: Mapping[str, Any], settings: Settings) -> Any:
    name, transform = options["modality"], options["transform"]
    if transform and not name:
        raise ArgumentError("--transform", f"{transform} came", "a modality beside it", "Add --modality image.")
    chosen = name and settings.of_component("modality", name, "modality")
    if not transform:
        return chosen
    given = chosen if isinstance(chosen, dict) else {"use": name}
    return {**given, "transform": load_object(transform, "--transform")}


def _number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return None


def _leaves(value: Any) -> Iterator[Any]:
    yield from value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)


def _tensors(value: Any) -> Iterator[Tensor]:
    return (item for item in _leaves(value) if isinstance(item, Tensor))


def _each(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, dict):
        return {name: function(item) for name, item in value.items()}
    return tuple(function(item) for item in value) if isinstance(value, tuple) else function(value)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _reason(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(": ")
