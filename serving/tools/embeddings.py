"""Search by meaning: documents and queries as vectors, by a local model or by any OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from agent_rft.contracts.errors import InfraError, UserError
from serving.tools.retrieval import Hit

Vectors = npt.NDArray[np.float32]


class Embedder(Protocol):
    @property
    def name(self) -> str: ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One row a text."""
        ...


class EmbeddingIndex:
    """Nearest documents by cosine. The documents' vectors are made once, at indexing, and compared all at once: for up to
    some hundred thousand documents one matrix product is faster than any index structure would be.

    A query's vector takes a model's pass or a request, so searches `block`: the server runs them in threads.
    """

    blocks = True

    def __init__(self, texts: Sequence[str], embedder: Embedder, batch_size: int = 64) -> None:
        self._embedder = embedder
        self.version = f"embeddings {embedder.name}"
        batches = [_unit(embedder.embed(texts[i : i + batch_size])) for i in range(0, len(texts), batch_size)]
        self._documents = np.concatenate(batches) if batches else np.zeros((0, 1), np.float32)

    def search(self, query: str, top_k: int) -> list[Hit]:
        if not len(self._documents):
            return []
        scores = self._documents @ _unit(self._embedder.embed([query]))[0]
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [Hit(int(i), float(scores[i])) for i in best if scores[i] > 0]


def embedding_index(embedder: Embedder) -> Callable[[Sequence[str]], EmbeddingIndex]:
    """What CorpusTools takes as `retriever_of`."""
    return lambda texts: EmbeddingIndex(texts, embedder)


class EndpointEmbedder:
    """`POST {base_url}/embeddings` in OpenAI's shape; base_url ends in /v1 as OpenAI's does.

    Plain urllib: it is called from threads, one short request at a time, where an async session would need a loop.
    """

    def __init__(self, base_url: str, model: str, api_key: str = "", timeout_seconds: float = 30.0) -> None:
        self.name = model
        self._url = base_url.rstrip("/") + "/embeddings"
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        self._timeout_seconds = timeout_seconds

    def embed(self, texts: Sequence[str]) -> Vectors:
        body = json.dumps({"model": self.name, "input": list(texts), "encoding_format": "float"}).encode()
        request = urllib.request.Request(self._url, body, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_seconds) as response:
                rows = json.load(response)["data"]
            vectors = np.array([row["embedding"] for row in sorted(rows, key=lambda row: row["index"])], dtype=np.float32)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InfraError(f"embeddings at {self._url}", repr(error)) from error
        if len(vectors) != len(texts):
            raise InfraError(f"embeddings at {self._url}", f"{len(vectors)} vectors for {len(texts)} texts")
        return vectors


class LocalEmbedder:
    """Any sentence-transformers model, by path or by name."""

    def __init__(self, path: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(
                "search by a local embedding model needs sentence-transformers", "pip install 'agent-rft[embeddings]'"
            ) from error
        try:
            self._model: Any = SentenceTransformer(path)
        except (OSError, ValueError) as error:
            raise UserError(f"no embedding model at {path}: {error}", "name a sentence-transformers model's folder") from error
        self.name = path

    def embed(self, texts: Sequence[str]) -> Vectors:
        return np.asarray(self._model.encode(list(texts), show_progress_bar=False), dtype=np.float32)


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
