"""One thread for every test: two on a busy machine make tiny models ten times slower.

And one finished quickstart for all who need real run folders: read it, never write into it.
"""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `chatloom quickstart --tiny`, which ran once, through the command line."""
    from chatloom import cli

    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    assert cli.main(["quickstart", "--tiny", "--output-dir", str(folder)]) == 0
    return folder
