"""A hub on the loopback address: the endpoints that huggingface_hub calls to make, fill and read repositories."""

import base64
import contextlib
import functools
import hashlib
import http.server
import json
import pathlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

# Of a card's front matter, as the hub documents it.
KEYS = {"library_name", "license", "pipeline_tag", "tags", "model-index"}
TOKEN = "hf_of_the_tests"


class HubServer(http.server.ThreadingHTTPServer):
    """Repositories in memory: {name: {revision: {path: content}}}; every commit is a revision, "main" is the last."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.messages: list[str] = []
        self.large: dict[str, bytes] = {}  # uploaded by Git LFS, by SHA-256

    def commit(self, name: str, changes: dict[str, bytes], message: str) -> str:
        """Add files to the last revision; returns the new one's name."""
        revisions = self.repositories[name]
        files = revisions.get("main", {}) | changes
        sha = hashlib.sha1(repr((len(revisions), sorted(files.items()))).encode()).hexdigest()
        revisions["main"] = revisions[sha] = files
        self.messages.append(message)
        return sha


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.resolve(with_body=False)

    def do_GET(self) -> None:
        self.resolve(with_body=True)

    def do_POST(self) -> None:
        body = self.body()
        if self.path == "/api/validate-yaml":
            self.validate(json.loads(body)["content"])
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            modes = [
                {"path": file["path"], "uploadMode": mode(file["path"]), "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer(200 if match[1] in self.server.repositories else 404, {"files": modes})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self.answer(200, {"transfer": "basic", "objects": [self.action(x) for x in json.loads(body)["objects"]]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            self.commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404, {})

    def do_PUT(self) -> None:
        content, oid = self.body(), self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.large[oid] = content
        self.answer(200, {})

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        known = name in self.server.repositories
        self.server.repositories.setdefault(name, {})
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.server.private.add(name)
        self.answer(409 if known else 200, {"url": f"{self.server.address}/{name}"})

    def validate(self, card: str) -> None:
        try:
            known = yaml.safe_load(card.split("---")[1]).keys() <= KEYS
        except (IndexError, yaml.YAMLError):
            known = False
        errors = [] if known else [{"message": "the front matter is no metadata of a model"}]
        self.answer(200 if known else 400, {"errors": errors, "warnings": []})

    def action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return wanted | {"actions": {"upload": {"href": f"{self.server.address}/large/{wanted['oid']}"}}}

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        changes, message = {}, ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.server.large[value["oid"]]
        sha = self.server.commit(name, changes, message)
        self.answer(200, {"commitOid": sha, "commitUrl": f"{self.server.address}/{name}/commit/{sha}"})

    def resolve(self, *, with_body: bool) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        revisions = self.server.repositories.get(match[1], {}) if match else {}
        hidden = match and match[1] in self.server.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        if match is None or not revisions or hidden:
            self.answer(404, {}, error="RepoNotFound", with_body=with_body)
        elif match[2] not in revisions:
            self.answer(404, {}, error="RevisionNotFound", with_body=with_body)
        elif match[3] not in revisions[match[2]]:
            self.answer(404, {}, error="EntryNotFound", with_body=with_body)
        else:
            files = revisions[match[2]]
            sha = next(sha for sha, other in revisions.items() if other is files and sha != "main")
            content = files[match[3]]
            headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            self.send(200, content, headers, with_body=with_body)

    def answer(self, status: int, content: Any, *, error: str | None = None, with_body: bool = True) -> None:
        headers = {"Content-Type": "application/json"} | ({} if error is None else {"X-Error-Code": error})
        self.send(status, json.dumps(content).encode(), headers, with_body=with_body)

    def send(self, status: int, content: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *_: object) -> None:
        """Silent."""


def mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


@contextlib.contextmanager
def serving(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that huggingface_hub of this process talks to, logged in, with an empty cache."""
    from huggingface_hub import constants

    server = HubServer()
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.05))
    thread.start()
    for name, value in {
        "ENDPOINT": server.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
