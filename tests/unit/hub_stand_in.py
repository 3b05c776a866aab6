"""A stand-in for the Hugging Face hub on this machine: as much of its protocol as huggingface_hub's client asks for.

It serves metadata and files (whole, in ranges, or cut off in the middle) and takes commits. It is no hub: it knows no
accounts, and its large files are stored as any others.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class StandIn:
    """Repositories by name: the commit, and the files with their contents."""

    def __init__(self) -> None:
        self.repos: dict[str, tuple[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.cut_after: int | None = None
        """Send only so many bytes of the next file that is longer."""
        self.uploads: dict[str, bytes] = {}
        """SHA-256 → what was put to storage, of large files."""
        self.address = ""

    def put(self, repo: str, files: dict[str, bytes]) -> str:
        """A new commit of `repo`; returns its name."""
        commit = hashlib.sha1(
            json.dumps({n: hashlib.sha1(c).hexdigest() for n, c in files.items()}).encode()
        ).hexdigest()
        self.repos[repo] = commit, files
        return commit

    def downloads(self, file: str) -> int:
        """How often a file's contents were asked for."""
        return sum(line.startswith("GET ") and line.endswith(f"/{file}") and "/resolve/" in line for line in self.asked)

    def metadata(self, repo: str) -> dict:
        commit, files = self.repos[repo]
        siblings = []
        for name, content in files.items():
            entry: dict = {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
            if is_large(name):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {"id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "downloads": 0, "likes": 0,
                "siblings": siblings}  # fmt: skip


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".npz"))


@contextmanager
def serving() -> Iterator[StandIn]:
    """A stand-in at `address`, until the end of the block."""
    hub = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def as_json(self, content: object, status: int = 200) -> None:
            self.answer(status, json.dumps(content).encode(), Content_Type="application/json")

        def refuse(self, code: str) -> None:
            self.answer(404, b"{}", X_Error_Code=code, X_Error_Message=code)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                self.tell(match[1], match[2])
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.send_file(*match.groups())
            else:
                self.refuse("EntryNotFound")

        def tell(self, repo: str, revision: str | None) -> None:
            if repo not in hub.repos:
                self.refuse("RepoNotFound")
            elif revision not in (None, "main", hub.repos[repo][0]):
                self.refuse("RevisionNotFound")
            else:
                self.as_json(hub.metadata(repo))

        def send_file(self, repo: str, revision: str, name: str) -> None:
            if repo not in hub.repos:
                return self.refuse("RepoNotFound")
            commit, files = hub.repos[repo]
            if revision not in ("main", commit):
                return self.refuse("RevisionNotFound")
            if name not in files:
                return self.refuse("EntryNotFound")
            content = files[name]
            kind = hashlib.sha256 if is_large(name) else hashlib.sha1
            headers = {"X_Repo_Commit": commit, "ETag": f'"{kind(content).hexdigest()}"', "Accept_Ranges": "bytes"}
            start = re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range") or "")
            first = int(start[1]) if start else 0
            if first:
                headers["Content_Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            part = content[first:]
            headers["Content_Length"] = str(len(part))
            if self.command == "GET" and hub.cut_after is not None and len(part) > hub.cut_after:
                part, hub.cut_after = part[: hub.cut_after], None
                self.close_connection = True
            self.answer(206 if first else 200, part, **headers)

        def do_POST(self) -> None:
            path = urlsplit(self.path).path
            hub.asked.append(f"POST {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
                hub.repos.setdefault(name, ("0" * 40, {}))
                self.as_json({"url": f"{hub.address}/{name}", "name": name})
            elif path == "/api/validate-yaml":
                self.as_json({"errors": [], "warnings": []})
            elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
                files = [{"path": f["path"], "uploadMode": "lfs" if is_large(f["path"]) else "regular",
                          "shouldIgnore": False} for f in json.loads(body)["files"]]  # fmt: skip
                self.as_json({"files": files})
            elif re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
                objects = [
                    {"oid": o["oid"], "size": o["size"], "authenticated": True,
                     "actions": {"upload": {"href": f"{hub.address}/storage/{o['oid']}", "header": {}}}}
                    for o in json.loads(body)["objects"]
                ]  # fmt: skip
                self.as_json({"transfer": "basic", "objects": objects})
            elif match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
                files = dict(hub.repos[match[1]][1])
                for line in body.decode().splitlines():
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif entry["key"] == "lfsFile":
                        files[value["path"]] = hub.uploads[value["oid"]]
                commit = hub.put(match[1], files)
                self.as_json({"commitUrl": f"{hub.address}/{match[1]}/commit/{commit}", "commitOid": commit})
            else:
                self.refuse("EntryNotFound")

        def do_PUT(self) -> None:
            hub.asked.append(f"PUT {self.path}")
            hub.uploads[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(200)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
