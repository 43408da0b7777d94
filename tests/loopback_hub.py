"""A loopback server that speaks the Hub's upload and download protocols and keeps the bytes."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import unquote


class Hub(ThreadingHTTPServer):
    """As much of the Hub as an upload and a download need; what arrives is kept in `branches`, by name.

    Some repositories are refused: `refuses` maps a name to the step's address, status and answer.
    """

    daemon_threads = True
    refuses: dict[str, tuple[str, int, dict[str, Any]]] = {
        "expired": ("/api/repos/create", 401, {"error": "Invalid username or password."}),
        "foreign": ("/api/repos/create", 403, {"error": "You don't have the rights to create a model here"}),
        "broken": ("/api/repos/create", 500, {"error": "Internal Error - We're working hard to fix this"}),
        "bad-card": ("/api/validate-yaml", 400, {"errors": [{"message": '"base_model" is not a valid Hub id'}]}),
        "quota": (
            "/me/quota.git",
            200,
            {"objects": [{"oid": "0", "size": 1, "error": {"code": 403, "message": "No quota"}}]},
        ),
        "full": ("/lfs/", 403, {"error": "Storage limit reached"}),
        "gone": ("/api/models/me/gone/commit/", 404, {"error": "Repository not found"}),
        "moved": ("/api/models/me/moved/commit/", 412, {"error": "A commit has happened since"}),
    }

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.created: dict[str, Any] = {}
        self.repository: dict[str, Any] | None = None
        self.summary = ""
        self.uploads: dict[str, bytes] = {}
        self.branches: dict[str, dict[str, bytes]] = {"main": {}}
        self.tags: dict[str, dict[str, bytes]] = {}
        self.committed: list[list[str]] = []  # the files that each commit added
        self.hold: Event | None = None  # a commit waits for it, and is refused
        self.held = Event()  # one waits
        self.breaks: set[str] = set()  # files whose first download fails

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the branch main."""
        return self.branches["main"]

    @files.setter
    def files(self, files: dict[str, bytes]) -> None:
        self.branches["main"] = files

    def at(self, revision: str) -> dict[str, bytes] | None:
        """The files of a branch, tag or commit."""
        known = {sha_of(files): files for files in (*self.tags.values(), *self.branches.values())}
        return (known | self.tags | self.branches).get(revision)

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON for one request."""
        content = [] if path.startswith("/lfs/") else [json.loads(line) for line in body.splitlines()]
        if path == "/api/repos/create":
            self.created = content[0]
            assert self.created.get("type", "model") == "model"
        step, status, refusal = self.refuses.get(self.created.get("name", ""), ("never", 0, {}))
        if path.startswith(step):
            return status, refusal
        if path == "/api/repos/create":
            status = 409 if self.repository else 200
            self.repository = self.repository or {"private": self.created["visibility"] == "private"}
            return status, {"url": f"{self.url}/me/{self.created['name']}"}
        if path.startswith("/lfs/"):
            self.uploads[path.removeprefix("/lfs/")] = body
            return 200, {}
        if path.endswith("/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._to_upload(file) for file in content[0]["objects"]]}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if self.repository is None:
            return 404, {"error": "Repository not found"}
        return self._of_repository(path, content)

    def _of_repository(self, path: str, content: list[dict[str, Any]]) -> tuple[int, Any]:
        action, _, revision = path.removeprefix("/api/models/").partition("/")[2].partition("/")[2].partition("/")
        revision = unquote(revision) or "main"
        if action == "refs":
            refs = {"branches": self.branches, "tags": self.tags, "converts": {}}
            return 200, {
                kind: [{"name": name, "ref": name, "targetCommit": sha_of(files)} for name, files in named.items()]
                for kind, named in refs.items()
            }
        if action == "branch":
            status = 409 if revision in self.branches else 201
            self.branches.setdefault(revision, dict(self.files))
            return status, {}
        files = self.at(revision)
        if files is None:
            return 404, {"error": f"Invalid rev id: {revision}"}
        if action == "tag":
            self.tags[content[0]["tag"]] = dict(files)
            return 200, {}
        if action == "preupload":
            return 200, {"files": [self._mode(file, files) for file in content[0]["files"]]}
        if action == "commit" and self.hold is not None:
            self.held.set()
            self.hold.wait(30)
            return 403, {"error": "the client is gone"}
        if action == "commit":
            self._commit(content, files)
            return 200, {"commitUrl": f"{self.url}/me/tiny/commit/abc", "commitOid": sha_of(files)}
        if action == "tree":
            return 200, [
                {"type": "file", "path": name, "size": len(text), "oid": blob_of(text)} for name, text in files.items()
            ]
        siblings = [{"rfilename": name} for name in files]
        return 200, self.repository | {"id": "me/tiny", "sha": sha_of(files), "siblings": siblings}

    def _to_upload(self, file: dict[str, Any]) -> dict[str, Any]:
        """An object is uploaded unless it is here already."""
        upload = {"upload": {"href": f"{self.url}/lfs/{file['oid']}"}}
        stored = {hashlib.sha256(content).hexdigest() for files in self.branches.values() for content in files.values()}
        return {**file, **({} if file["oid"] in stored | self.uploads.keys() else {"actions": upload})}

    def _mode(self, file: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
        large, content = file["path"].endswith((".safetensors", ".onnx")), files.get(file["path"])
        identity = None
        if content is not None:
            identity = hashlib.sha256(content).hexdigest() if large else blob_of(content)
        return {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
            "oid": identity,
        }

    def _commit(self, lines: list[dict[str, Any]], files: dict[str, bytes]) -> None:
        self.committed.append([line["value"]["path"] for line in lines if line["key"] in ("file", "lfsFile")])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.summary = value["summary"]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                assert value["algo"] == "sha256"
                files[value["path"]] = self.uploads[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]


def sha_of(files: dict[str, bytes]) -> str:
    """The commit of a set of files."""
    content = b"".join(name.encode() + b"\0" + files[name] for name in sorted(files))
    return hashlib.sha1(content).hexdigest()


def blob_of(content: bytes) -> str:
    """Git's name for the content of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while length := int(self.rfile.readline(), 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"{self.command} {self.path}")
        if not self.path.startswith("/lfs/"):  # an upload goes to a signed address and must not carry the token
            self.server.tokens.add(self.headers.get("Authorization") or f"none at {self.path}")
        elif self.headers.get("Authorization"):
            self.server.tokens.add("token sent to the storage")
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            self._send_file(*path.partition("/resolve/")[2].split("/", 1))
            return
        status, content = self.server.answer(path, body)
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send_file(self, revision: str, name: str) -> None:
        files = self.server.at(unquote(revision))
        if self.server.repository is None or files is None or unquote(name) not in files:
            missing = "EntryNotFound" if files is not None and self.server.repository else "RevisionNotFound"
            self._send(404, b"", {"X-Error-Code": missing, "X-Error-Message": "not found"})
            return
        if name in self.server.breaks and self.command == "GET":
            self.server.breaks.remove(name)
            self._send(403, b"", {"X-Error-Message": "not now"})
            return
        content = files[unquote(name)]
        self._send(200, content, {"ETag": f'"{blob_of(content)}"', "X-Repo-Commit": sha_of(files)})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815 - names that http.server calls

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
