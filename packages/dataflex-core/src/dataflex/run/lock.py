"""One run at a time in an output folder: ``dataflex_lock.json`` says who is writing there.

The lock is taken by one rank and removed when training ends, however it ends. A process that was killed leaves its lock
behind; on the same host the next run finds that nobody has it any more and takes it over. What happens on another host,
or in another container that has the host's name, nobody here can know, so such a lock is refused and the file is named.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dataflex.core.errors import ConfigError
from dataflex.core.files import LOCK
from dataflex.utils.logging import logger

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        host: Name of the machine.
        process: Id of the process.
        began: When the process began, as its system tells it; a number is given to another process one day.
        since: When the lock was taken, for a person.
        namespace: In which the process has its id, as Linux names it; nothing elsewhere. Two containers may have one
            host name, and each its own process 1.
    """

    host: str
    process: int
    began: str
    since: str
    namespace: str


_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # of a file system without them
_held: dict[Path, tuple[Holder, int]] = {}  # locks of this process, and how often each is held
os.register_at_fork(after_in_child=_held.clear)


@contextmanager
def locked(output_dir: str | Path) -> Iterator[None]:
    """Holds the lock of a folder. One process may hold it several times over.

    Raises:
        ConfigError: Another run holds it.
    """
    path = _path(output_dir)
    holder, times = _held[path] if path in _held else (_take(path), 0)
    _held[path] = (holder, times + 1)
    try:
        yield
    finally:
        if times:
            _held[path] = (holder, times)
        else:
            _held.pop(path, None)
            if _holder(path) == holder:
                path.unlink(missing_ok=True)


@contextmanager
def locked_on_rank_0(output_dir: str | Path, accelerator: Accelerator) -> Iterator[None]:
    """Holds the lock of a folder on rank 0. Collective.

    Raises:
        ConfigError: On every rank, where another run has it, or it cannot be written.
    """
    from dataflex.core.ranks.agreement import from_rank_0  # here: who only looks at a lock needs no torch

    with ExitStack() as stack:

        def take() -> None:
            try:
                stack.enter_context(locked(output_dir))
            except OSError as error:
                raise ConfigError(f"output_dir: {output_dir} cannot be locked: {error} -> choose another") from error

        from_rank_0(accelerator, take)
        yield


def require_unlocked(output_dir: str | Path) -> None:
    """Refuses a folder that another run is writing to, and takes nothing.

    Raises:
        ConfigError: Naming host and process.
    """
    path = _path(output_dir)
    if path.exists() and path not in _held and not _stale(_holder(path)):
        raise _refusal(path)


def is_held(output_dir: str | Path) -> bool | None:
    """Returns whether a run is writing to a folder; None where that cannot be told, as its machine is another one."""
    path = _path(output_dir)
    if not path.exists():
        return False
    holder = _holder(path)
    if holder is None or (holder.host, holder.namespace) != (socket.gethostname(), _namespace()):
        return None
    return not _stale(holder)


def _path(output_dir: str | Path) -> Path:
    return Path(output_dir).absolute() / LOCK


def _take(path: Path) -> Holder:
    path.parent.mkdir(parents=True, exist_ok=True)
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    mine = Holder(socket.gethostname(), os.getpid(), _beginning(os.getpid()), since, _namespace())
    for _ in range(3):  # a lock may be released, or taken over by another run, between looking and taking
        try:
            _write(path, json.dumps(asdict(mine)))
        except FileExistsError:
            found = _holder(path)
            if not _stale(found):
                raise _refusal(path) from None
            assert found is not None, "what cannot be read is not stale"
            logger.info("%s is of process %d, which has ended: taken over", path, found.process)
            _remove(path, found)
            continue
        return mine
    raise _refusal(path)


def _write(path: Path, content: str) -> None:
    """Makes a lock that is whole from its first moment; an error on the way leaves none.

    Raises:
        FileExistsError: There is one.
        OSError: It cannot be written.
    """
    if path.exists():
        raise FileExistsError(path)
    written = path.with_name(f".{path.name}.{os.getpid()}.dataflex-tmp")
    try:
        written.write_text(content, encoding="utf-8")
        os.link(written, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _write_in_place(path, content)
    finally:
        written.unlink(missing_ok=True)


def _write_in_place(path: Path, content: str) -> None:
    with open(path, "x", encoding="utf-8") as file:
        try:
            file.write(content)
            file.flush()
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _remove(path: Path, holder: Holder | None) -> None:
    """Removes a lock, unless it is another one by now."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.dataflex-tmp")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _holder(aside) != holder and not path.exists():
        aside.rename(path)
    aside.unlink(missing_ok=True)


def _refusal(path: Path) -> ConfigError:
    holder = _holder(path)
    if holder is None:
        who, way_out = "a lock that cannot be read is there", f"if no run is writing there, delete {path}"
    else:
        who = f"process {holder.process} on host {holder.host} has been writing there since {holder.since}"
        way_out = f"wait for it to end, or choose another output_dir; if it is gone, delete {path}"
    return ConfigError(f"output_dir: {path.parent} is in use by another run: {who} -> {way_out}")


def _stale(holder: Holder | None) -> bool:
    if holder is None or (holder.host, holder.namespace) != (socket.gethostname(), _namespace()):
        return False
    return _beginning(holder.process) != holder.began


def _holder(path: Path) -> Holder | None:
    """Returns who holds a lock; None where the file does not say, or is not there."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        host, began, since, namespace = (str(said[key]) for key in ("host", "began", "since", "namespace"))
        return Holder(host, int(said["process"]), began, since, namespace)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return ""


def _beginning(process: int) -> str:
    """Returns when a process began, as its system tells it; nothing where there is no such process."""
    stat = Path(f"/proc/{process}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] == "Z" else fields[19]  # a zombie has ended
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(process)], capture_output=True, text=True, check=False)
    return found.stdout.strip()
