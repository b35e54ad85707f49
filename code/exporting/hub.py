"""Uploads an exported folder to a private repository of the hub.

In: a repository's name and a folder. The account is that of `hf auth login` or HF_TOKEN.
"""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

FLAG = "--push-to-hub"
HTTP_ERROR = HfHubHTTPError.__bases__[0]  # of the library that the hub's client uses, also where there is no connection


def check_repository(name: str) -> None:
    """Raises ValueError if the name is none, or nobody is logged in; before anything slow starts."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{FLAG} {name}: {error}; pass ORG/NAME") from None
    if name.count("/") != 1:
        raise ValueError(f"{FLAG} {name}: pass ORG/NAME")
    try:
        HfApi().whoami()
    except (OSError, HTTP_ERROR) as error:  # no token, a wrong one, or no connection
        raise ValueError(
            f"{FLAG} {name}: the hub does not know you ({_first_line(error)}); run hf auth login, or set HF_TOKEN"
        ) from None


def push(folder: Path, name: str) -> str:
    """Creates the repository, private, if there is none, and uploads the folder; returns its address.

    Raises ValueError with the command that tries again.
    """
    try:
        address = HfApi().create_repo(name, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="Upload the exported model")
    except (OSError, HTTP_ERROR) as error:
        raise ValueError(
            f"{FLAG} {name}: {_first_line(error)}; the folder is complete, and hf upload {name} {folder} tries again"
        ) from None
    return str(address)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
