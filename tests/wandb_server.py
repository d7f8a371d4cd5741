"""As much of a W&B server as runs, `wandb sync` and dashboards talk to, on this machine's loopback."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0" * 40


class WandbServer:
    """Answers what is asked and keeps what was sent.

    Attributes:
        url: for ``WANDB_BASE_URL``.
        asked: name and variables of every GraphQL request, in order.
        files: what was uploaded, by ``artifact/name`` or ``run/name``.
        streamed: the last lines and the end of each run's file stream, by the stream's file name.
        exit_code: of the run, once it said that it was complete.
        knows_the_key: whether the key is taken; may be changed.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}
        self.streamed: dict[str, list[Any]] = {}
        self.exit_code: int | None = None
        self.knows_the_key = True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """What sends W&B's client here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def variables(self, operation: str) -> list[dict[str, Any]]:
        """The variables of each request of this name."""
        return [variables for name, variables in self.asked if name == operation]

    def run(self) -> dict[str, Any]:
        """What was said of the run, later words in place of earlier ones."""
        said: dict[str, Any] = {}
        for variables in self.variables("UpsertBucket"):
            said |= {name: value for name, value in variables.items() if value is not None}
        said["config"] = {name: entry["value"] for name, entry in json.loads(said["config"]).items()}
        return said

    def answer(self, operation: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        storage = f"{self.url}/storage"
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "someone"}}
        match operation:
            case "Viewer":
                teams: dict[str, Any] = {"edges": []}
                who = {
                    "id": "u",
                    "entity": "someone",
                    "username": "someone",
                    "email": "",
                    "flags": "{}",
                    "teams": teams,
                }
                return {"viewer": who if self.knows_the_key else None}
            case "UpsertBucket":
                name = variables["name"]
                bucket = {"id": "b", "name": name, "displayName": name, "project": project, "historyLineCount": 0}
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "ArtifactType":
                return {"project": None}  # there is no artifact of this name yet
            case "CreateArtifact":
                name = variables["input"]["artifactCollectionName"]
                artifact = {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
                return {"createArtifact": {"artifact": artifact}}
            case "CreateArtifactManifest":
                url = f"{storage}/{variables['artifactID']}/manifest"
                file = {"id": "f", "uploadUrl": url, "uploadHeaders": []}
                return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
            case "CreateArtifactFiles":
                nodes = [
                    {"uploadUrl": f"{storage}/{file['artifactID']}/{file['name']}", "uploadHeaders": [],
                     "storagePath": file["name"], "artifact": {"id": file["artifactID"]}}
                    for file in variables["input"]["artifactFiles"]
                ]  # fmt: skip
                return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
            case "CommitArtifact":
                return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": ""}}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{storage}/run/{name}"} for name in variables["files"]]
                return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
            case "ProjectInternalId":
                return {"project": {"id": "p", "internalId": "cA=="}}
            case "GetProjects":
                node = {"__typename": "Project", "id": "cA==", "name": "twins", "entityName": "someone"}
                node |= {"createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
                page_info = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
                return {"models": {"pageInfo": page_info, "edges": [{"node": node}]}}
            case "UpsertView2" | "upsertView":
                view = {"id": "view", "name": "nw-view-v", "type": variables["type"], "spec": variables["spec"]}
                view |= {"displayName": variables["displayName"], "description": variables["description"]}
                view |= {"project": {"id": "p", "name": variables["projectName"], "entityName": "someone"}}
                return {"upsertView": {"view": view, "inserted": True}}
        return {}

    def stream(self, body: dict[str, Any]) -> None:
        for name, chunk in body.get("files", {}).items():
            lines = self.streamed.setdefault(name, [])
            del lines[chunk["offset"] :]
            lines += chunk["content"]
        if body.get("complete"):
            self.exit_code = body["exitcode"]

    def lines(self, name: str) -> list[dict[str, Any]]:
        """A JSON-lines file of the stream."""
        return [json.loads(line) for line in self.streamed[name]]

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                with suppress(ConnectionResetError):  # clients leave without a word
                    super().handle()

            def log_message(self, *arguments: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers["Content-Encoding"] == "gzip":
                    body = gzip.decompress(body)
                answer: dict[str, Any] = {}
                if self.path == "/graphql":
                    asked = json.loads(body)
                    name = asked.get("operationName") or asked["query"].split("(")[0].split()[1]
                    variables = asked.get("variables") or {}
                    server.asked.append((name, variables))
                    answer = {"data": server.answer(name, variables)}
                elif self.path.endswith("/file_stream"):
                    server.stream(json.loads(body))
                elif self.path.startswith("/storage/"):
                    server.files[self.path.removeprefix("/storage/")] = body
                content = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_PUT = do_POST

        return Handler
