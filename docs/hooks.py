"""A hook of MkDocs: the site has the layout of the repository, so that links are the same in both.

Pages of docs/ stay below docs/, and the README, its neighbours and the folders that pages link to belong to the site;
`mkdocs build --strict` then checks every link.
"""

import pathlib

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
FOLDERS = ("configs", "launch", "notebooks")  # files in them can be linked to


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Give every file its path in the repository, and add those outside of docs/."""
    root = pathlib.Path(config.config_file_path).parent
    paths = [root / page for page in PAGES]
    paths += sorted(path for folder in FOLDERS for path in (root / folder).iterdir() if path.is_file())
    for file in list(files):
        if file.src_dir == config.docs_dir:  # and not the theme's
            files.remove(file)
            paths.append(pathlib.Path(str(file.abs_src_path)))
    for path in paths:
        files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files
