"""Look at an installed wheel: ``python -I tests/dist_check.py WHEEL bare|extras``.

``bare``: nothing but what the package requires is installed; ``extras``: those of commands, of
PostgreSQL and of testing, too.
"""

import importlib
import importlib.metadata
import pkgutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

NEED_MORE = {
    "bare": ("cli", "testing", "transports", "aio.transports", "mcp", "stores.database.postgresql"),
    "extras": ("transports._websocket", "aio.transports", "mcp"),
}
"""What may not be importable, for it needs an extra that is not installed."""


def check(wheel: Path, extras: str) -> None:
    import trio_sessions

    found = Path(trio_sessions.__file__).parent
    assert "site-packages" in found.parts, f"imported from {found}, not from the wheel"
    version = importlib.metadata.version("trio_sessions")
    assert trio_sessions.__version__ == version, "two versions"
    assert wheel.name.startswith(f"trio_sessions-{version}-py3-none-any"), wheel.name
    assert (found / "py.typed").is_file(), "without py.typed nobody sees the types"
    strange = [name for name in zipfile.ZipFile(wheel).namelist() if not is_ours(name, version)]
    assert not strange, f"what is this in the wheel? {strange}"
    imported = [importlib.import_module(name) for name in modules(found, NEED_MORE[extras])]
    if extras == "extras":
        from trio_sessions.testing import FakeTransport, store_conformance

        assert callable(FakeTransport)
        assert len(list(store_conformance)) > 50, "the checks of the contract"
    use()
    print(f"{len(imported)} modules can be imported, with what is {extras}")  # noqa: T201 -- a script that prints


def is_ours(name: str, version: str) -> bool:
    metadata = f"trio_sessions-{version}.dist-info/"
    is_code = name.endswith((".py", "/py.typed")) and name.startswith("trio_sessions/")
    return is_code or name.startswith(metadata)


def modules(found: Path, leave_out: tuple[str, ...]) -> Iterator[str]:
    for one in pkgutil.walk_packages([str(found)], "trio_sessions.", onerror=lambda _: None):
        short = one.name.removeprefix("trio_sessions.")
        left_out = any(short == name or short.startswith(f"{name}.") for name in leave_out)
        if not left_out and not short.endswith("__main__"):
            yield one.name


def use() -> None:
    """Hold a session in an SQLite file."""
    import trio

    from trio_sessions import open_registry

    class Connection:
        async def is_connected(self) -> bool:
            return True

        async def disconnect(self) -> None:
            pass

    async def main(url: str) -> None:
        async with open_registry(url) as registry:
            await registry.add_session("s", Connection())
            assert (await registry.cleanup()).refreshed == 1

    with tempfile.TemporaryDirectory() as folder:
        trio.run(main, f"sqlite:///{folder}/sessions.db")


if __name__ == "__main__":
    check(Path(sys.argv[1]), sys.argv[2])
