"""The state of a base optimizer in the flat buffers of a bucket, and its relation to ``optimizer.state``.

``optimizer.state`` is the truth: what users put there, replace, take away or load is taken over before the next update. In it are views
of the buffers, under the names of torch's own optimizers and only where an update has written them. Counts of updates live on the
device, because whether a step was skipped is known only there.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..ops.bases import BASES, states_used
from ..ops.lists import Row

State = dict[Tensor, dict[str, Any]]
STEP = "step"


def names_of(base: str, options: Mapping[str, Any]) -> dict[str, str]:
    """List of descend_ -> key of the state, for a group with these options."""
    return {name: BASES[base].state[name] for name in states_used(base, options)}


class StateBuffers:
    def __init__(self, params: Sequence[Tensor], dtype: torch.dtype, allocate: Callable[[Sequence[Tensor], torch.dtype], Row]) -> None:
        self.params, self._dtype, self._allocate = params, dtype, allocate
        self.buffers: dict[str, Row] = {}
        self.steps = torch.zeros(len(params), dtype=torch.float32, device=params[0].device)
        self._counts = list(self.steps.unbind())  # what state[p]["step"] is
        self._keys: dict[str, str] = {}  # list of descend_ -> key, for every state ever adopted
        self._held: list[tuple[str, list[dict[str, Any]], list[Tensor]]] = []  # key, entries that have it, their views
        self._seen: tuple[Any, ...] = ()
        self._asked: tuple[Any, ...] = ()  # arguments of the last adopt() beside the state

    def adopt(self, state: State, base: str, used: Sequence[dict[str, str]], rows: Sequence[int], chosen: Sequence[int]) -> None:
        """Make the state of the ``chosen`` parameters views of the buffers; ``used``: what ``base`` uses in every group (``names_of``)."""
        self._asked = (base, used, rows, chosen)
        if any(row.addresses != array("q", list(map(Tensor.data_ptr, row))) for row in self.buffers.values()):
            self.buffers, self._seen = {}, ()  # somebody has given the views other storage: they are foreign now, and copied
        seen = (base, used, chosen, list(map(id, state.values())))
        if self._seen == seen and all(all(map(is_, map(dict.get, entries, repeat(key)), views)) for key, entries, views in self._held):
            return
        entries = {i: state[self.params[i]] for i in chosen if used[rows[i]]}
        for i, entry in entries.items():
            self._check(i, entry, used[rows[i]])
        for name in {name for names in used for name in names}:
            if name not in self.buffers:
                with torch.inference_mode(False):  # they outlive the mode
                    self.buffers[name] = self._allocate(self.params, self._dtype)
        for i, entry in entries.items():
            self._detach(i, entry, used[rows[i]])
        counted = BASES[base].counted
        changed = {i: self._adopt_one(i, entry, used[rows[i]], counted) for i, entry in entries.items()}
        if fresh := {i: count for i, count in changed.items() if count is not None}:
            index = torch.tensor(list(fresh), device=self.steps.device)
            self.steps[index] = torch.stack(
                [torch.as_tensor(x, dtype=torch.float32).to(self.steps.device).reshape(()) for x in fresh.values()]
            )
        self._held = []
        for name, key in {(name, key) for names in used for name, key in names.items()}:
            having = [i for i in entries if name in used[rows[i]]]
            self._held.append((key, [entries[i] for i in having], [self.buffers[name][i] for i in having]))
            self._keys[name] = key
        if counted and entries:
            self._held.append((STEP, list(entries.values()), [self._counts[i] for i in entries]))
            self._keys[STEP] = STEP
        self._seen = (base, used, chosen, list(map(id, state.values())))

    def follow(self, state: State) -> None:
        """Take over what has been put into ``state`` since the last update, for an update like that one."""
        if self._asked:
            self.adopt(state, *self._asked)

    def _detach(self, i: int, entry: dict[str, Any], names: Mapping[str, str]) -> None:
        """A view of our buffers at another parameter's place (entries swapped, say) is read before that place is written."""
        for name, key in names.items():
            view, old = self.buffers[name][i], entry.get(key)
            if isinstance(old, Tensor) and old is not view and any(_shares(old, row[0]) for row in self.buffers.values()):
                entry[key] = old.clone()

    def _adopt_one(self, i: int, entry: dict[str, Any], names: Mapping[str, str], counted: bool) -> Any:
        """Take over one entry; its count of updates where that changes."""
        views = {key: self.buffers[name][i] for name, key in names.items()}
        found = [key for key in views if isinstance(entry.get(key), Tensor)]
        ours = all(entry[key] is views[key] for key in found)
        for key, view in views.items():
            if key not in found:
                view.zero_()  # also where it has no meaning before the first update: torch's own optimizers go by the entry
            elif key in found and entry[key] is not view:
                view.copy_(entry[key])
            entry[key] = view
        if not counted:
            return None if found and ours else float(bool(found))
        count, entry[STEP] = entry.get(STEP), self._counts[i]
        if not found:
            return 0.0
        return None if count is self._counts[i] else 1.0 if count is None else count

    def _check(self, i: int, entry: Mapping[str, Any], names: Mapping[str, str]) -> None:
        for key in names.values():
            old = entry.get(key)
            if isinstance(old, Tensor) and old.shape != self.params[i].shape:
                raise ValueError(
                    f"{key} of a parameter of shape {tuple(self.params[i].shape)} has shape {tuple(old.shape)}: the parameter was resized, "
                    "or the state belongs to another; delete its entry in optimizer.state to start afresh"
                )

    def publish(self, state: State) -> None:
        """Make ``state`` say what torch's own optimizer would: an entry only where an update has written it. Waits for the device."""
        if not self._keys:
            return
        for i, (p, count) in enumerate(zip(self.params, self.steps.tolist(), strict=True)):
            if count or p not in state:
                continue
            for name, key in self._keys.items():
                if state[p].get(key) is (self._counts if key == STEP else self.buffers[name])[i]:
                    del state[p][key]
            if not state[p]:
                del state[p]


def _shares(x: Tensor, y: Tensor) -> bool:
    return x.device == y.device and x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
