"""Folders on any storage: plain paths, s3://, gs://, memory://, by fsspec.

Credentials and endpoints come from where each storage's own tools look for them (the environment,
~/.aws, ...) and from fsspec's configuration (FSSPEC_S3_...); never from a URL, which ends up in
manifests and messages.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from sharding.io.atomic import atomic_path
from sharding.io.cache import DIGEST, Cache
from sharding.io.conditional import swap_local, swap_object
from sharding.io.errors import DISK_FULL, DataError, MissingError, disk_error, file_errors
from sharding.io.retries import AT_ONCE, EXTRAS, RetryingConnection

logger = logging.getLogger(__name__)

PIECE_BYTES = 16 * 2**20
"""Files are downloaded in pieces of this size: what is interrupted repeats one, not the file."""
TOGETHER = 128
"""Small files that are read or written by one call, which repeats them all if one fails."""

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)", re.DOTALL)
_ALMOST_URL = re.compile(r"[a-zA-Z0-9+.-]{2,}:/(?!/)|.*::.*://|file://(?!/)")
_VERSIONS = ("ETag", "etag", "LastModified", "mtime", "created")
"""Keys under which file systems give the version of a file."""
COPY_AGAIN = "Copy it again or shard the cohort again"


def is_remote(url: str | Path) -> bool:
    """Whether a folder is given by a URL of some storage rather than by a path or file://."""
    match = _URL.match(str(url))
    return match is not None and match[1] != "file"


class Folder:
    """One folder on some storage.

    Writes are atomic: local ones by rename, those on object stores by nature, for an object
    appears when its upload is complete. A folder need not exist before something is written
    into it. May be pickled and used after a fork: every process opens its own connections.

    Names of files are relative, with slashes, and stay inside the folder. Every method raises
    DataError, with the full name, if a name does not, or if the storage fails or refuses.

    Attributes:
        url: As given, without a trailing slash.
        local: The path, where the folder is a local one.
        cache: Where the files of a remote folder are kept when they are fetched.
    """

    def __init__(self, url: str | Path, cache: Cache | None = None) -> None:
        """Check the URL; nothing is asked of the storage yet.

        Raises:
            DataError: If it is malformed or holds a password.
        """
        text = str(url)
        protocol = "file"
        if _ALMOST_URL.match(text):
            rule = "looks like a URL but cannot be used as one"
            raise DataError(text, rule, "Write it like s3://bucket/folder or file:///folder")
        if is_remote(text):
            protocol = text.partition("://")[0]
            _check_url(text, protocol)
        self.url = text if text.endswith("://") else text.rstrip("/") or "/"
        path = self.url.removeprefix("file://") or "/"
        self.local = None if is_remote(text) else Path(path).expanduser()
        self.cache = cache or Cache()
        self._connection = RetryingConnection(protocol)

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def __reduce__(self) -> tuple[type[Folder], tuple[str, Cache]]:
        # Connections belong to the process that opened them.
        return Folder, (self.url, self.cache)

    def __truediv__(self, name: str) -> str:
        """The full name of a file, for messages; of the folder itself for an empty name."""
        if self.local is not None:
            return str(self.local / name)
        return f"{self.url}/{name}" if name else self.url

    join = __truediv__

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none of this name."""
        try:
            return self._info(name)["size"]
        except MissingError:
            return None

    def names(self, under: str = "") -> list[str]:
        """Every file in the folder, or in a folder `under` it, sorted; none if there is no folder.

        The names are relative to this folder in either case. Hidden files and folders, such as
        an unfinished write leaves when its process is killed, are left out.
        """
        return list(self.digests(under))

    def digests(self, under: str = "") -> dict[str, str | None]:
        """Every file as `names` lists them, with what the listing says of its content's MD5.

        S3 gives that of an object that was sent whole, and something else for one encrypted by KMS
        or sent in parts: a content with that digest is the file's, one with another may be.

        Returns:
            Hexadecimal digests by name; None where the storage gives none, as disks do.
        """

        def find(system: Any, path: str) -> dict[str, str | None]:
            if self.local is not None:
                found = dict.fromkeys(_walk(path))
            else:
                listed = system.find(path, detail=True)
                found = {name: _listed_md5(info) for name, info in listed.items()}
            root = system._strip_protocol(str(self.local or self.url)).rstrip("/") + "/"
            return {n.removeprefix(root): md5 for n, md5 in found.items() if n.startswith(root)}

        try:
            found = self._connection.request(self / (under and self._checked(under)), find)
        except MissingError:
            return {}
        # Object stores may hold an empty object for a folder: its name ends in a slash.
        return {
            name: found[name]
            for name in sorted(found)
            if not name.endswith("/") and "/." not in f"/{name}" and name
        }

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            DataError: If it is missing or cannot be read.
        """
        where = self / self._checked(name)
        return self._connection.request(where, lambda system, path: system.cat_file(path))

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        """The contents of small files, in order; remote ones are asked for many at a time.

        Raises:
            DataError: If one is missing or cannot be read.
        """
        if self.local is not None or len(names) < 2:
            return [self.read(name) for name in names]

        def read(system: Any, part: Sequence[str]) -> list[bytes]:
            paths = [system._strip_protocol(self / self._checked(name)) for name in part]
            found = system.cat(paths, **self._at_once(system))
            return [found[path] for path in paths]

        contents: list[bytes] = []
        for part in _parts(names):
            contents += self._connection.request(
                self.url, lambda system, _, p=part: read(system, p)
            )
        return contents

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes of a file from byte `start` on.

        Raises:
            DataError: If the file is missing, cannot be read, or ends before.
        """
        if start < 0 or length < 0:
            raise ValueError(f"start and length must be >= 0, got {start} and {length}")

        def read(system: Any, path: str) -> bytes:
            content = system.cat_file(path, start=start, end=start + length) if length else b""
            if len(content) != length:
                raise OSError(f"asked for {length} bytes from {start} on, got {len(content)}")
            return content

        return self._connection.request(self / self._checked(name), read)

    def write(self, name: str, content: bytes | str) -> None:
        """Write a small file in one atomic step."""
        content = content.encode() if isinstance(content, str) else content
        if self.local is None:
            where = self / self._checked(name)
            self._connection.request(where, lambda system, path: system.pipe_file(path, content))
        else:
            with self.writer(name) as partial:
                partial.write_bytes(content)

    def write_many(self, contents: Mapping[str, bytes | str]) -> None:
        """Write small files, each in one atomic step; remote ones are sent many at a time."""
        if self.local is not None or len(contents) < 2:
            for name, content in contents.items():
                self.write(name, content)
            return

        def write(system: Any, part: Sequence[str]) -> None:
            pieces = {}
            for name in part:
                content = contents[name]
                content = content.encode() if isinstance(content, str) else content
                pieces[system._strip_protocol(self / self._checked(name))] = content
            system.pipe(pieces, **self._at_once(system))

        for part in _parts([*contents]):
            self._connection.request(self.url, lambda system, _, p=part: write(system, p))

    def swap(self, name: str, old: bytes | None, new: bytes) -> bool:
        """Write a small file, only if its content is `old`; None if there is no file.

        On local disks and on S3 no other call can come between the comparison and the write.
        Other storages offer no such request: of two calls at once, both may succeed there.

        Returns:
            Whether the file was as expected, and was written.
        """
        where = self / self._checked(name)
        if self.local is not None:
            with file_errors(where):
                return swap_local(self.local / name, old, new)
        return self._connection.request(
            where, lambda system, path: swap_object(system, path, old, new)
        )

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[Path]:
        """Yield a local temporary path; the file appears, whole, only if the block succeeds.

        The path ends like the name. Files of a remote folder are gathered in the machine's
        temporary folder (TMPDIR) and uploaded at the end of the block.

        Raises:
            DataError: Also if the disk fills up within the block.
        """
        where = self / self._checked(name)
        suffix = PurePosixPath(name).suffix
        with contextlib.ExitStack() as stack:
            if self.local is None:
                with file_errors(tempfile.gettempdir()):
                    scratch = tempfile.TemporaryDirectory(prefix="distsynth-")
                    partial = Path(stack.enter_context(scratch), f"file{suffix}")
            else:
                with file_errors(where):
                    partial = stack.enter_context(atomic_path(self.local / name, suffix))
            try:
                yield partial
            except OSError as error:
                # Any other error is the block's own.
                if error.errno in DISK_FULL:
                    raise disk_error(partial.parent, error) from error
                raise
            if self.local is None:
                self._connection.request(
                    where, lambda system, path: system.put_file(str(partial), path)
                )
            with file_errors(where):
                stack.close()

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        where = self / self._checked(name)
        with contextlib.suppress(MissingError):
            self._connection.request(where, lambda system, path: system.rm_file(path))

    def fetch(self, name: str, sha256: str | None, size: int | None) -> Path:
        """A local path to the whole file, for reading only.

        A file of a local folder is that file itself: its size is checked and its content is not.
        One of a remote folder is downloaded into the cache, unless it is there already, and its
        size and checksum are verified on arrival. Without a checksum the storage is asked every
        time whether the file is still the same. Open the path at once: see Cache.

        Args:
            name: The file.
            sha256: Its checksum, where known.
            size: Its bytes, where known.

        Raises:
            DataError: If the file is missing, is not as stated, or does not fit into the cache.
        """
        where = self / self._checked(name)
        if sha256 is not None and not DIGEST.fullmatch(sha256):
            raise DataError(where, f"not a sha256: {sha256!r}", "Shard the cohort again")
        if self.local is None and sha256:
            with file_errors(self.cache.folder):
                found = self.cache.find(sha256, size)
            if found:
                return found
        info = self._info(name)
        if size not in (None, info["size"]):
            rule = f"must have {size} bytes, found {info['size']}: cut short or changed"
            raise DataError(where, rule, COPY_AGAIN)
        if self.local is not None:
            return self.local / name
        size = int(info["size"])
        version = [where, str(size), *(str(info.get(key)) for key in _VERSIONS)]
        digest = sha256 or hashlib.sha256("\n".join(version).encode()).hexdigest()
        with file_errors(self.cache.folder):
            return self.cache.find(digest, size) or self.cache.add(
                digest, size, where, lambda partial: self._download(name, partial, size, sha256)
            )

    @staticmethod
    def _at_once(system: Any) -> dict[str, int]:
        """How many requests a file system may have under way; those in turn take no number."""
        return {"batch_size": AT_ONCE} if system.async_impl else {}

    def _checked(self, name: str) -> str:
        """The name, if it stays inside the folder: no manifest may point anywhere else."""
        path = PurePosixPath(name)
        inside = str(path) == name != "." and not path.is_absolute() and ".." not in path.parts
        if not inside or "\\" in name or "\0" in name:
            rule = f"not the name of a file inside the folder: {name!r}"
            raise DataError(self.url, rule, "Use plain relative names")
        return name

    def _info(self, name: str) -> dict[str, Any]:
        """The storage's information on a file: size in bytes and, under various keys, version."""

        def ask(system: Any, path: str) -> dict[str, Any]:
            info = system.info(path)
            if info["type"] == "directory":
                raise FileNotFoundError
            return info

        return self._connection.request(self / self._checked(name), ask)

    def _download(self, name: str, partial: Path, size: int, sha256: str | None) -> None:
        """Download into `partial`, again if the checksum is wrong: damage may be temporary."""
        found = ""
        for _ in range(2):
            digest = hashlib.sha256()
            with partial.open("wb") as file:
                for start in range(0, size, PIECE_BYTES):
                    piece = self.read_range(name, start, min(PIECE_BYTES, size - start))
                    digest.update(piece)
                    file.write(piece)
            found = digest.hexdigest()
            if sha256 in (None, found):
                return
            logger.warning("%s: arrived with a wrong checksum", self / name)
        rule = (
            f"its sha256 must be {sha256}, found {found} twice: the object was changed or damaged"
        )
        raise DataError(self / name, rule, COPY_AGAIN)


def _listed_md5(info: Mapping[str, Any]) -> str | None:
    """The MD5 in a listing: S3's ETag, or what Google's storage calls md5Hash."""
    if "md5Hash" in info:
        return base64.b64decode(info["md5Hash"]).hex()
    return info["ETag"].strip('"') if "ETag" in info else None


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Names that are asked for together, and again together if one request fails."""
    for low in range(0, len(names), TOGETHER):
        yield names[low : low + TOGETHER]


def _check_url(url: str, protocol: str) -> None:
    """Refuse a URL with a password, without repeating it, and one that names no bucket."""
    parts = urlsplit(url)
    if parts.password is not None:
        where = url.replace(parts.netloc.rpartition("@")[0], "...", 1)
        rule = "a URL must not hold a password, because it is written to manifests and messages"
        raise DataError(where, rule, "Give the credentials in the environment")
    if protocol in EXTRAS and not parts.netloc:
        raise DataError(url, "the URL names no bucket", "Write it like s3://bucket/folder")


def _walk(folder: str) -> Iterator[str]:
    """Every file below a local folder; unlike fsspec's, this does not pass over forbidden ones."""

    def fail(error: OSError) -> None:
        raise error

    for path, _, names in os.walk(folder, onerror=fail):
        yield from (f"{path}/{name}" for name in names)
