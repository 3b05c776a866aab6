"""A stand-in for W&B's protocol on loopback: enough for the real SDK to sync runs and to list them. Not a W&B server.

Runs live in memory. A query is answered with the fields it selects, as GraphQL does, so that what the SDK fetches
lazily is really fetched apart; `queries` keeps every query for tests that count them.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from graphql import parse

WHEN = "2026-01-01T00:00:00Z"


def _fits(run: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a run fits a filter in MongoDB's language, as far as it is used here."""
    for key, value in wanted.items():
        if key in ("$or", "$and"):
            fits = (any if key == "$or" else all)(_fits(run, each) for each in value)
        else:
            fits = value in run["tags"] if key == "tags" else run.get(key) == value
        if not fits:
            return False
    return True


class StandIn:
    """The server and its runs; use as a context manager. `url` is its address, `fail` the number of coming 500s,
    `knows_key` whether it accepts the key."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.queries: list[str] = []
        self.fail = 0
        self.knows_key = True
        self.lock = threading.Lock()
        stand_in = self

        class Handler(_Handler):
            owner = stand_in

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def run(self, name: str) -> dict[str, Any]:
        blank = {"name": name, "displayName": name, "group": None, "tags": [], "state": "running"}
        return self.runs.setdefault(name, blank | {"config": {}, "summary": {}, "rows": []})

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The data of a query, all fields; the caller keeps those that were selected."""
        self.queries.append(" ".join(query.split()))
        project = given.get("project") or given.get("projectName") or given.get("name")
        about = {"id": "1", "internalId": "1", "name": project, "readOnly": False, "entity": {"id": "1", "name": "me"}}
        if "upsertBucket" in query:
            name = given.get("name") or given.get("id")
            new, run = name not in self.runs, self.run(name)
            run["config"] |= json.loads(given.get("config") or "{}")
            run["group"] = given.get("groupName") or run["group"]
            run["tags"] = given.get("tags") or run["tags"]
            run["displayName"] = given.get("displayName") or run["displayName"]
            bucket = self.node(run) | {"project": about}
            return {"upsertBucket": {"inserted": new, "bucket": bucket}}
        if "createRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{self.url}/upload/{n}"} for n in given["files"]]
            return {"createRunFiles": {"runID": given.get("run"), "uploadHeaders": [], "files": files}}
        if "runs(" in query and given.get("entity") != "me":
            return {"project": None}
        if "runs(" in query:
            wanted = json.loads(given.get("filters") or "{}")
            found = [r for r in self.runs.values() if _fits(r, wanted)]
            at, count = int(given.get("cursor") or 0), given.get("perPage") or 50
            page = found[at : at + count]
            more = {"endCursor": str(at + len(page)), "hasNextPage": at + len(page) < len(found)}
            edges = [{"node": self.node(r), "cursor": str(at + i + 1)} for i, r in enumerate(page)]
            return {"project": about | {"runCount": len(found), "runs": {"edges": edges, "pageInfo": more}}}
        if "viewer" in query or "serverInfo" in query:
            if not self.knows_key:
                return {"viewer": None, "serverInfo": None}
            viewer = {"id": "1", "entity": "me", "username": "me", "name": "me", "email": "me@example.org"}
            viewer |= {"flags": "{}", "teams": {"edges": []}, "apiKeys": {"edges": []}, "admin": False}
            info = {"features": [], "cliVersionInfo": {"max_cli_version": "99.0.0"}, "latestLocalVersionInfo": None}
            return {"viewer": viewer, "serverInfo": info}
        run = self.runs.get(given.get("run") or given.get("name") or "")
        node = None if run is None else self.node(run)
        return {"project": about | {"run": node, "bucket": node}, "model": about | {"bucket": node}}

    @staticmethod
    def node(run: dict[str, Any]) -> dict[str, Any]:
        shown = {key: run[key] for key in ("name", "displayName", "tags", "state", "group")}
        filled = {
            "config": json.dumps(run["config"]),
            "summaryMetrics": json.dumps(run["summary"]),
            "systemMetrics": "{}",
        }
        dates = {"createdAt": WHEN, "heartbeatAt": WHEN, "historyLineCount": len(run["rows"])}
        ids = {"id": run["name"], "projectId": "1", "readOnly": False, "user": {"name": "me", "username": "me"}}
        empty = ("historyKeys", "description", "notes", "sweepName", "jobType", "commit")
        return shown | filled | dates | ids | dict.fromkeys(empty)

    def stream(self, name: str, content: dict[str, Any]) -> None:
        """What the SDK sends while a run goes on or is synced."""
        run = self.run(name)
        files = content.get("files") or {}
        for line in (files.get("wandb-summary.json") or {}).get("content", []):
            run["summary"] |= json.loads(line)
        history = files.get("wandb-history.jsonl")
        if history:
            run["rows"][history.get("offset", 0) :] = [json.loads(line) for line in history["content"]]
        if content.get("complete"):
            run["state"] = "finished" if content.get("exitcode", 0) == 0 else "failed"


def select(query: str, data: dict[str, Any]) -> Any:
    """Only the fields that the query names."""
    document = parse(query)
    fragments = {d.name.value: d for d in document.definitions if d.kind == "fragment_definition"}
    operation = next(d for d in document.definitions if d.kind == "operation_definition")

    def kept(selection: Any, value: Any) -> Any:
        if isinstance(value, list):
            return [kept(selection, item) for item in value]
        if selection is None or value is None:
            return value
        out = {}
        for field in selection.selections:
            if field.kind == "field":
                out[(field.alias or field.name).value] = kept(field.selection_set, value.get(field.name.value))
            else:
                inner = fragments[field.name.value] if field.kind == "fragment_spread" else field
                out |= kept(inner.selection_set, value)
        return out

    return kept(operation.selection_set, data)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: StandIn

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        content = json.loads(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
        with self.owner.lock:
            if self.owner.fail:
                self.owner.fail -= 1
                return self.reply({"errors": [{"message": "busy"}]}, 503)
            if self.path == "/graphql":
                data = self.owner.answer(content["query"], content.get("variables") or {})
                return self.reply({"data": select(content["query"], data)})
            stream = re.match(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
            if stream:
                self.owner.stream(stream[1], content)
                return self.reply({"exitcode": None, "limits": {}})
        return self.reply({}, 404)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.reply({})

    def do_GET(self) -> None:
        self.reply({})

    def reply(self, content: Any, code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
