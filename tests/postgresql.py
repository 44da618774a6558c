"""A PostgreSQL of the tests' own, from Debian's packages, in a folder that goes away."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest


class PostgreSQL:
    """initdb, start on a free port of loopback, one fresh database per `new_database`."""

    def __init__(self) -> None:
        places = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [
            Path(shutil.which("initdb") or "/nowhere").parent
        ]
        self.bin, self.made = places[-1], 0
        if not (self.bin / "initdb").exists():
            pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
        self.folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(self.folder, "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        data, log = str(self.folder / "data"), str(self.folder / "log")
        self.run("initdb", "-D", data, "-U", "tests", "-A", "trust", "--locale=C.UTF-8")
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        self.run("pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start")

    def run(self, program: str, *words: str) -> None:
        as_other = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        command = [*as_other, str(self.bin / program), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder)

    def new_database(self) -> str:
        """Its URL."""
        self.made += 1
        self.run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "tests", f"t{self.made}")
        return f"postgresql://tests@127.0.0.1:{self.port}/t{self.made}"

    def stop(self) -> None:
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop")
        shutil.rmtree(self.folder)
