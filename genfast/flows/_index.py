"""Modules ruled by one small saved tensor, a mask or an order, from which indices are derived."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genfast._module import Module
from genfast._tracing import has_values, is_transformed


class IndexModule(Module):
    """A module with a saved vector and index buffers that always follow it.

    They are derived anew where the vector in use is another tensor or was changed in place (`load_state_dict`, `copy_`,
    `functional_call`, `.to()`), and written again where `to_empty` left none. Under `torch.vmap` of the vector, as over
    `stack_module_state`, they are derived in tensor operations. Only `torch.compile` does not see a change in place by
    other ways than `load_state_dict`.
    """

    #: The name of the saved vector.
    source: str
    _values: list[int]
    _seen: tuple[Tensor, int]

    def _derive(self, values: list[int]) -> dict[str, list[int]]:
        """The index buffers by name, of the values of the saved vector; whatever else hangs on them is set here."""
        raise NotImplementedError

    def _fault(self, values: list[int]) -> str:
        """Why these values cannot rule this module; "" where they can."""
        raise NotImplementedError

    def _register(self, values: Sequence[int], like: Tensor, *, persistent: Sequence[str] = ()) -> None:
        self.register_buffer(self.source, like)
        for name, index in self._derive(list(values)).items():
            buffer = torch.tensor(index, dtype=torch.int64, device=like.device)
            self.register_buffer(name, buffer, persistent=name in persistent)
        self._values, self._seen = list(values), (like, _version(like))

    def _follow(self) -> bool:
        """Derive anew what is stale; False where the saved vector is batched, so that indices hang on the entry."""
        if torch.compiler.is_compiling():
            return True
        vector = self._buffers[self.source]
        assert vector is not None  # noqa: S101  (registered above)
        if vector is self._seen[0] and _version(vector) == self._seen[1]:
            return True
        if is_transformed(vector):
            return False
        if has_values(vector):
            values = vector.flatten().tolist()
            if values != self._values:
                fault = self._fault(values)
                if fault:
                    raise ValueError(f"{self.source}: {fault}")
                self._write(values)
        self._seen = (vector, _version(vector))
        return True

    @torch.no_grad()
    def _write(self, values: list[int]) -> None:
        device = self._buffers[self.source].device  # type: ignore[union-attr]
        for name, index in self._derive(values).items():
            old, new = self._buffers[name], torch.tensor(index, dtype=torch.int64, device=device)
            if old is None or old.device != device or old.shape != new.shape or old.is_inference():
                self._buffers[name] = new
            else:
                old.copy_(new)
        self._values = values

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._follow()
        before = self._buffers[self.source]
        super()._apply(fn, recurse)
        vector = self._buffers[self.source]
        if vector is not None and vector is not before:
            if vector.device.type != "meta":
                with torch.no_grad():
                    vector.copy_(
                        torch.tensor(self._values, dtype=vector.dtype, device=vector.device).view(vector.shape)
                    )
                self._write(self._values)
            self._seen = (vector, _version(vector))
        return self

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
        saved = state_dict.get(prefix + self.source)
        if isinstance(saved, Tensor) and has_values(saved):
            fault = self._fault(saved.to(self._buffers[self.source].dtype).flatten().tolist())  # type: ignore[union-attr]
            if fault:
                error_msgs.append(f"{prefix}{self.source}: {fault}")
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._follow()


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version  # noqa: SLF001
