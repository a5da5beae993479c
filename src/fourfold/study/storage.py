"""Where the trials of a study are kept: a journal or sqlite file in its folder, or a database server named by a URL."""

import fcntl
import logging
import mmap
import os
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from fourfold.config import ConfigError, nearest

if TYPE_CHECKING:  # a fifth of a second that a journal does without
    from sqlalchemy.engine import URL

log = logging.getLogger(__name__)
T = TypeVar("T")

JOURNAL, SQLITE = "journal", "sqlite"
FILES = {JOURNAL: "study.journal", SQLITE: "study.db"}
SERVERS = ("postgresql", "mysql", "mariadb")

OPENING_SECONDS = 15.0  # a new database that others create tables in, too; a wrong password must not take longer to tell
AWAY_SECONDS = 120.0  # a database that is restarted in the middle of the night
LONGEST_PAUSE_SECONDS = 5.0
UNDER_WAY_SECONDS = 0.1  # after which a line that has not grown is one that nobody will finish

# libpq's own patience with a host that vanished is two hours; what the user's URL says goes first.
NOTICE_DEAD_HOSTS = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}


def beside(kind: str, folder: Path) -> Path | None:
    """The folder of a study whose trials lie there with its runs; None where they are in a database, which may know of runs
    that lie elsewhere."""
    return folder if kind in FILES else None


def open_storage(kind: str, folder: Path) -> BaseStorage:
    """The storage of a study; any number of processes may open the same one at the same moment, the first time too.

    Args:
        kind: `journal` or `sqlite` (a file in `folder`), or the URL of a PostgreSQL or MySQL database.
        folder: The study's folder. Created.

    Raises:
        ConfigError: `kind` is neither, its driver is missing, or the database cannot be opened. The message holds no password.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if kind == JOURNAL:
        path = folder / FILES[JOURNAL]
        # Optuna's annotation names the base of its own locks, which is private; acquire and release are all that it calls.
        return JournalStorage(JournalFileBackend(str(path), lock_obj=FileLock(path)))  # type: ignore[arg-type]
    if kind == SQLITE:
        from sqlalchemy.engine import URL

        url = URL.create("sqlite", database=str(folder.absolute() / FILES[SQLITE]))
        return _open_database(url, {"connect_args": {"timeout": 60}})
    # Each connection is tried before it is used, so that a restart between two calls costs nothing.
    return _open_database(_server(kind), {"pool_pre_ping": True})


def existing(kind: str, folder: Path) -> BaseStorage | None:
    """The storage of a study that has begun, or None: nothing is created, neither a file nor a table.

    Args:
        kind: As for `open_storage`.
        folder: The study's folder.

    Raises:
        ConfigError: as `open_storage`.
    """
    if kind in FILES:
        return open_storage(kind, folder) if (folder / FILES[kind]).exists() else None
    import sqlalchemy

    engine = sqlalchemy.create_engine(_server(kind))
    try:
        if not sqlalchemy.inspect(engine).has_table("trials"):
            return None
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise _unreachable(engine.url, error) from None
    finally:
        engine.dispose()
    return open_storage(kind, folder)


def _server(kind: str) -> "URL":
    """The URL of a database server, with its driver.

    Raises:
        ConfigError: Not such a URL, or its driver is not installed.
    """
    name = kind.partition("://")[0]
    # Before the first colon nothing is secret; without one, only a plain word is surely no password.
    seen = f"{name}://..." if "://" in kind else kind if re.fullmatch(r"\w+", kind) else "..."
    server, _, driver = name.partition("+")
    if "://" not in kind or server not in SERVERS:
        raise ConfigError(
            f"hydra.sweeper.storage={seen} is neither journal, sqlite nor the URL of a postgresql or mysql database"
            f"{nearest(server, (JOURNAL, SQLITE, *SERVERS))}: give one of them, a URL best as ${{oc.env:FOURFOLD_STORAGE}}, "
            "which keeps passwords off the disk"
        )
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(kind)
        if server == "postgresql" and not driver:  # which driver this means changed between SQLAlchemy 2.0 and 2.1
            url = url.set(drivername="postgresql+psycopg")
        url.get_dialect().import_dbapi()
    except ImportError as error:
        cure = "'fourfold[postgresql]'" if url.drivername == "postgresql+psycopg" else "the driver that it names"
        raise ConfigError(f"hydra.sweeper.storage={seen} needs a driver ({error}): pip install {cure}") from None
    except (ArgumentError, ValueError):
        raise ConfigError(
            f"hydra.sweeper.storage={seen} cannot be read as a URL: write {server}://USER:PASSWORD@HOST:PORT/DATABASE, "
            "with %40 for an @ in the password, %2F for a /"
        ) from None
    if url.drivername in ("postgresql+psycopg", "postgresql+psycopg2"):
        url = url.set(query={**NOTICE_DEAD_HOSTS, **url.query})
    return url


def _open_database(url: "URL", engine_kwargs: dict[str, object]) -> RDBStorage:
    # Optuna fills in {SCHEMA_VERSION} with str.format, so a brace in a password or path must be doubled.
    text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return persevere(lambda: RDBStorage(text, engine_kwargs=engine_kwargs), OPENING_SECONDS)
    except (StorageInternalError, SQLAlchemyError) as error:
        raise _unreachable(url, error, f" for {OPENING_SECONDS:.0f} seconds") from None


def _unreachable(url: "URL", error: Exception, how_long: str = "") -> ConfigError:
    return ConfigError(
        f"hydra.sweeper.storage={url.set(query={}).render_as_string(hide_password=True)} could not be opened{how_long} "
        f"({_reason(error)}): start the database, or correct the setting"
    )


class FileLock:
    """A lock on a journal that the system releases when its holder dies; Optuna's own would stall the next writer 30 s.

    The journal itself is locked. A file beside it would be taken for Optuna's own lock, and removed, by whatever else opens the
    study, such as optuna-dashboard. Whoever holds the lock finds a journal whose last line is whole.

    It may be pickled; the copy holds nothing.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._held: IO[bytes] | None = None

    def acquire(self) -> bool:
        file = self._journal.open("ab+")
        fcntl.flock(file, fcntl.LOCK_EX)
        repair(file, self._journal)
        self._held = file
        return True

    def release(self) -> None:
        if self._held is not None:
            fcntl.flock(self._held, fcntl.LOCK_UN)  # closing would not do if this process was forked meanwhile
            self._held.close()
            self._held = None

    def __reduce__(self) -> tuple[type["FileLock"], tuple[Path]]:
        return FileLock, (self._journal,)


def repair(file: IO[bytes], path: Path) -> int:
    """Cut half a line off the end of a journal (a kill inside a write, a power cut, a full disk).

    Optuna appends to it, and can read the journal never again. A line that another program is writing is waited for.

    Args:
        file: The journal, open for reading and writing, locked.
        path: Its name, to be logged.

    Returns:
        Bytes that were cut off.
    """
    size = file.seek(0, os.SEEK_END)
    while True:
        if size == 0 or os.pread(file.fileno(), 1, size - 1) == b"\n":
            return 0
        # optuna-dashboard has a lock of its own: it may be in the middle of a note
        time.sleep(UNDER_WAY_SECONDS)
        before, size = size, file.seek(0, os.SEEK_END)
        if size == before:
            break
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
        whole = content.rfind(b"\n") + 1
    file.truncate(whole)
    os.fsync(file.fileno())
    log.warning("%s ended in half a line: cut off %d bytes", path, size - whole)
    return size - whole


def persevere(call: Callable[[], T], seconds: float = AWAY_SECONDS) -> T:
    """What `call` returns, called again while the storage is away or was changed by another process at the same moment.

    Args:
        call: Something that may be done twice: a database that dies may have done it without saying so.
        seconds: How long a storage may be away.

    Raises:
        StorageInternalError, SQLAlchemyError: what `call` raised last.
    """
    patience_ends = time.monotonic() + seconds
    pause = 0.05
    while True:
        try:
            return call()
        except Exception as error:
            if not _of_the_storage(error) or time.monotonic() + pause > patience_ends:
                raise
            log.info("The study's storage did not answer (%s): trying again.", _reason(error))
        time.sleep(pause * random.uniform(0.5, 1.0))  # not the same for two processes that met
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _of_the_storage(error: Exception) -> bool:
    databases = sys.modules.get("sqlalchemy.exc")  # without it, nothing of it was raised
    return isinstance(error, (StorageInternalError, databases.SQLAlchemyError) if databases else StorageInternalError)


def _reason(error: BaseException) -> str:
    """The first line of what the database's driver said, which Optuna and SQLAlchemy wrap."""
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    driver = getattr(error, "orig", None) or error
    return str(driver).strip().partition("\n")[0] or type(driver).__name__
