"""Where the files of a set come from: a local file or folder (--source), or its home on the web."""

import http.client
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

RAW_URL = "https://raw.githubusercontent.com"
API_URL = "https://api.github.com/repos"
COMMIT = re.compile("[0-9a-f]{40}")
TIMEOUT_S = 60


class Files(Protocol):
    """revision: the commit of the files, None where it is not known. used: each file that was found, by its name."""

    revision: str | None
    used: dict[str, Path]

    def find(self, *names: str) -> Path:
        """The first of these files that is there. Raises OSError."""


@dataclass(frozen=True)
class GitHub:
    """A repository; revision: the commit, tag or branch to use where the user names none."""

    repository: str
    revision: str

    @property
    def page(self) -> str:
        return f"https://github.com/{self.repository}"

    def commit(self, revision: str) -> str:
        url = f"{API_URL}/{self.repository}/commits/{revision}"
        return _get(urllib.request.Request(url, headers={"Accept": "application/vnd.github.sha"})).decode().strip()

    def download(self, name: str, commit: str, folder: Path) -> Path:
        path = folder / Path(name).name
        path.write_bytes(_get(urllib.request.Request(f"{RAW_URL}/{self.repository}/{commit}/{name}")))
        return path


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub; downloads are cached there, as huggingface_hub does."""

    repository: str
    revision: str

    @property
    def page(self) -> str:
        return f"https://huggingface.co/datasets/{self.repository}"

    def commit(self, revision: str) -> str:
        return self.download("README.md", revision).parent.name  # the cache has one folder per commit

    def download(self, name: str, commit: str, _folder: Path | None = None) -> Path:
        from huggingface_hub import hf_hub_download  # a second to import

        return Path(hf_hub_download(self.repository, name, repo_type="dataset", revision=commit))


class Downloads:
    """Files of a home at one commit. folder: where to put them."""

    def __init__(self, home: GitHub | Hub, revision: str | None, folder: Path):
        self.home, self.folder, self.used = home, folder, {}
        revision = revision or home.revision
        with naming_the_remedy(f"{home.page} at {revision}"):
            self.revision = revision if COMMIT.fullmatch(revision) else home.commit(revision)

    def find(self, *names: str) -> Path:
        place = f"{names[0]} of {self.home.page} at {self.revision}"
        print(f"downloading {place}", flush=True)
        with naming_the_remedy(place):
            self.used[names[0]] = self.home.download(names[0], self.revision, self.folder)
        return self.used[names[0]]


class LocalFiles:
    """--source: the one file of a set, or a folder with its files, laid out as at their home or all in one place."""

    def __init__(self, source: Path, revision: str | None):
        self.source, self.revision, self.used = source, revision, {}
        if not source.exists():
            raise FileNotFoundError(f"--source {source}: no such file or folder")

    def find(self, *names: str) -> Path:
        if self.source.is_file():
            if self.used:
                raise NotADirectoryError(
                    f"--source {self.source}: a file, but this set needs {names[0]} too; pass the folder of both"
                )
            candidates = {self.source.name: self.source}
        else:
            candidates = {n: self.source / n for name in names for n in (name, Path(name).name)}
        for name, path in candidates.items():
            if path.is_file():
                self.used[name] = path
                return path
        raise FileNotFoundError(f"--source {self.source}: no {' or '.join(candidates)} there")


def _get(request: urllib.request.Request) -> bytes:
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        return response.read()


@contextmanager
def naming_the_remedy(place: str) -> Iterator[None]:
    """Raises OSError for a download that fails."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"{place}: {error}; get the files by other means, and pass --source") from error
