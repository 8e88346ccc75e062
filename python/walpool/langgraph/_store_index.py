"""What of an item is embedded: the index configuration of a store, read once, and the texts that it takes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.embeddings import Embeddings
from langgraph.store.base import IndexConfig, PutOp, ensure_embeddings, get_text_at_path, tokenize_path

from walpool.langgraph._store_sql import MAX_VECTORS
from walpool.memory.records import DimsError, EmbeddingError, pack

_WHOLE: Final = "$"


class Index:
    """The fields that are embedded, the embedding function, and the dims it is to answer with.

    Args:
        config: LangGraph's `IndexConfig`.

    Raises:
        ValueError: there is no embedding function in it.
    """

    def __init__(self, config: IndexConfig) -> None:
        self.embeddings: Embeddings = ensure_embeddings(config.get("embed"))
        self._dims = config.get("dims")
        self._fields = [_field(path) for path in config.get("fields") or [_WHOLE]]

    def texts(self, op: PutOp) -> list[tuple[str, str]]:
        """Return the path and the text of each vector that the item shall have."""
        if op.value is None or op.index is False:
            return []
        fields = self._fields if op.index is None else [_field(path) for path in op.index]
        found: list[tuple[str, str]] = []
        for path, tokens in fields:
            texts = get_text_at_path(op.value, tokens)
            found += [(path if len(texts) == 1 else f"{path}.{place}", text) for place, text in enumerate(texts)]
        if len(found) > MAX_VECTORS:
            raise EmbeddingError(f"an item has {MAX_VECTORS} vectors at most, and this one {len(found)}")
        return found

    def pack(self, embedding: Sequence[float]) -> bytes:
        """Return an embedding as float32.

        Raises:
            DimsError: it has another length than the configuration says.
            EmbeddingError: it is empty or holds a NaN or an infinity.
        """
        packed = pack(embedding)
        given = len(packed) // 4
        if self._dims is not None and given != self._dims:
            message = f"the index is configured for {self._dims} dims, and its embedding function answered with {given}"
            raise DimsError(message, stored=self._dims, given=given)
        return packed

    def pack_all(self, texts: Sequence[str], embeddings: Sequence[Sequence[float]]) -> Mapping[str, bytes]:
        """Return the embedding of each text.

        Raises:
            EmbeddingError: the embedding function answered with another number of embeddings than it was given texts.
        """
        if len(texts) != len(embeddings):
            raise EmbeddingError(f"the embedding function made {len(embeddings)} embeddings of {len(texts)} texts")
        return {text: self.pack(embedding) for text, embedding in zip(texts, embeddings, strict=True)}


def _field(path: str) -> tuple[str, Any]:
    return path, path if path == _WHOLE else tokenize_path(path)
