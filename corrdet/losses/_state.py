"""What losses keep from step to step, and how it is in checkpoints."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class KeepsStates(nn.Module):
    """A module with losses whose states are saved, loaded and moved with it."""

    # By name; each has a ``state``, and ``keeps_state`` says whether it has any with its options.
    _losses: dict[str, Any]

    # What losses keep from step to step is in checkpoints as parameters are, under
    # ``state.<loss>.<name>[<shape>]``, lists with their index behind the name. A training that has
    # just begun has none, and so have other losses' checkpoints: neither is an error. The shape is
    # in the key since Detectron2's checkpointer drops what has another shape than in the model now.

    def restore(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on with the states of losses, by their names, as checkpoints of version 0.1 have them.

        States of other losses than these are left out.
        """
        for name, state in states.items():
            if name in self._losses and self._losses[name].keeps_state:
                self._losses[name].state.update(state)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for loss, bound in self._losses.items():
            for name, value in bound.state.items():
                entries = {name: value}
                if isinstance(value, list):
                    entries = {f"{name}.{index}": item for index, item in enumerate(value)}
                for entry, item in entries.items():
                    tensor = torch.as_tensor(item).detach()
                    destination[f"{prefix}state.{loss}.{entry}{list(tensor.shape)}"] = tensor

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for loss, bound in self._losses.items():
            if not bound.keeps_state:
                # Nor is what was kept while it was switched on carried on to the next checkpoint.
                continue
            start = f"{prefix}state.{loss}."
            loaded: dict[str, Any] = {}
            lists: dict[str, dict[int, Tensor]] = {}
            for key in [key for key in state_dict if key.startswith(start)]:
                entry = key.removeprefix(start).partition("[")[0]
                name, _, index = entry.rpartition(".")
                # A copy: losses may write into what they keep.
                value = state_dict[key].clone()
                if name and index.isdigit():
                    lists.setdefault(name, {})[int(index)] = value
                else:
                    loaded[entry] = value
            for name, items in lists.items():
                loaded[name] = [items[index] for index in sorted(items)]
            bound.state.clear()
            bound.state.update(loaded)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KeepsStates":
        """States follow to another device, but keep their precision: they are of float32 losses."""

        def moved(value: Any) -> Any:
            if isinstance(value, list):
                return [moved(item) for item in value]
            if isinstance(value, Tensor):
                return value.to(fn(value.flatten()[:0]).device)
            return value

        super()._apply(fn, recurse)
        for bound in self._losses.values():
            for name, value in bound.state.items():
                bound.state[name] = moved(value)
        return self
