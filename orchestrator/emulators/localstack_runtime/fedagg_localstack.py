"""LocalStack plug-ins for running it without Docker: functions as processes, and a server on the loopback interface.

LocalStack decides when a function's environment starts, is reused and stops. Here is what is inside of one: AWS's own
runtime client for Python (`python -m awslambdaric`), which imports the handler from the function's unpacked zip, and
the Lambda Runtime API (AWS Lambda developer guide, "Using the Lambda runtime API"), from which it takes invocations.
The function gets its environment variables and timeout; not its memory limit, its layers or a root file system.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from localstack import config
from localstack.runtime.server import twisted
from localstack.runtime.server.core import RuntimeServerPlugin
from localstack.services.lambda_.invocation.executor_endpoint import StatusErrorException
from localstack.services.lambda_.invocation.lambda_models import FunctionVersion, InvocationResult
from localstack.services.lambda_.invocation.plugins import RuntimeExecutorPlugin
from localstack.services.lambda_.invocation.runtime_executor import RuntimeExecutor

_API = "/2018-06-01/runtime"


class ProcessExecutorPlugin(RuntimeExecutorPlugin):
    """What LocalStack finds under this name in LAMBDA_RUNTIME_EXECUTOR."""

    name = "fedagg-process"

    def load(self, *args: Any, **kwargs: Any) -> type[RuntimeExecutor]:
        return ProcessExecutor


class ProcessExecutor(RuntimeExecutor):
    """One execution environment: a function's process and the Runtime API that it talks to."""

    def __init__(self, id: str, function_version: FunctionVersion) -> None:
        super().__init__(id, function_version)
        self.invocations: queue.Queue[dict[str, str] | None] = queue.Queue()
        # ("ready" | "response" | "error" | "exit", payload), in the order in which it happened.
        self.events: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._lines: deque[str] = deque(maxlen=10_000)
        self._server: ThreadingHTTPServer | None = None
        self._process: subprocess.Popen[str] | None = None

    def start(self, env_vars: dict[str, str]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Api", (_RuntimeApi,), {"executor": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        code = str(self.function_version.config.code.get_unzipped_code_location())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "awslambdaric", str(self.function_version.config.handler)],
            cwd=code,
            env={
                "PATH": os.environ["PATH"],
                "TMPDIR": tempfile.gettempdir(),
                **{name: str(value) for name, value in env_vars.items()},
                "LAMBDA_TASK_ROOT": code,
                "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._server.server_port}",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._watch, args=(self._process,), daemon=True).start()
        event, payload = self.events.get()
        if event != "ready":
            raise StatusErrorException(f"The function did not start: {payload.decode()}", payload)

    def invoke(self, payload: dict[str, str]) -> InvocationResult:
        timeout_s = int(self.function_version.config.timeout)
        self.invocations.put(payload)
        try:
            event, answer = self.events.get(timeout=timeout_s)
        except queue.Empty:
            event, answer = "exit", _error("Sandbox.Timedout", f"Task timed out after {timeout_s}.00 seconds")
        if event == "exit":
            # LocalStack ends this environment, and the invocation with this error.
            raise StatusErrorException(f"The invocation failed: {answer.decode()}", answer)
        return InvocationResult(payload["invoke-id"], answer, is_error=event == "error", logs=self._take_logs())

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self.invocations.put(None)
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def get_address(self) -> str:
        return "127.0.0.1"

    def get_endpoint_from_executor(self) -> str:
        return "127.0.0.1"

    def get_runtime_endpoint(self) -> str:
        return f"http://127.0.0.1:{config.GATEWAY_LISTEN[0].port}/_localstack_lambda/{self.id}"

    def get_logs(self) -> str:
        return "\n".join(self._lines)

    @classmethod
    def prepare_version(cls, function_version: FunctionVersion) -> None:
        function_version.config.code.prepare_for_execution()

    @classmethod
    def cleanup_version(cls, function_version: FunctionVersion) -> None:
        """LocalStack deletes the unpacked zip itself."""

    def _watch(self, process: subprocess.Popen[str]) -> None:
        """Collect what the function prints, until it ends."""
        assert process.stdout is not None
        self._lines.extend(line.rstrip("\n") for line in process.stdout)
        status = process.wait()
        self.events.put(("exit", _error("Runtime.ExitError", f"Runtime exited with exit status {status}")))

    def _take_logs(self) -> str:
        return "\n".join(self._lines.popleft() for _ in range(len(self._lines)))


def _error(kind: str, message: str) -> bytes:
    return json.dumps({"errorType": kind, "errorMessage": message}).encode()


class _RuntimeApi(BaseHTTPRequestHandler):
    """The part of the Lambda Runtime API that a runtime client calls."""

    executor: ProcessExecutor
    protocol_version = "HTTP/1.1"
    _ready = False

    def do_GET(self) -> None:
        if self.path != f"{_API}/invocation/next":
            self._reply(404)
            return
        executor = self.executor
        if not type(self)._ready:
            type(self)._ready = True
            executor.events.put(("ready", b""))
        invocation = executor.invocations.get()
        if invocation is None:
            self.close_connection = True
            return
        deadline_ms = int(1000 * (time.time() + int(executor.function_version.config.timeout)))
        self._reply(
            200,
            invocation["payload"].encode(),
            {
                "Lambda-Runtime-Aws-Request-Id": invocation["invoke-id"],
                "Lambda-Runtime-Deadline-Ms": str(deadline_ms),
                "Lambda-Runtime-Invoked-Function-Arn": invocation["invoked-function-arn"],
                "Lambda-Runtime-Trace-Id": invocation["trace-id"],
                "Content-Type": "application/json",  # without it, the runtime client 4.2.2 crashes
            },
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        # .../invocation/<id>/response, .../invocation/<id>/error, or .../init/error
        event = "exit" if self.path == f"{_API}/init/error" else self.path.rsplit("/", 1)[-1]
        self.executor.events.put((event, body))
        self._reply(202)

    def _reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        logging.getLogger(__name__).debug(format, *args)


class LoopbackServerPlugin(RuntimeServerPlugin):
    """What LocalStack finds under this name in GATEWAY_SERVER."""

    name = "fedagg-loopback"

    def load(self, *args: Any, **kwargs: Any) -> LoopbackServer:
        return LoopbackServer()


class LoopbackServer(twisted.TwistedRuntimeServer):
    """LocalStack's own server, which listens on every interface, whatever GATEWAY_LISTEN says, on one interface."""

    def register(self, gateway: Any, listen: Any, ssl_creds: Any = None) -> None:
        endpoint = twisted.endpoints.TCP4ServerEndpoint
        twisted.endpoints.TCP4ServerEndpoint = functools.partial(endpoint, interface="127.0.0.1")
        try:
            super().register(gateway, listen, ssl_creds)
        finally:
            twisted.endpoints.TCP4ServerEndpoint = endpoint
