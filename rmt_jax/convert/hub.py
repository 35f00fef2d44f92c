"""The Hugging Face hub: weights from a repository there, and a folder as one commit to it."""

import pathlib
import re
import types

HUB_FILE = "model.safetensors"
CARD_FILE = "README.md"

_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_hub_name(name: str) -> bool:
    """Whether a text may be "user/name" or "user/name@revision"."""
    return _NAME.fullmatch(name) is not None


def download(name: str) -> pathlib.Path:
    """The weights of a name on the hub, in its cache, where a copy is found without a connection too.

    Private repositories need the token of `hf auth login` or HF_TOKEN; HF_HUB_OFFLINE=1 asks for the cache alone.

    Args:
        name: "user/name", or "user/name@revision" with a branch, a tag or a commit.

    Raises:
        ImportError: no huggingface_hub.
        FileNotFoundError: not there, or not reachable.
    """
    hub = require_hub(f"{name} is no local path, and reading from the hub")
    from huggingface_hub import errors

    repository, _, revision = name.partition("@")
    try:
        return pathlib.Path(hub.hf_hub_download(repository, HUB_FILE, revision=revision or None))
    except errors.RevisionNotFoundError as error:
        reason = f"it has no branch, tag or commit {revision!r}"
        raise _not_found(name, reason) from error
    except errors.LocalEntryNotFoundError as error:
        reason = "it is not in the cache, and the hub was not asked or did not answer"
        raise _not_found(name, reason) from error
    except errors.EntryNotFoundError as error:
        reason = f"it has no such file, which `rmt push` writes: {repository} is not of rmt_jax"
        raise _not_found(name, reason) from error
    except errors.RepositoryNotFoundError as error:
        reason = "there is no such repository, or it is private: then `hf auth login`, or set HF_TOKEN"
        raise _not_found(name, reason) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise _not_found(name, str(error).strip().splitlines()[0]) from error


def check_name(name: str) -> None:
    """Raise ValueError where a text is no name of a repository, ImportError where there is no huggingface_hub."""
    require_hub("Writing to the hub")
    from huggingface_hub import errors, utils

    try:
        if not is_hub_name(name) or "@" in name:
            raise ValueError(f"{name}: expected USER/NAME, a repository on the hub.")
        utils.validate_repo_id(name)
    except errors.HFValidationError as error:
        raise ValueError(f"{name} is no name of a repository: {error}") from error


def check_can_push() -> None:
    """Raise ValueError where nobody is logged in."""
    if require_hub("Writing to the hub").get_token() is None:
        raise ValueError("Nobody is logged in to the hub: run `hf auth login`, or set HF_TOKEN to a token that writes.")


def push_folder(
    folder: pathlib.Path, name: str, *, message: str, private: bool, replace_card: bool
) -> tuple[str, bool]:
    """Upload a folder in one commit, to a repository that is made where there is none.

    Args:
        folder: of files.
        name: "user/name".
        message: of the commit.
        private: a new repository; one that is there stays as it is.
        replace_card: also where the repository has a card, which may be written by hand.

    Returns:
        (address of the commit, whether the repository's own card was kept).

    Raises:
        OSError: the hub cannot be reached, or refuses.
    """
    hub = require_hub("Writing to the hub")
    from huggingface_hub import errors

    api = hub.HfApi()
    try:
        # None leaves the choice to the user's or organisation's settings.
        api.create_repo(name, private=True if private else None, exist_ok=True)
        keep = not replace_card and api.file_exists(name, CARD_FILE)
        ignored = [CARD_FILE] if keep else None
        commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, ignore_patterns=ignored)
    except (errors.HfHubHTTPError, RuntimeError) as error:  # huggingface_hub raises the latter of large files
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise OSError(f"{name}: the hub refused ({reason}).") from error
    return commit.commit_url, keep


def require_hub(what: str) -> types.ModuleType:
    """The package huggingface_hub.

    Raises:
        ImportError: it is missing; the message begins with what needs it.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(f"{what} needs huggingface_hub: pip install 'rmt-jax[hub]'.") from error
    return huggingface_hub


def _not_found(name: str, reason: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{name}: no such file or directory, and {HUB_FILE} of this name could not be had from the hub: {reason}."
    )
