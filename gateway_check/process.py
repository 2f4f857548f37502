"""The gateway as a process group of its own, on loopback."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx

from gateway_check.common import WORKER_HEADER
from gateway_check.surroundings import Database

CHECKOUT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """Return a loopback port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def gateway_settings(database: Database, registry: str, port: int) -> dict[str, str]:
    """Return the environment in which the gateway runs: no auth, no UI, loopback allowed."""
    own_log = database.name == "sqlite"
    return {
        "DATABASE_URL": database.url,
        "CACHE_TYPE": "database",
        "HOST": "127.0.0.1",
        "PORT": str(port),  # its calls to itself go there
        "AUTH_REQUIRED": "false",
        "ALLOW_UNAUTHENTICATED_ADMIN": "true",
        "PLATFORM_ADMIN_PASSWORD": secrets.token_urlsafe(24) + "-aB3",
        "DEFAULT_USER_PASSWORD": secrets.token_urlsafe(24) + "-aB3",
        "JWT_SECRET_KEY": secrets.token_urlsafe(48),
        "AUTH_ENCRYPTION_SECRET": secrets.token_urlsafe(48),
        "MCPGATEWAY_UI_ENABLED": "false",
        "MCPGATEWAY_ADMIN_API_ENABLED": "false",
        "MCPGATEWAY_A2A_ENABLED": "false",
        "PLUGINS_ENABLED": "false",
        "RATE_LIMITING_ENABLED": "false",
        "SSRF_ALLOW_LOCALHOST": "true",
        "DB_POOL_SIZE": "10",
        "DB_MAX_OVERFLOW": "10",
        "ENVIRONMENT": "development",
        "LOG_LEVEL": "WARNING",
        "CHECK_REGISTRY": registry,
        "CHECK_STATEMENT_LOG": str(database.log) if own_log else "",
    }


@dataclass
class Gateway:
    """A running gateway."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> None:
        """End the gateway and everything it started; wait until it has gone."""
        self._signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            print("the gateway ignores SIGTERM and is killed", flush=True)
        self._signal(signal.SIGKILL)
        self.process.wait(10)

    def _signal(self, number: int) -> None:
        """Send a signal to the process group that was made for this gateway."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def last_words(self) -> str:
        """Return the end of what the gateway has logged."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def start_gateway(database: Database, registry: str, workers: int, folder: Path) -> Gateway:
    """Start uvicorn in a process group of its own."""
    port = free_port()
    log = folder / f"{database.name}-{workers}-{registry}.log"
    paths = [str(CHECKOUT), str(CHECKOUT / "examples")]
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(folder),
        "PYTHONPATH": os.pathsep.join(filter(None, [*paths, os.environ.get("PYTHONPATH")])),
        **gateway_settings(database, registry, port),
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", "gateway_check.worker:build_app"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    command += ["--timeout-worker-healthcheck", "60", "--no-access-log", "--log-level", "warning"]
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Gateway(f"http://127.0.0.1:{port}", process, log)


async def wait_until_up(gateway: Gateway, workers: int) -> None:
    """Return when each worker has answered."""
    seen: set[str] = set()
    while len(seen) < workers:
        if gateway.process.poll() is not None:
            raise RuntimeError(f"the gateway did not start:\n{gateway.last_words()}")
        with contextlib.suppress(httpx.TransportError):
            async with httpx.AsyncClient(timeout=5) as client:
                answer = await client.get(f"{gateway.url}/health")
                seen.add(answer.headers.get(WORKER_HEADER, ""))
        await asyncio.sleep(0.2)


async def register_tool(gateway: Gateway, tool_url: str) -> None:
    """Register the echo tool anew; an earlier run's points to the same server."""
    tool = {
        "name": "echo",
        "url": tool_url,
        "description": "Answers with what it is given.",
        "integration_type": "REST",
        "request_type": "POST",
        "input_schema": {"type": "object", "properties": {"text": {"type": "string"}}},
    }
    async with httpx.AsyncClient(timeout=20) as client:
        answer = await client.post(f"{gateway.url}/tools", json={"tool": tool})
    if answer.status_code not in (200, 201, 409):
        raise RuntimeError(f"the tool cannot be registered: {answer.status_code} {answer.text}")
