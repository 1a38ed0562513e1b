# Kept as its author wrote it:
# ruff: noqa: ANN001, ANN201, B008
"""The tool server of the tutorial that this project grew from, as written there; only its retrieval functions are ours.

`embed_and_search`, `format_hits`, `corpus_index` are left open there: the same CorpusTools stands behind both servers here,
so that nothing but the serving stack differs.
"""

import os
from pathlib import Path

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPBearer

from agent_rft.datasets.filings import TOOLS
from serving.tools.corpus import CorpusTools

corpus = CorpusTools.from_folder(Path(os.environ["CORPUS"]), TOOLS)

app = FastAPI()
security = HTTPBearer()


def auth(creds=Depends(security)):
    if creds.credentials != os.environ["TOOL_BEARER"]:
        raise HTTPException(401, "bad token")


@app.post("/search")
async def search(req: Request, _=Depends(auth)):
    body = await req.json()
    args = body.get("arguments", {})
    call_id = body.get("call_id")
    query = args.get("query", "").strip()
    if not query:
        return {"output": "Error: query is required", "call_id": call_id}
    return {"output": corpus.call("search", {"query": query})[0], "call_id": call_id}


@app.post("/list")
async def list_paths(req: Request, _=Depends(auth)):
    body = await req.json()
    prefix = body.get("arguments", {}).get("prefix", "")
    return {"output": corpus.call("list", {"prefix": prefix})[0], "call_id": body.get("call_id")}


@app.post("/read")
async def read(req: Request, _=Depends(auth)):
    body = await req.json()
    path = body.get("arguments", {}).get("path")
    return {"output": corpus.call("read", {"path": path})[0][:8000], "call_id": body.get("call_id")}
