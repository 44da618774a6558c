"""`tutelage serve`: an OpenAI-compatible API and a chat page on any run.

runs  ->  http://127.0.0.1:8000/v1 for the official clients, /chat for people
"""

import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import uvicorn
from sqlalchemy import select
from tyro.conf import Positional

from tutelage.engine.engine import EngineConfig
from tutelage.errors import InputError
from tutelage.moderation.moderator import ModerationConfig, Moderator
from tutelage.runs.device import choose_device
from tutelage.server.app import create_app
from tutelage.server.generation import shut_down_all
from tutelage.server.registry import Registry
from tutelage.store.consent import allow
from tutelage.store.database import Database
from tutelage.store.migrate import setting_up
from tutelage.store.tables import ApiKey
from tutelage.web import people
from tutelage.web.connection import Connection
from tutelage.web.keys import KeyRing, open_store
from tutelage.web.logs import write_json

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where it listens, and where the people's data lie."""

    host: str = "127.0.0.1"
    """Address to listen on; others than this machine reach it only if you say so, best behind a proxy with TLS."""
    port: int = 8000
    """0 takes a free one."""
    data: Path = Path("tutelage-data")
    """Folder of the server's own files: the SQLite database, and the secret that keys are hashed with."""
    database: str = ""
    """Another database by its URL, like postgresql://user@host/name. Empty is SQLite in --data."""
    recording: Literal["as-set", "on", "off"] = "as-set"
    """on or off sets whether people may have their chats kept, as an admin may on the page; off at first."""
    access_log: bool = True
    """A line of JSON on standard error for each request: who, which route, how it ended; never what was said."""
    trusted_proxy: str = ""
    """Address of a proxy whose X-Forwarded-* headers are believed."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """auto, fp32 or bf16."""


def serve(
    runs: Positional[tuple[str, ...]],
    config: ServeConfig = ServeConfig(),
    engine: EngineConfig = EngineConfig(),
    moderation: ModerationConfig = ModerationConfig(),
) -> None:
    """Serve runs through OpenAI's API and a chat page. A model's name is its folder's; NAME=RUN gives another.

    Example: tutelage serve runs/demo/ppo-ptx judge=runs/demo/reward --port 8000
    """
    write_json(each_request=config.access_log)
    moderator = Moderator(moderation)
    door = listen(config)
    database, keys = open_store(config.data, config.database)
    if config.recording != "as-set":
        with database.write() as session:
            allow(session, config.recording == "on")
    # Threads of one product wait for each other: with a core to itself, what talks to clients holds none of them up.
    registry = Registry(choose_device(config.device, config.dtype, spare=1), engine)
    try:
        for run in runs:
            registry.load(run)
        app = create_app(database, keys, registry, moderator)
        Server(app, config, door, welcome(database, keys)).run(sockets=[door])
    finally:
        registry.close()
        database.close()


def listen(config: ServeConfig) -> socket.socket:
    """The socket, before anything is loaded. Raises InputError when the place is taken or not ours."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise InputError(f"{config.host} port {config.port}: {error}; choose others with --host and --port") from None


def welcome(database: Database, keys: KeyRing) -> list[str]:
    """The lines that give the owner their way in: a link, and on the first start a key."""
    owner = people.owner(database)
    lines = [f"chat page   {{}}/signin/{people.make_link(database, owner.id)}   (signs you in, once)"]
    with setting_up(database):
        with database.read() as session:
            known = session.scalar(select(ApiKey.id).limit(1))
        secret = keys.make(owner.id, "first")[1] if known is None else ""
    if secret:
        lines.append(f"API key     {secret}   (shown only now; tutelage keys makes more)")
    return lines


class Server(uvicorn.Server):
    """uvicorn with our first words, where to go, and our last ones: answers in progress end with an error."""

    def __init__(self, app: Any, config: ServeConfig, door: socket.socket, lines: list[str]):
        proxy = config.trusted_proxy
        super().__init__(
            uvicorn.Config(
                app, http=Connection, ws="none", log_config=None, access_log=False, server_header=False,
                timeout_graceful_shutdown=10,
                proxy_headers=bool(proxy), forwarded_allow_ips=proxy or None,
            )
        )  # fmt: skip
        self.place, self.door, self.lines = config, door, lines

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host = f"[{self.place.host}]" if ":" in self.place.host else self.place.host
        url = f"http://{host}:{self.door.getsockname()[1]}"
        lines = [f"API         {url}/v1", *(line.format(url) for line in self.lines)]
        if self.place.host not in LOOPBACK and not self.place.trusted_proxy:
            lines.append("warning: others can reach this server, nothing is encrypted: put a proxy with TLS before it")
        print("\n".join(lines), flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends in order, and is not raised again: models and database are still to be closed."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        shut_down_all()
