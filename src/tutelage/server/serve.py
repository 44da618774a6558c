"""`tutelage serve`: an OpenAI-compatible API and a chat page for any run.

runs  ->  http://127.0.0.1:8000/v1 for OpenAI's clients, /chat for people
"""

import gc
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import uvicorn
from sqlalchemy import select
from tyro.conf import Positional

from tutelage.engine.engine import EngineConfig
from tutelage.errors import InputError
from tutelage.moderation.moderator import ModerationConfig, Moderator
from tutelage.options import Advanced, Range, out_of_range
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

Port = Annotated[int, Range(least=0, most=65535)]
GRACE_SECONDS = 10  # for requests in progress, when the server stops
MOST_SECONDS = 20  # for all of the shutdown
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Address, data folder and device of the server."""

    host: str = "127.0.0.1"
    """Address to listen on. The default is for this machine only; to serve others, put a proxy with TLS in front."""
    port: Port = 8000
    """Port to listen on; 0 picks a free one."""
    data: Path = Path("tutelage-data")
    """Folder for the server's data: the SQLite database and the secret that keys are hashed with."""
    database: Advanced[str] = ""
    """URL of another database, such as postgresql://user@host/name. Empty: SQLite in --data."""
    recording: Literal["as-set", "on", "off"] = "as-set"
    """Whether people may have their chats kept. as-set: as it was last set, here or on the chat page; at first off."""
    access_log: Advanced[bool] = True
    """Log one line of JSON per request to standard error: who, which route, which status; never any text."""
    trusted_proxy: Advanced[str] = ""
    """Address of a proxy whose X-Forwarded-* headers are trusted."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: Advanced[str] = "auto"
    """auto, fp32 or bf16."""

    def __post_init__(self) -> None:
        if wrong := out_of_range(self):
            raise InputError(wrong)


def serve(
    runs: Positional[tuple[str, ...]],
    config: ServeConfig = ServeConfig(),
    engine: EngineConfig = EngineConfig(),
    moderation: ModerationConfig = ModerationConfig(),
) -> None:
    """Serve runs with an OpenAI-compatible API and a chat page. A model is named after its folder, or by NAME=RUN.

    runs: Runs to serve: RUN, or NAME=RUN to choose the model's name.

    Example: tutelage serve runs/demo/ppo-ptx judge=runs/demo/reward --port 8000
    """
    write_json(each_request=config.access_log)
    moderator = Moderator(moderation)
    listener = listen(config)
    database, keys = open_store(config.data, config.database)
    if config.recording != "as-set":
        with database.write() as session:
            allow(session, config.recording == "on")
    # The threads of a matrix product wait for each other, so the thread that talks to clients gets a core to itself.
    registry = Registry(choose_device(config.device, config.dtype, spare=1), engine)
    try:
        app = create_app(database, keys, registry, moderator)
        starting = [app.state.text_work.start(), *(registry.load(run).encoder.start() for run in runs)]
        for started in starting:
            started.result()
        gc.freeze()  # a full collection then looks at what requests make, not at the modules and models
        Server(app, config, listener, welcome(database, keys)).run(sockets=[listener])
        app.state.text_work.close()
    finally:
        registry.close()
        database.close()


def listen(config: ServeConfig) -> socket.socket:
    """Open the listening socket, before anything is loaded. Raises InputError if the address cannot be used."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise InputError(f"{config.host} port {config.port}: {error}; change --host or --port") from None


def welcome(database: Database, keys: KeyRing) -> list[str]:
    """The lines to print for the owner: a sign-in link, and on the first start an API key. {} stands for the URL."""
    owner = people.owner(database)
    lines = [f"chat page   {{}}/signin/{people.make_link(database, owner.id)}   (signs you in, works once)"]
    with setting_up(database):
        with database.read() as session:
            any_key = session.scalar(select(ApiKey.id).limit(1))
        secret = keys.make(owner.id, "first")[1] if any_key is None else ""
    if secret:
        lines.append(f"API key     {secret}   (shown only now; tutelage keys makes more)")
    return lines


class Server(uvicorn.Server):
    """uvicorn that prints the URLs when it starts, and ends completions in progress with an error when it stops."""

    def __init__(self, app: Any, config: ServeConfig, listener: socket.socket, lines: list[str]):
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
                proxy_headers=bool(config.trusted_proxy),
                forwarded_allow_ips=config.trusted_proxy or None,
            )
        )
        self.settings, self.listener, self.lines = config, listener, lines

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then print the URLs."""
        await super().startup(sockets)
        host = self.settings.host
        url = f"http://{f'[{host}]' if ':' in host else host}:{self.listener.getsockname()[1]}"
        lines = [f"API         {url}/v1", *(line.format(url) for line in self.lines)]
        if host not in LOOPBACK and not self.settings.trusted_proxy:
            lines.append("warning: other machines can reach this server without encryption; put a TLS proxy in front")
        print("\n".join(lines), flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal starts an orderly shutdown. It is not raised again, so models and database are closed.

        The kernel ends a process that has not ended by itself after MOST_SECONDS.
        """
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(MOST_SECONDS)
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        shut_down_all()
