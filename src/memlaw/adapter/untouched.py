"""A model that is bit-identical afterwards, whatever happens to it inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, PreTrainedConfig

Undo = Callable[[], object]

_CONFIGS = (PreTrainedConfig, GenerationConfig)


@contextmanager
def untouched(model: nn.Module) -> Iterator[CopyOnWrite]:
    """Inside, `model` may be changed in any way; on exit its modules, weights, buffers and configs are what they were.

    PEFT is free to change the base in place: it replaces layers, repeats them (`layer_replication`), subtracts from
    their weights (PiSSA, OLoRA) or loads values into them (`bias="all"`, saved embeddings). Restored are the tree of
    modules with all their attributes, the storage behind each weight, the values in it, and the configs.

    Memory: the weights that were replaced, and a copy of those that were overwritten while the yielded mode was
    active. Values written in place while it is not are lost, so run whatever may write inside `with mode:`.
    """
    mode = CopyOnWrite(model)
    with ExitStack() as undone:
        undone.callback(mode.restore)  # last, when each weight has its own storage back
        for tensor in _tensors(model):
            undone.callback(_set_data, tensor, tensor.data)
        for holder in [*model.modules(), *_configs(model)]:
            undone.callback(_attributes(holder))
        yield mode


class CopyOnWrite(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, copies each storage of a model just before an operation writes into it."""

    def __init__(self, model: nn.Module):
        super().__init__()  # type: ignore[no-untyped-call]
        self._watched = {pointer for tensor in _tensors(model) if (pointer := _pointer(tensor))}
        self._copies: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, after a copy of what it will write into."""
        given = kwargs or {}
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            written = args[place] if place < len(args) else given.get(argument.name)
            for tensor in written if isinstance(written, list | tuple) else [written]:
                if isinstance(tensor, Tensor):
                    self._copy(tensor)
        return func(*args, **given)

    def _copy(self, tensor: Tensor) -> None:
        pointer = _pointer(tensor)
        if pointer in self._watched and pointer not in self._copies:
            storage = tensor.untyped_storage()
            self._copies[pointer] = (storage, storage.clone())  # type: ignore[no-untyped-call]

    @property
    def copied_bytes(self) -> int:
        """Size of the copies."""
        return sum(copy.nbytes() for _, copy in self._copies.values())

    def restore(self) -> None:
        """Write the copies back."""
        for storage, copy in self._copies.values():
            storage.copy_(copy, non_blocking=False)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _set_data(tensor: Tensor, data: Tensor) -> None:
    if _place(tensor) != _place(data):  # wrappers of packed weights cannot be assigned to, and need not be
        tensor.data = data


def _place(tensor: Tensor) -> tuple[object, ...]:
    return _pointer(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.layout


def _pointer(tensor: Tensor) -> int:
    """Address of the tensor's storage; 0 without one (meta tensors, wrappers of several tensors)."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _configs(model: nn.Module) -> list[Any]:
    """All configs that the modules refer to, those inside other configs included, each once."""
    found: dict[int, Any] = {}
    waiting = [value for module in model.modules() for value in vars(module).values() if isinstance(value, _CONFIGS)]
    while waiting:
        config = waiting.pop()
        if id(config) not in found:
            found[id(config)] = config
            waiting += [value for value in vars(config).values() if isinstance(value, _CONFIGS)]
    return list(found.values())


def _attributes(holder: Any) -> Undo:
    """Restores the attributes of a module or config, and the contents of those that are dicts, lists or sets.

    Containers are restored in place: the handles of hooks, for one, point at the dict that holds the hook.
    """
    kind, attributes = type(holder), dict(vars(holder))
    contents = [(value, value.copy()) for value in attributes.values() if isinstance(value, dict | list | set)]

    def restore() -> None:
        if type(holder) is not kind:
            holder.__class__ = kind
        vars(holder).clear()
        vars(holder).update(attributes)
        for value, copy in contents:
            _refill(value, copy)

    return restore


def _refill(value: Any, copy: Any) -> None:
    value.clear()
    if isinstance(value, list):
        value.extend(copy)
    else:
        value.update(copy)
