"""What an encoder that is not of BERT's family needs before it is served."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import encoder_folders
import pytest

from ds_engines.errors import ConfigError
from ds_serve.text.convert import ENCODER, openvino_folder


class Silent:
    def note(self, text: str) -> None:
        pass


@pytest.mark.skipif(find_spec("torch") is not None, reason="the libraries are here")
def test_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_SERVE_CACHE", str(tmp_path / "cache"))
    case = encoder_folders.cases()["bert"]
    folder = encoder_folders.write(tmp_path / "model", case, {"model_type": "modernbert"})
    with pytest.raises(ConfigError, match=r"needs 'torch': pip install 'ds-serve\[convert\]'$"):
        openvino_folder(folder, Silent(), ENCODER)
