"""The tiny server. PRETEND in the environment says how its start is to fail."""

from __future__ import annotations

import argparse
import json
import os
import socketserver
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

START = """\
(APIServer pid=1) INFO 11-22 15:58:05 [model.py:733] Resolved architecture: LlamaForCausalLM
(Worker pid=3) INFO 11-22 15:58:47 [cpu_model_runner.py:68] Starting to load model /m...
Loading safetensors checkpoint shards:   0% Completed | 0/2 [00:00<?, ?it/s]\r\
Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00,  1.34it/s]\r\
Loading safetensors checkpoint shards: 100% Completed | 2/2 [00:00<00:00,  1.34it/s]
(EngineCore pid=2) INFO 11-22 15:58:50 [kv.py:2] GPU KV cache size: 46,592 tokens, Maximum concur\
rency for 2,048 tokens per request: 22.75x
"""
FAILURES = {
    "oom": """\
(EngineCore pid=2) ERROR 11-22 16:00:00 [core.py:900] Traceback (most recent call last):
(EngineCore pid=2) ERROR 11-22 16:00:00 [core.py:900] torch.OutOfMemoryError: CUDA out of memory. \
Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.20 GiB is free. \
Of the allocated memory 77.00 GiB is allocated by PyTorch.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
""",
    "architecture": """\
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, Model architectures ['NoSuchModel'] are not supported for now. [type=value_error]
""",
}


class Engine:
    """What a request and the metrics see: `hung` makes no step any more."""

    def __init__(self) -> None:
        # A process of its own in the same group, which a killed server leaves behind.
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.steps = 0
        self.running = 0
        self.hung = threading.Event()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine
    name: str

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: Any) -> None:
        """vLLM's access log is off."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(200 if self.engine.alive else 503, b"")
        elif self.path == "/metrics":
            self._answer(200, self._metrics(), "text/plain")
        elif self.path == "/v1/models":
            self._answer(200, json.dumps({"data": [{"id": self.name}]}).encode())
        elif self.path == "/load":
            self._answer(200, json.dumps({"server_load": self.engine.running}).encode())
        else:
            self._answer(404, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/completions":
            self._answer(404, b'{"detail":"Not Found"}')
            return
        self.engine.running += 1
        if body["prompt"] == "hang":
            self.engine.hung.set()
        while self.engine.hung.is_set() or body["prompt"] == "wait":
            time.sleep(0.05)
            if not self.engine.alive:
                self.engine.running -= 1
                self._answer(500, b'{"error": {"message": "EngineCore encountered an issue."}}')
                return
        self.engine.steps += 1
        self.engine.running -= 1
        text = f"process {os.getpid()}, engine {self.engine.process.pid}"
        answer = {"object": "text_completion", "model": body["model"], "choices": [{"text": text}]}
        self._answer(200, json.dumps(answer).encode())

    def _metrics(self) -> bytes:
        labels = f'{{engine="0",model_name="{self.name}"}}'
        return f"""\
# HELP python_info Of no interest.
# TYPE python_info gauge
python_info 1.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{labels} {self.engine.running}
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{labels} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{labels} 0.25
# HELP vllm:iteration_tokens_total Histogram of number of tokens per engine_step.
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{{engine="0",le="+Inf",model_name="{self.name}"}} \
{self.engine.steps}
vllm:iteration_tokens_total_count{labels} {self.engine.steps}
vllm:iteration_tokens_total_sum{labels} {self.engine.steps}
# HELP vllm:e2e_request_latency_seconds Histogram of e2e request latency in seconds.
# TYPE vllm:e2e_request_latency_seconds histogram
vllm:e2e_request_latency_seconds_bucket{{engine="0",le="+Inf",model_name="{self.name}"}} \
{self.engine.steps}
vllm:e2e_request_latency_seconds_count{labels} {self.engine.steps}
vllm:e2e_request_latency_seconds_sum{labels} {self.engine.steps / 2}
""".encode()

    def _answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Listener(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="api_server.py")
    for flag in ("--model", "--uds", "--served-model-name", "--max-model-len", "--quantization"):
        parser.add_argument(flag)
    parser.add_argument("--shutdown-timeout", type=int)
    parser.add_argument("--disable-uvicorn-access-log", action="store_true")
    parser.add_argument("--enable-server-load-tracking", action="store_true")
    given = parser.parse_args()
    if said := FAILURES.get(os.environ.get("PRETEND", "")):
        print(said, file=sys.stderr)
        sys.exit(1)
    Handler.engine, Handler.name = Engine(), given.served_model_name
    print(START, file=sys.stderr, end="", flush=True)
    with Listener(given.uds, Handler) as listener:
        print("INFO:     Application startup complete.", file=sys.stderr, flush=True)
        listener.serve_forever()


if __name__ == "__main__":
    main()
