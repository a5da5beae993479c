"""The Hugging Face Hub, played by a small server on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from fourfold.config import ConfigError
from fourfold.models import create, sources

CONFIG = {
    "architecture": "test_vit",
    "num_classes": 5,
    "pretrained_cfg": {
        "input_size": [3, 160, 160],
        "fixed_input_size": True,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bilinear",
        "crop_pct": 0.8,
        "num_classes": 5,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    },
}

# Where the Hub is, is read when huggingface_hub is imported: so in a process of its own.
CHILD = """
import json, sys
from safetensors.torch import save_file
from fourfold.config import ModelConfig
from fourfold.models import create, sources

def gone():
    raise ConnectionError("the network is gone")

values = dict.fromkeys(ModelConfig.__dataclass_fields__) | {
    "name": "owner/demo", "source": "hf_hub", "kwargs": {}, "weights": "default", "partial_weights": False
}
model = create(ModelConfig(**values), 3)
save_file(model.net.state_dict(), sys.argv[1])
sources.get_session = gone
again = create(ModelConfig(**values), 3)
print(json.dumps([model.preprocessing.mean, model.preprocessing.resize, model.weights.source, again.weights.source]))
"""


class Hub(BaseHTTPRequestHandler):
    """One public repository, owner/demo, with the files in `server.files`."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        folder, _, name = self.path.rpartition("/")
        content = self.server.files.get(name) if folder == "/owner/demo/resolve/main" else None  # type: ignore[attr-defined]
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if body and content:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Address of the server, and the weights that it holds."""
    state = timm.create_model("test_vit", num_classes=5).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {  # type: ignore[attr-defined]
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": (tmp_path / "model.safetensors").read_bytes(),
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", state
    server.shutdown()
    server.server_close()


def test_a_repository_gives_weights_and_preprocessing_and_then_stays_in_the_cache(hub, tmp_path: Path) -> None:
    endpoint, state = hub
    changes = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "child.safetensors")],
        env={**os.environ, **changes},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    origin = "timm hf-hub:owner/demo"
    assert json.loads(child.stdout.splitlines()[-1]) == [[0.1, 0.2, 0.3], 200, origin, origin]
    got = load_file(tmp_path / "child.safetensors")
    assert got["head.weight"].shape[0] == 3
    for name, value in got.items():
        if not name.startswith("head."):
            assert torch.equal(value, state[name]), name


def test_a_hub_out_of_reach_is_said_at_once(model_config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's own client would retry for most of a minute."""

    def gone() -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sources, "get_session", gone)
    began = time.perf_counter()
    with pytest.raises(ConfigError, match="the model hf-hub:owner/absent cannot be fetched from"):
        create(model_config("owner/absent", "hf_hub", weights="default"), 3)
    assert time.perf_counter() - began < 10  # 0.1 s on an idle machine
    assert constants.HF_HUB_OFFLINE is False
