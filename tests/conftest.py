"""What tests of routes share: an app behind real HTTP in this process, and one POST."""

import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request

import pytest
import uvicorn


@contextlib.contextmanager
def app_in_thread(app):
    """Yields its address. Who asks before the loop runs waits in the socket's queue."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def post_json(url, body, bearer=""):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture(scope="session")
def in_thread():
    return app_in_thread


@pytest.fixture(scope="session")
def post():
    return post_json
