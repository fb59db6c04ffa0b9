"""A loopback server that speaks as much of the hub's protocol as a download needs, and goes wrong as it is told."""

import hashlib
import http.server
import threading


class Hub(http.server.ThreadingHTTPServer):
    """Serves `files` ("owner/name/path" -> bytes). Weights are redirected to another host, as the hub's are: this one by another name."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []  # of every GET that asked for a part
        self.wrong_hash = False  # states another sha256 than the bytes have
        self.wrong_size = 0  # so many bytes more than there are, stated
        self.cut_after: int | None = None  # bytes of the next large body, behind which the connection is closed
        self.error: tuple[int, str] | None = None  # (status, X-Error-Code) of every answer
        self.stalls = False  # sends half of a body, and no more
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


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
        hub.requests.append((self.command, self.path))
        if hub.error is not None:
            self.empty(hub.error[0], **({"X_Error_Code": hub.error[1]} if hub.error[1] else {}))
            return
        is_storage = self.path.startswith("/storage/")
        repo, _, rest = self.path.removeprefix("/storage").lstrip("/").partition("/resolve/")
        name = f"{repo}/{rest.partition('/')[2]}"
        content = hub.files.get(name)
        if content is None:
            self.empty(
                404, X_Error_Code="EntryNotFound" if any(key.startswith(f"{repo}/") for key in hub.files) else "RepoNotFound"
            )
            return
        if name.endswith((".safetensors", ".pth", ".pt")) and not is_storage:
            digest = "0" * 64 if hub.wrong_hash else hashlib.sha256(content).hexdigest()
            self.empty(302, Location=f"http://localhost:{hub.server_address[1]}/storage{self.path}", X_Repo_Commit="a" * 40, X_Linked_ETag=f'"{digest}"',
                       X_Linked_Size=str(len(content) + hub.wrong_size), ETag='"of the pointer"')  # fmt: skip
            return
        self.send(content, with_body=with_body)

    def send(self, content: bytes, *, with_body: bool) -> None:
        hub: Hub = self.server
        start = 0
        if "Range" in self.headers:
            hub.ranges.append(self.headers["Range"])
            start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0] or 0)
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", "a" * 40)
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
