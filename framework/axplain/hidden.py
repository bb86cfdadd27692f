"""Models whose code nobody but themselves sees run: scripted, compiled, or spread over devices by threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from axplain.errors import UncoveredOperation
from axplain.model import Model


def refuse_hidden_code(
    model: Model, why: str = "A rule set must see each operation.", around: torch.nn.Module | None = None
) -> None:
    """Refuse models whose operations and layers cannot be seen; `why` says what needs to see them.

    `around`: only code that holds this layer is refused; None where all of the model must be seen.

    Raises:
        UncoveredOperation: the model, or a part of it, is scripted, compiled or spread over devices by threads.
    """
    for name, part in _code(model).items():
        how = _hidden(part)
        if how and (around is None or any(inner is around for inner in part.modules())):
            where = f"module {name!r} is " if name else "it is "
            raise UncoveredOperation(f"model: {where}{how}. {why}")


def hides_code(model: Model) -> bool:
    """Whether the operations of some part of a model cannot be seen."""
    return any(map(_hidden, _code(model).values()))


def _code(model: Model) -> Mapping[str, Any]:
    """Return the modules of a model by name, or the function that it is."""
    return model.parts or {"": model.function}


def _hidden(part: Any) -> str:
    """Say how the code of a module, or function, is hidden and what to explain instead; nothing where it is not."""
    if isinstance(part, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        return (
            f"scripted: explain the {'module' if isinstance(part, torch.nn.Module) else 'function'} that was scripted"
        )
    if isinstance(part, torch.nn.DataParallel):
        return "run by threads: explain model.module"
    own = getattr(part, "__dict__", {})  # asking a module for what it has not is slow
    compiled = "_orig_mod" in own.get("_modules", own) or own.get("_compiled_call_impl") is not None
    return (
        "compiled: explain the module before torch.compile" if compiled or "_torchdynamo_orig_callable" in own else ""
    )
