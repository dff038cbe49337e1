"""Preset files: names that are no paths, values that are checked, errors with the line, nothing replaced unasked."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from mlxkv.config import Folders
from mlxkv.errors import ConfigError
from mlxkv.settings.presets import MAX_PRESET, Preset, PresetFolder

VALUES: dict[str, Any] = {"system": "Be terse.\nAnd kind.\n", "temperature": 0.2, "top_k": None, "window": 512}


@pytest.fixture
def folder(tmp_path: Path) -> PresetFolder:
    return PresetFolder(Folders.from_env({"MLXKV_HOME": str(tmp_path)}))


def refusal(folder: PresetFolder, name: str = "terse") -> str:
    with pytest.raises(ConfigError) as caught:
        folder.load(name)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_a_preset_is_saved_listed_taken_renamed_and_deleted(folder: PresetFolder) -> None:
    assert folder.names() == []
    path = folder.save("terse", VALUES)
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    assert folder.load("terse") == Preset("terse", VALUES)
    assert folder.load("terse").summary == "system prompt “Be terse. And kind.” · temp 0.2 · top-k none · ctx 512"
    path.write_text("# mine\n" + path.read_text())
    with pytest.raises(ConfigError, match="There is a preset terse already"):
        folder.save("terse", {"seed": 1})
    folder.save("terse", {"seed": 1}, replace=True)
    assert path.read_text() == "# mine\nseed = 1\n"
    folder.save("Arabic-عربي_2", {})
    with pytest.raises(ConfigError, match="There is a preset terse already"):
        folder.rename("Arabic-عربي_2", "terse")
    folder.rename("terse", "short")
    assert folder.names() == ["Arabic-عربي_2", "short"]
    folder.delete("short")
    for act in (lambda: folder.delete("short"), lambda: folder.rename("short", "x"), lambda: folder.load("short")):
        with pytest.raises(ConfigError, match="There is no preset 'short'; there are Arabic-عربي_2"):
            act()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a.b", "a b", "x\n", "x\0", "-x", "x" * 65, "save", "~x"],
)
def test_a_name_is_no_path(folder: PresetFolder, name: str) -> None:
    for act in (folder.load, folder.delete, lambda name: folder.save(name, {}), lambda name: folder.rename("a", name)):
        with pytest.raises(ConfigError, match=r"is not a name of a preset|is a command"):
            act(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n# c\ntemperature = 'hot'\n", "terse.toml, line 3, is 'hot'; it must be a number from 0 to 100"),
        ("seed = 1\n[temprature]\nx = 1", "`temprature` in"),
        ("seed = 1\n[temprature]\nx = 1", "terse.toml, line 2, is not a setting of a preset; those are model, "),
        ("theme = 'nord'", "is not a setting of a preset"),
        ("temperature: 0.5", "is not valid TOML"),
        ("a" + ".a" * 300 + "=1", "is not valid TOML"),
        ("seed = " + "[" * 5000, "is not valid TOML"),
        ("#" * (MAX_PRESET + 1), "it is over 1 MiB"),
    ],
    ids=range(8),
)
def test_a_file_that_is_wrong_is_named_with_the_line(folder: PresetFolder, text: str, words: str) -> None:
    folder.save("terse", {}).write_text(text)
    assert words in refusal(folder)


def test_what_is_no_file_is_refused(folder: PresetFolder) -> None:
    path = folder.save("terse", {})
    path.unlink()
    os.mkfifo(path)
    assert "it is a pipe" in refusal(folder)


def test_a_model_brings_no_adapter_of_another(folder: PresetFolder) -> None:
    folder.save("a", {"model": "tutor"})
    folder.save("b", {"model": "tutor", "adapter": "org/x"})
    assert [folder.load(name).values["adapter"] for name in "ab"] == ["none", "org/x"]
