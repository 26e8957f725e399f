"""Reading and writing safetensors folders as raw arrays, so that every byte is under the recipes' control."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nvfp4 import E4M3_VALUES

STORAGE = {
    'F32': np.dtype('<f4'),
    'F16': np.dtype('<f2'),
    'BF16': np.dtype('<u2'),
    'F8_E4M3': np.dtype('u1'),
    'U8': np.dtype('u1'),
    'I32': np.dtype('<i4'),
    'I64': np.dtype('<i8'),
}


@dataclass(frozen=True)
class Tensor:
    """One stored tensor: dtype as safetensors spells it, data in the storage type of that dtype."""

    dtype: str
    data: np.ndarray

    def to_float32(self) -> np.ndarray:
        """The values as float32, of the same shape."""
        if self.dtype == 'BF16':
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == 'F8_E4M3':
            return E4M3_VALUES[self.data]
        if self.dtype in ('F32', 'F16'):
            return self.data.astype(np.float32)
        raise ValueError(f'no float value in a tensor of dtype {self.dtype}')


def f32(values: object) -> Tensor:
    """A float32 tensor."""
    return Tensor('F32', np.asarray(values, dtype='<f4'))


def i32(values: object) -> Tensor:
    """An int32 tensor."""
    return Tensor('I32', np.asarray(values, dtype='<i4'))


def bf16(values: np.ndarray) -> Tensor:
    """float32 values rounded to bfloat16, nearest even. The input must be finite."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    return Tensor('BF16', ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype('<u2'))


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> int:
    """Write one file in the order given, header padded to 8 bytes. Returns the bytes of tensor data."""
    header: dict[str, object] = {'__metadata__': {'format': 'pt'}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            'dtype': tensor.dtype,
            'shape': list(tensor.data.shape),
            'data_offsets': [offset, offset + tensor.data.nbytes],
        }
        offset += tensor.data.nbytes
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    with path.open('wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.data, dtype=STORAGE[tensor.dtype]).tobytes())
    return offset


def read_file(path: Path) -> dict[str, Tensor]:
    """Every tensor of one file, in the order of its data."""
    blob = path.read_bytes()
    (length,) = struct.unpack_from('<Q', blob)
    header = json.loads(blob[8 : 8 + length])
    header.pop('__metadata__', None)
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]['data_offsets'][0]):
        begin, end = entry['data_offsets']
        data = np.frombuffer(blob[8 + length + begin : 8 + length + end], STORAGE[entry['dtype']])
        tensors[name] = Tensor(entry['dtype'], data.reshape(entry['shape']))
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint: those of the index, else every `model*.safetensors`."""
    index = folder / 'model.safetensors.index.json'
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())['weight_map'].values()))]
    return sorted(path for path in folder.glob('model*.safetensors'))


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint; a name that occurs twice is an error."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for name, tensor in read_file(path).items():
            if name in tensors:
                raise ValueError(f'{name} occurs in two files of {folder}')
            tensors[name] = tensor
    return tensors


def write_shards(folder: Path, tensors: Mapping[str, Tensor], shards: int, index: bool) -> None:
    """Write a checkpoint as `shards` files of about equal bytes, with or without the index file."""
    if shards == 1:
        write_file(folder / 'model.safetensors', tensors)
        return
    total = sum(tensor.data.nbytes for tensor in tensors.values())
    groups: list[dict[str, Tensor]] = [{} for _ in range(shards)]
    written = 0
    for name, tensor in tensors.items():
        groups[min(written * shards // total, shards - 1)][name] = tensor
        written += tensor.data.nbytes
    weight_map = {}
    for number, group in enumerate(groups, start=1):
        file = f'model-{number:05d}-of-{shards:05d}.safetensors'
        write_file(folder / file, group)
        weight_map.update(dict.fromkeys(group, file))
    if index:
        content = {'metadata': {'total_size': total}, 'weight_map': weight_map}
        (folder / 'model.safetensors.index.json').write_text(json.dumps(content, indent=1) + '\n')


def natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted with their numbers as numbers (`experts.2` before `experts.10`)."""
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name)])
