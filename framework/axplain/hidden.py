"""Models whose code nobody but themselves sees run: scripted, compiled, or spread over devices by threads."""

from __future__ import annotations

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
    hidden: dict[type, str] = {
        torch.jit.ScriptModule: "scripted: explain the module that was scripted",
        torch.jit.ScriptFunction: "scripted: explain the function that was scripted",
        torch.nn.DataParallel: "run by threads: explain model.module",
    }
    parts: dict[str, Any] = dict(model.module.named_modules()) if model.module is not None else {"": model.function}
    for name, part in parts.items():
        if around is not None and not any(inner is around for inner in part.modules()):
            continue
        where = f"module {name!r} is " if name else "it is "
        for kind, cure in hidden.items():
            if isinstance(part, kind):
                raise UncoveredOperation(f"model: {where}{cure}. {why}")
        if _compiled(part):
            raise UncoveredOperation(f"model: {where}compiled: explain the module before torch.compile. {why}")


def _compiled(part: object) -> bool:
    """Whether it came from torch.compile, or is a module whose own `compile` was called."""
    made = hasattr(part, "_orig_mod") or hasattr(part, "_torchdynamo_orig_callable")
    return made or getattr(part, "_compiled_call_impl", None) is not None
