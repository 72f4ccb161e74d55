"""The outline of a model read from its files: config.json and the headers of its weights. No torch."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memlaw.core.errors import ModelError, first_line
from memlaw.model.files import cached, file_of, is_gguf, source_of
from memlaw.model.gguf import outline_of_gguf
from memlaw.model.outline import MLP, Outline, Site, by_layer_and_path, count_weights


def outline_of_files(name: str) -> Outline:
    """Read the outline of a local directory, `memlaw/base` or a Hub id from config.json and its safetensors headers.

    It equals the outline of the loaded model, up to the prefix of the layers in the files (`h.0` where the loaded model
    has `transformer.h.0`). For a Hub id, only config.json is downloaded and, unless the weights are cached, their
    headers. Raises ModelError for files that are missing, damaged or quantised, and for a model whose files do not show
    which of its modules are linear.

    A GGUF file gives the outline through the modules of its architecture, which needs torch but no weights.
    """
    source = source_of(name)
    if is_gguf(source):
        return outline_of_gguf(source)
    config = _config(name, source)
    count, width, vocabulary = (_size(name, config, key) for key in ("num_hidden_layers", "hidden_size", "vocab_size"))
    layers, rest = _by_layer(name, _shapes(name, source), count)
    return Outline(
        name=name,
        family=str(config.get("model_type", "")),
        width=width,
        vocabulary=vocabulary,
        context=_setting(config, "max_position_embeddings"),
        linear=tuple(sorted(_linear(name, layers), key=by_layer_and_path)),
        blocks=tuple(
            Site(f"{layer.path}.{MLP}", layer.index, width, width)
            for layer in layers
            if any(inner.startswith(f"{MLP}.") for inner in layer.shapes)
        ),
        layer_weights=tuple(count_weights(map(math.prod, layer.shapes.values())) for layer in layers),
        head_weights=vocabulary * _head_width(name, rest, vocabulary, width),
    )


_CALIBRATE = "Use --calibrate, which loads the model itself."
_OTHER_NAMES = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "hidden_size": ("n_embd", "d_model"),
    "vocab_size": (),
    "max_position_embeddings": ("n_positions", "context_length"),
}
"""Names of the same sizes in the config.json of a few families."""


def _config(name: str, source: str) -> Mapping[str, Any]:
    """The part of config.json that describes the text model."""
    path = file_of(source, "config.json")
    if path is None:
        raise ModelError(
            f"{name} has no config.json in the local cache, and it cannot be downloaded from the Hub. Check the name "
            "and the network, or give a directory."
        )
    config = _json(name, path)
    if config.get("quantization_config"):
        raise ModelError(
            f"The weights of {name} are quantised: the files hold packed bytes, whose shapes are not those of the "
            f"modules. {_CALIBRATE}"
        )
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _json(name: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{path.name} of {name} is not JSON ({first_line(error)}): damaged or cut short. Fetch it again."
        ) from error
    if not isinstance(content, dict):
        raise ModelError(
            f"{path.name} of {name} is not a JSON object, so it was not saved by `save_pretrained`. Fetch it again."
        )
    return content


def _setting(config: Mapping[str, Any], key: str) -> int | None:
    for spelling in (key, *_OTHER_NAMES[key]):
        value = config.get(spelling)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _size(name: str, config: Mapping[str, Any], key: str) -> int:
    size = _setting(config, key)
    if size is None:
        raise ModelError(f"config.json of {name} does not give its {key}. {_CALIBRATE}")
    return size


Shape = tuple[int, ...]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def _shapes(name: str, source: str) -> dict[str, Shape]:
    """Tensor name -> shape, for all safetensors files of the model."""
    index = file_of(source, _INDEX)
    files = [_WEIGHTS] if index is None else _shards(name, index)
    shapes: dict[str, Shape] = {}
    for file, path in [(file, cached(source, file)) for file in files]:
        if path is None:
            return _shapes_from_hub(name, source, file)
        shapes |= _header(name, path)
    return shapes


def _shards(name: str, index: Path) -> list[str]:
    weight_map = _json(name, index).get("weight_map")
    files = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not files or not all(isinstance(file, str) and re.fullmatch(r"[\w.-]+\.safetensors", file) for file in files):
        raise ModelError(
            f"{_INDEX} of {name} does not name the safetensors files beside it, so it is damaged. Fetch it again."
        )
    return sorted(files)


def _header(name: str, path: Path) -> dict[str, Shape]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:  # reads only the header
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path.name} of {name} is not a readable safetensors file ({first_line(error)}). Fetch it again."
        ) from error


def _shapes_from_hub(name: str, source: str, file: str) -> dict[str, Shape]:
    """The shapes in the headers of the safetensors files on the Hub, since `file` is not on this machine."""
    if Path(source).is_dir():
        raise ModelError(
            f"{name} lacks {file}. memlaw never unpickles weights: save them with `model.save_pretrained(...)`."
        )
    from huggingface_hub import get_safetensors_metadata

    try:
        metadata = get_safetensors_metadata(source)
    # Errors of the client, of its HTTP library and built-in ones arrive here, and all mean that it is unreadable.
    except Exception as error:
        raise ModelError(
            f"The weights of {name} are not in the local cache, and the headers of its safetensors files cannot be "
            f"read from the Hub ({first_line(error)}). Check the network and, for a private model, your login."
        ) from error
    files = metadata.files_metadata.values()
    return {key: tuple(tensor.shape) for file in files for key, tensor in file.tensors.items()}


@dataclass(frozen=True)
class _Layer:
    path: str
    index: int
    shapes: dict[str, Shape]
    """Shapes of its parameters, by their name below the layer."""


def _by_layer(name: str, shapes: Mapping[str, Shape], count: int) -> tuple[list[_Layer], dict[str, Shape]]:
    """The tensors of each decoder layer, and the others: the layers are the outermost list numbered 0..count-1."""
    lists: dict[str, dict[int, dict[str, Shape]]] = defaultdict(lambda: defaultdict(dict))
    rest = {}
    for key, shape in shapes.items():
        match = re.fullmatch(r"(.+?)\.(\d{1,6})\.(.+)", key)
        if match is None:
            rest[key] = shape
        elif not _is_buffer(match[3], shape):
            lists[match[1]][int(match[2])][match[3]] = shape
    complete = [prefix for prefix, numbered in lists.items() if len(numbered) == count == 1 + max(numbered)]
    if len(complete) != 1:
        several = f"{len(complete)} lists ({', '.join(sorted(complete))})" if complete else "no list"
        raise ModelError(
            f"The files of {name} hold {several} of {count} numbered layers, so the layers of its decoder cannot be "
            f"identified. {_CALIBRATE}"
        )
    (prefix,) = complete
    return [_Layer(f"{prefix}.{index}", index, lists[prefix][index]) for index in range(count)], rest


def _is_buffer(name: str, shape: Shape) -> bool:
    """Whether this is a mask or a table of rotary frequencies, which older checkpoints save beside the weights."""
    last = name.rpartition(".")[2]
    return last in ("inv_freq", "masked_bias") or (last == "bias" and len(shape) != 1)


def _linear(name: str, layers: Iterable[_Layer]) -> list[Site]:
    """The linear modules: those with a two-dimensional `weight`, except normalisations."""
    sites, square, transposed = [], [], False
    for layer in layers:
        for inner, (d_out, d_in) in _matrices(name, layer):
            site = Site(f"{layer.path}.{inner}", layer.index, d_in, d_out)
            bias = layer.shapes.get(f"{inner}.bias")
            if bias is not None and d_in == d_out:
                square.append(site)
                continue
            if bias == (d_in,):  # GPT-2's Conv1D: [d_in, d_out], and always a bias
                site = replace(site, d_in=d_out, d_out=d_in, transposed=True)
                transposed = True
            sites.append(site)
    # A square weight does not show how it is stored, but a model stores all of its weights in the same way.
    return sites + [replace(site, transposed=transposed) for site in square]


def _matrices(name: str, layer: _Layer) -> Iterable[tuple[str, tuple[int, int]]]:
    for key, shape in layer.shapes.items():
        inner, _, last = key.rpartition(".")
        if re.search(r"(^|\.)(experts|\w*moe)(\.|$)", inner):
            raise ModelError(
                f"{name} is a mixture of experts, and its files do not show which of its weights are modules that can "
                f"be adapted. {_CALIBRATE}"
            )
        if last == "weight" and len(shape) == 2 and "norm" not in inner.rpartition(".")[2]:
            yield inner, shape


def _head_width(name: str, rest: Mapping[str, Shape], vocabulary: int, width: int) -> int:
    """Columns of the head: of the matrices with a row for each token, of one width in all but a few families."""
    widths = {shape[1] for shape in rest.values() if len(shape) == 2 and shape[0] == vocabulary}
    if widths and (len(widths) == 1 or width in widths):
        return width if width in widths else widths.pop()
    raise ModelError(
        f"The files of {name} hold no embedding or head with the {vocabulary} rows that config.json gives the "
        f"vocabulary. Resize both with `model.resize_token_embeddings(...)` and save again. {_CALIBRATE}"
    )
