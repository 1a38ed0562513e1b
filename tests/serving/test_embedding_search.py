"""Search by vectors, with a real HTTP endpoint that embeds by hashing words."""

import json
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.datasets.filings import TOOLS
from serving.tools.corpus import CorpusTools
from serving.tools.embeddings import EmbeddingIndex, EndpointEmbedder, LocalEmbedder, embedding_index


class HashingEndpoint(BaseHTTPRequestHandler):
    """Each word counts in one of 256 places: texts that share words are near."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers["Authorization"], body["model"], len(body["input"])))
        rows = [{"index": i, "embedding": self.vector(text)} for i, text in enumerate(body["input"])]
        answer = json.dumps({"data": rows[::-1][: self.server.rows]}).encode()  # the order is the index's, not the list's
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(answer)

    def vector(self, text):
        places = [0.0] * 256
        for word in text.lower().split():
            places[zlib.crc32(word.encode()) % 256] += 1.0
        return places

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), HashingEndpoint)
    server.seen, server.status, server.rows = [], 200, 1000
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def embedder(endpoint):
    return EndpointEmbedder(f"http://127.0.0.1:{endpoint.server_port}/v1", "hashing", api_key="key", timeout_seconds=5)


TEXTS = ["green apples", "red cherries", "green cherries and green apples", ""]


def test_the_nearest_text_comes_first_and_strangers_not_at_all(endpoint):
    hits = EmbeddingIndex(TEXTS, embedder(endpoint)).search("green apples", 3)
    # cosine with itself 1; with text 2, counts (2, 1, 1, 1): (2 + 1) / (sqrt 2 * sqrt 7) = 0.80
    assert [(hit.position, round(hit.score, 2)) for hit in hits] == [(0, 1.0), (2, 0.8)]


def test_documents_are_embedded_once_in_batches_and_the_endpoint_is_openais(endpoint):
    index = EmbeddingIndex(TEXTS, embedder(endpoint), batch_size=3)
    index.search("red", 1)
    assert endpoint.seen == [("/v1/embeddings", "Bearer key", "hashing", n) for n in (3, 1, 1)]


def test_the_tools_search_by_it_and_say_that_they_wait(endpoint):
    tools = CorpusTools(dict(zip("abc", TEXTS, strict=False)), TOOLS, retriever_of=embedding_index(embedder(endpoint)))
    assert tools.blocks
    assert tools.call("search", {"query": "red cherries"})[0].startswith("b (score 0.8")
    assert tools.version != CorpusTools(dict(zip("abc", TEXTS, strict=False)), TOOLS).version


@pytest.mark.parametrize(("status", "rows"), [(500, 1000), (200, 0)])
def test_an_endpoint_that_fails_is_infrastructure(endpoint, status, rows):
    index = EmbeddingIndex(TEXTS, embedder(endpoint))
    endpoint.status, endpoint.rows = status, rows
    with pytest.raises(InfraError, match=r"embeddings at http://.*/v1/embeddings"):
        index.search("green", 1)


def test_a_local_model_without_its_extra_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"agent-rft\[embeddings\]"):
        LocalEmbedder("some/model")
