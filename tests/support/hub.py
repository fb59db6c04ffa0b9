"""A loopback server that speaks as much of the hub's protocol as downloads and uploads need, and goes wrong as it is told.

Uploads are those of the LFS protocol: preupload, batch, PUT of each object that is not there yet, and one commit in NDJSON. Xet is
not spoken.
"""

import base64
import hashlib
import http.server
import json
import threading
from pathlib import Path

from hub_card import errors_of_card

USER, TOKEN = "example-user", "hf_" + "a" * 34
COMMIT = "a" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Serves `files` ("owner/name/path" -> bytes). Weights are redirected to another host, as the hub's are: this one by another name."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.commit = COMMIT  # the newest, of every repository
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []  # of every GET that asked for a part
        self.wrong_hash = False  # states another sha256 than the bytes have
        self.wrong_size = 0  # so many bytes more than there are, stated
        self.cut_after: int | None = None  # bytes of the next large body, behind which the connection is closed
        self.error: tuple[int, str] | None = None  # (status, X-Error-Code) of every answer
        self.stalls = False  # sends half of a body, and no more
        self.gated: set[str] = set()  # repositories whose files need a licence to be accepted
        self.private: dict[str, bool] = {}  # whether a repository is private; others are public
        self.objects: dict[str, bytes] = {}  # large files that were sent whole, by their sha256
        self.sent: list[tuple[str, int]] = []  # (sha256, bytes) of every PUT, also of those that were cut
        self.commits: list[list[dict]] = []  # the lines of every commit
        self.bodies: list[bytes] = []  # of every POST
        self.cut_put: int | None = None  # bytes of the next PUT after which the connection is closed
        self.refuses_commits = False
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def described(self, repo: str) -> dict:
        """The answer to a question for a repository: its files, and the header of its card."""
        siblings = []
        for name, content in self.files.items():
            if not name.startswith(f"{repo}/"):
                continue
            one = {"rfilename": name.removeprefix(f"{repo}/"), "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
            if name.endswith((".safetensors", ".pth", ".pt")):
                one["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append(one)
        card = self.files.get(f"{repo}/README.md", b"").decode()
        header = dict(
            line.split(": ", 1) for line in card.partition("---\n")[2].partition("\n---")[0].splitlines() if ": " in line
        )
        found = {
            "_id": "1",
            "id": repo,
            "modelId": repo,
            "sha": self.commit,
            "private": self.private.get(repo, False),
            "siblings": siblings,
        }
        return found | (
            {"cardData": {key: header[key] for key in ("license", "license_name") if key in header}} if header else {}
        )

    def close(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


def use_hub(hub: Hub, folder: Path, monkeypatch) -> None:
    """Let the hub's client in this process talk to `hub`, with its cache and its token below `folder`."""
    from huggingface_hub import constants

    for name, value in {
        "ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}", "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": False,
        "HF_TOKEN_PATH": str(folder / "token"), "HF_STORED_TOKENS_PATH": str(folder / "stored_tokens"),
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, *, with_body: bool) -> None:
        hub: Hub = self.server
        if self.fails():
            return
        if self.path.startswith("/api/"):
            self.api()
            return
        is_storage = self.path.startswith("/storage/")
        repo, _, rest = self.path.removeprefix("/storage").lstrip("/").partition("/resolve/")
        name = f"{repo}/{rest.partition('/')[2]}"
        content = hub.files.get(name)
        if repo in hub.gated:
            self.empty(403, X_Error_Code="GatedRepo")
            return
        if content is None:
            self.empty(
                404, X_Error_Code="EntryNotFound" if any(key.startswith(f"{repo}/") for key in hub.files) else "RepoNotFound"
            )
            return
        if name.endswith((".safetensors", ".pth", ".pt")) and not is_storage:
            digest = "0" * 64 if hub.wrong_hash else hashlib.sha256(content).hexdigest()
            self.empty(302, Location=f"http://localhost:{hub.server_address[1]}/storage{self.path}", X_Repo_Commit=hub.commit, X_Linked_ETag=f'"{digest}"',
                       X_Linked_Size=str(len(content) + hub.wrong_size), ETag='"of the pointer"')  # fmt: skip
            return
        self.send(content, with_body=with_body)

    def fails(self) -> bool:
        """Note the request; answer it with the error of all requests, if there is one."""
        hub: Hub = self.server
        hub.requests.append((self.command, self.path))
        if hub.error is not None:
            if self.command in ("POST", "PUT"):
                self.body()
            self.empty(hub.error[0], **({"X_Error_Code": hub.error[1]} if hub.error[1] else {}))
        return hub.error is not None

    # --- the API: repositories, and uploads ---------------------------------------------------------------------

    def user(self) -> str | None:
        return USER if self.headers.get("Authorization") == f"Bearer {TOKEN}" else None

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def json(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def api(self) -> None:
        """A repository's files with their sizes and hashes, and its card's header."""
        hub: Hub = self.server
        repo, _, revision = self.path.partition("?")[0].removeprefix("/api/models/").partition("/revision/")
        if hub.private.get(repo) and self.user() is None:
            self.empty(401, X_Error_Code="RepoNotFound")
        elif repo not in hub.private and not any(name.startswith(f"{repo}/") for name in hub.files):
            self.empty(404 if self.user() else 401, X_Error_Code="RepoNotFound")
        elif revision not in ("", "main", "v1", hub.commit):
            self.empty(404, X_Error_Code="RevisionNotFound")
        else:
            self.json(hub.described(repo))

    def do_POST(self):
        hub: Hub = self.server
        if self.fails():
            return
        body = self.body()
        hub.bodies.append(body)
        place = self.path.partition("?")[0]
        if place == "/api/validate-yaml":
            errors = errors_of_card(json.loads(body)["content"])
            self.json({"errors": [{"message": text} for text in errors], "warnings": []}, 400 if errors else 200)
        elif self.user() is None:
            self.json({"error": "Invalid username or password."}, 401)
        elif place == "/api/repos/create":
            self.create(json.loads(body))
        elif place.endswith("/info/lfs/objects/batch"):
            self.json({"transfer": "basic", "objects": [self.wanted(one) for one in json.loads(body)["objects"]]})
        elif "/preupload/" in place:
            self.json({"files": [self.mode(place, one) for one in json.loads(body)["files"]]})
        elif "/commit/" in place:
            self.commit(place.removeprefix("/api/models/").partition("/commit/")[0], body)
        else:
            self.empty(404)

    def create(self, asked: dict) -> None:
        hub: Hub = self.server
        repo = f"{asked['organization'] or USER}/{asked['name']}"
        if asked["organization"] not in (USER, "team"):
            self.json({"error": "You don't have the rights to create a model under this namespace"}, 403)
        elif repo in hub.private:
            self.json({"error": "You already created this model repo", "url": f"{hub.url}/{repo}"}, 409)
        else:
            hub.private[repo] = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
            self.json({"url": f"{hub.url}/{repo}"})

    def mode(self, place: str, asked: dict) -> dict:
        repo = place.removeprefix("/api/models/").partition("/preupload/")[0]
        known = self.server.files.get(f"{repo}/{asked['path']}")
        is_large = asked["path"].endswith((".safetensors", ".png"))
        oid = None
        if known is not None:
            blob = f"blob {len(known)}\0".encode() + known
            oid = hashlib.sha256(known).hexdigest() if is_large else hashlib.sha1(blob).hexdigest()
        return {"path": asked["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid}

    def wanted(self, asked: dict) -> dict:
        """One object of a batch: without actions if it is here already, as the hub has it."""
        hub: Hub = self.server
        if asked["oid"] in hub.objects:
            return {"oid": asked["oid"], "size": asked["size"]}
        upload = {"href": f"{hub.url}/lfs/{asked['oid']}"}
        return {"oid": asked["oid"], "size": asked["size"], "actions": {"upload": upload}}

    def do_PUT(self):
        hub: Hub = self.server
        if self.fails():
            return
        digest, size = self.path.removeprefix("/lfs/"), int(self.headers["Content-Length"])
        if hub.cut_put is not None and size > hub.cut_put:
            hub.sent.append((digest, len(self.rfile.read(hub.cut_put))))
            self.close_connection = True
            self.connection.close()
            return
        content = self.body()
        hub.sent.append((digest, len(content)))
        assert hashlib.sha256(content).hexdigest() == digest
        hub.objects[digest] = content
        self.empty(200)

    def commit(self, repo: str, body: bytes) -> None:
        hub: Hub = self.server
        lines = [json.loads(line) for line in body.splitlines()]
        if hub.refuses_commits:
            self.empty(503)
            return
        for line in lines:
            value, name = line["value"], f"{repo}/{line['value'].get('path')}"
            if line["key"] == "file":
                hub.files[name] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.files[name] = hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del hub.files[name]
        hub.commits.append(lines)
        self.json({"commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})

    def send(self, content: bytes, *, with_body: bool) -> None:
        hub: Hub = self.server
        start = 0
        if "Range" in self.headers:
            hub.ranges.append(self.headers["Range"])
            start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0] or 0)
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", hub.commit)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not with_body:
            return
        body = content[start:]
        if hub.cut_after is not None and len(body) > hub.cut_after:
            self.wfile.write(body[: hub.cut_after])
            self.wfile.flush()
            hub.cut_after = None
            self.close_connection = True
            self.connection.close()
        elif hub.stalls and len(body) > 1000:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            hub.over.wait(60)
        else:
            self.wfile.write(body)

    def log_message(self, *_):
        pass
