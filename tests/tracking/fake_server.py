"""A W&B server on the loopback interface, as far as wandb 0.31 talks to one: it takes a run and remembers it."""

import gzip
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self

KEY = "0" * 40


class FakeServer:
    """Serves for the length of a `with` block.

    Attributes:
        runs: by run id: what the run said of itself (`UpsertBucket`), with its `config` decoded.
        rows: by run id: the history, without W&B's own columns.
        summary, exit_code: by run id.
        artifacts: the variables of each `CreateArtifact`.
        stopped: whether somebody has pressed the Stop button.
        accepts_key, accepts_runs: false is a refusal.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.summary: dict[str, dict[str, Any]] = {}
        self.exit_code: dict[str, int] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.stopped = False
        self.accepts_key = True
        self.accepts_runs = True
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """Refuse every connection from now on."""
        self._http.shutdown()
        self._http.server_close()

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "mutation UpsertBucket" in query:
            return {"upsertBucket": {"bucket": self._upsert(given), "inserted": True}}
        if "mutation CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": None} for name in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        if "query Viewer" in query:
            return {"viewer": {"id": "1", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}}
        if "mutation CreateArtifact " in query or "mutation CreateArtifact(" in query:
            self.artifacts.append(given)
        return {}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(given["name"], {})
        run |= {key: value for key, value in given.items() if value is not None}
        if given.get("config"):
            run["config"] = {key: entry["value"] for key, entry in json.loads(given["config"]).items()}
        project = {"name": given["project"], "entity": {"name": "me"}}
        return {"id": given["name"], "name": given["name"], "displayName": given.get("displayName"), "project": project}

    def file_stream(self, run: str, sent: dict[str, Any]) -> dict[str, Any]:
        files = sent.get("files") or {}
        for line in files.get("wandb-history.jsonl", {}).get("content", []):
            row = {key: value for key, value in json.loads(line).items() if not key.startswith("_")}
            self.rows.setdefault(run, []).append(row)
        for line in files.get("wandb-summary.json", {}).get("content", []):
            self.summary[run] = json.loads(line)
        if sent.get("complete"):
            self.exit_code[run] = sent["exitcode"]
        return {"stopped": self.stopped}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                sent = json.loads(body)
                if not server.accepts_key:
                    self._answer({"errors": [{"message": "permission denied"}]}, status=401)
                elif not server.accepts_runs and "UpsertBucket" in sent.get("query", ""):
                    self._answer({"errors": [{"message": "unavailable"}]}, status=503)
                elif self.path.endswith("/file_stream"):
                    self._answer(server.file_stream(self.path.split("/")[-2], sent))
                else:
                    self._answer({"data": server.graphql(sent["query"], sent.get("variables") or {})})

            do_PATCH = do_POST

            def do_GET(self) -> None:
                self._answer({})

            def _answer(self, answer: dict[str, Any], status: int = 200) -> None:
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Keep quiet."""

        return Handler
