"""A server in a container, where a Docker engine answers; started through testcontainers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from outbox_saga.testing.servers.place import Place, ServerUnavailable, free_port

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer


@functools.cache
def why_no_docker() -> str | None:
    """None when a Docker engine answers within two seconds, else the reason; asked only once."""
    try:
        import docker
        import docker.errors
        import testcontainers.core.container  # noqa: F401 - is it installed?
    except ImportError as missing:
        return f"the package {missing.name} is not installed"
    try:
        docker.from_env(timeout=2).ping()
    except (docker.errors.DockerException, OSError) as problem:
        return f"no Docker engine answers ({str(problem).splitlines()[0][:100]})"
    return None


class Container(Place):
    """One container whose port on this machine is chosen once, so a restart keeps it.

    testcontainers' reaper removes it should this process end without doing so.
    """

    source = "docker"

    def __init__(
        self,
        image: str,
        port: int,
        *,
        command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.image = image
        self.inner_port = port
        self.command = list(command)
        self.environment = dict(environment or {})
        self.port = free_port()
        self.host = "127.0.0.1"
        self._container: DockerContainer | None = None

    def start(self) -> None:
        """Create the container, or start the one that was stopped or killed."""
        from testcontainers.core.container import DockerContainer

        if self._container is not None:
            self._docker().start()
            return
        container = DockerContainer(self.image).with_bind_ports(self.inner_port, self.port)
        for name, value in self.environment.items():
            container.with_env(name, value)
        if self.command:
            container.with_command(self.command)
        self._container = container.start()
        self.host = self._container.get_container_host_ip().replace("localhost", "127.0.0.1")

    def stop(self) -> None:
        """Stop the container and keep it."""
        self._docker().stop(timeout=20)

    def kill(self) -> None:
        """SIGKILL all of its processes and keep the container."""
        self._docker().kill()
        self._docker().wait()

    def pause(self) -> None:
        """Freeze it."""
        self._docker().pause()

    def resume(self) -> None:
        """End the pause."""
        self._docker().unpause()

    def discard(self) -> None:
        """Remove the container with its volumes."""
        if self._container is not None:
            self._container.stop()
            self._container = None

    def ended(self) -> str | None:
        """None while it runs; otherwise the end of its log."""
        if self._container is None:
            return ""
        docker = self._docker()
        docker.reload()
        if docker.status in ("created", "running", "paused"):
            return None
        return str(docker.logs(tail=40).decode(errors="replace"))

    def _docker(self) -> Any:
        if self._container is None:
            raise ServerUnavailable(f"the container of {self.image} is not there: start it first")
        return self._container.get_wrapped_container()
