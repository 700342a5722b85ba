"""What genfast's modules add to nn.Module: a state dict that says what it belongs to, and loads whole or not at all."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genfast._tracing import has_values

_EXTRA = "_extra_state"
_LATER = {"context_features": None, "event_dim": 1}  # options of every kind of module, which came later


class Module(nn.Module):
    """An nn.Module that a refused `load_state_dict` leaves as it was."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in nn.Module; where it raises, nothing has changed."""
        before = [(m, dict(m._parameters), dict(m._buffers)) for m in self.modules()]  # noqa: SLF001
        with torch.no_grad():
            values = {t: t.clone() for _, p, b in before for t in (*p.values(), *b.values()) if t is not None}
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except Exception:
            with torch.no_grad():
                for t, value in values.items():
                    t.copy_(value)
            for module, parameters, buffers in before:
                module._parameters.update(parameters)  # noqa: SLF001
                module._buffers.update(buffers)  # noqa: SLF001
            raise

    def reset_parameters(self) -> None:
        """Draw the initial parameters again, those of all parts: what `to_empty` is followed by."""
        for child in self.children():
            reset(child)


class Configured(Module):
    """A module whose options are saved in its state dict, which no module of other options loads.

    The options are JSON, each byte a float32: so it goes through whatever is done to the tensors of a state dict, such
    as averaging, casting and safetensors. A state dict without them, from an earlier version, is loaded unchecked.
    """

    def saved_options(self) -> dict[str, Any]:
        """What a module must have in common with the one whose state it loads, beside shapes."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        """The options, encoded."""
        options = {"type": type(self).__name__, **self.saved_options()}
        for name, usual in _LATER.items():  # a module that has none of them is saved as it was before there were any
            value = getattr(self, name, None)
            if value not in (None, usual):
                options[name] = value
        encoded = json.dumps(options, sort_keys=True, default=repr).encode("ascii")
        return torch.tensor(list(encoded), dtype=torch.float32, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Nothing: `_load_from_state_dict` compares."""

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        fault = self._other_options(state_dict.get(prefix + _EXTRA))
        if fault:
            error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: {fault}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if prefix + _EXTRA in missing_keys:
            missing_keys.remove(prefix + _EXTRA)

    def _other_options(self, state: Any) -> str:
        if not isinstance(state, Tensor) or not has_values(state):
            return ""
        own = json.loads(bytes(self.get_extra_state().to(torch.uint8).tolist()))
        try:
            saved = json.loads(bytes(state.float().round().to(torch.uint8).tolist()))
        except ValueError:
            return "the state dict's _extra_state is damaged; delete it there to load without a check of the options"
        if saved == own:
            return ""
        names = [k for k in {**own, **saved} if own.get(k) != saved.get(k)]
        theirs, ours = (", ".join(f"{k}={d.get(k)!r}" for k in names) for d in (saved, own))
        return f"the state dict is that of a module with {theirs}, this one has {ours}"


def reset(module: nn.Module) -> None:
    """Call `reset_parameters` of a module, or of the parts of one that has none."""
    if callable(getattr(module, "reset_parameters", None)):
        module.reset_parameters()  # type: ignore[operator]
    else:
        for child in module.children():
            reset(child)
