"""Where things lie, which of the four sources wins, and what a bad value is told. No model, no MLX."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxkv.config import (
    Folders,
    Settings,
    load_settings,
    load_sources,
    private_folder,
    save_setting,
    unknown_variable,
    with_setting,
)
from mlxkv.errors import ConfigError
from mlxkv.settings.schema import as_markdown, find, schema
from mlxkv.settings.setting_sources import Source


def folders(root: Path, toml: str | None = None) -> Folders:
    found = Folders.from_env({"MLXKV_HOME": str(root)})
    if toml is not None:
        found.config.mkdir(parents=True, exist_ok=True)
        (found.config / "config.toml").write_text(toml, encoding="utf-8")
    return found


def refusal(root: Path, toml: str | None = None, env: dict[str, str] | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(folders(root, toml), env or {}, flags)
    text = str(caught.value)
    assert text.endswith((".", "?"))
    assert "\n" not in text
    return text


# -- folders ---------------------------------------------------------------------------------------------------------


def test_mlxkv_home_holds_everything() -> None:
    found = Folders.from_env({"MLXKV_HOME": "/big/disk", "XDG_DATA_HOME": "/elsewhere", "HOME": "/home/ada"})
    assert found == Folders(*(Path("/big/disk") / name for name in ("config", "data", "cache", "state")))


def test_mlxkv_home_may_be_written_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert Folders.from_env({"MLXKV_HOME": "~/kv"}).data == Path("/home/ada/kv/data")


def test_without_it_the_xdg_defaults_hold() -> None:
    assert Folders.from_env({"HOME": "/home/ada"}) == Folders(
        config=Path("/home/ada/.config/mlxkv"),
        data=Path("/home/ada/.local/share/mlxkv"),
        cache=Path("/home/ada/.cache/mlxkv"),
        state=Path("/home/ada/.local/state/mlxkv"),
    )


def test_xdg_variables_move_one_folder_each() -> None:
    names = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME")
    found = Folders.from_env({"HOME": "/home/ada", **{name: f"/x/{name}" for name in names}})
    assert [found.config, found.data, found.cache, found.state] == [Path(f"/x/{name}/mlxkv") for name in names]


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_xdg_variables_that_are_empty_or_relative_do_not_count(value: str) -> None:
    """The XDG specification says so; a relative one would follow the working directory around."""
    assert Folders.from_env({"HOME": "/home/ada", "XDG_DATA_HOME": value}).data == Path("/home/ada/.local/share/mlxkv")


# -- private folders -------------------------------------------------------------------------------------------------


def test_a_new_folder_and_those_above_it_are_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    before = os.umask(0)
    try:
        path = private_folder(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (path, *path.parents[:3])] == [0o700] * 3 + [0o755]
    assert private_folder(path) == path  # and stays usable


@pytest.mark.parametrize("mode", [0o770, 0o777])
def test_a_home_others_can_write_to_is_refused_until_it_is_repaired(tmp_path: Path, mode: int) -> None:
    """They could replace the folders in it, however private those are."""
    env = {"MLXKV_HOME": str(tmp_path)}
    data = private_folder(Folders.from_env(env).data)
    tmp_path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        Folders.from_env(env)
    assert f"run `chmod go-w {tmp_path}` or" in str(caught.value)
    tmp_path.chmod(mode & ~0o022)
    assert Folders.from_env(env).data == data


def test_a_home_in_which_others_cannot_replace_our_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sticky one, such as /tmp, and another user's is not one."""
    env = {"MLXKV_HOME": str(tmp_path)}
    tmp_path.chmod(0o1777)
    assert Folders.from_env(env).data == tmp_path / "data"
    tmp_path.chmod(0o700)
    me = os.getuid() + 4242
    monkeypatch.setattr(os, "getuid", lambda: me)
    monkeypatch.setattr(Path, "stat", _owned_by(me + 1))
    with pytest.raises(ConfigError, match="another user"):
        Folders.from_env(env)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_folder_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "open"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod go-w") as caught:
        private_folder(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_folder_others_can_only_read_is_not(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "mine"
    path.mkdir()
    path.chmod(mode)
    assert private_folder(path) == path


def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner may write to it, whatever its mode says."""
    path = tmp_path / "theirs"
    path.mkdir(mode=0o700)
    me = os.getuid() + 4242
    monkeypatch.setattr(os, "getuid", lambda: me)
    monkeypatch.setattr(Path, "stat", _owned_by(me + 1))
    with pytest.raises(ConfigError, match="another user"):
        private_folder(path)
    monkeypatch.setattr(Path, "stat", _owned_by(me))
    assert private_folder(path) == path


def _owned_by(uid: int) -> Any:
    def fake(path: Path, **_: Any) -> os.stat_result:
        values = list(os.stat(path))
        values[4] = uid
        return os.stat_result(values)

    return fake


def test_a_file_in_its_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        private_folder(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be used"):
        private_folder(tmp_path / "file" / "below")


# -- settings --------------------------------------------------------------------------------------------------------


def test_defaults_where_nothing_is_set(tmp_path: Path) -> None:
    assert load_settings(folders(tmp_path), {}) == Settings()


def test_the_file_beats_the_defaults_the_environment_the_file_and_flags_beat_all(tmp_path: Path) -> None:
    toml = 'temperature = 0.1\ntop_k = 1\nmin_p = 0.1\nmodel = "file"\n'
    env = {"MLXKV_TEMPERATURE": "0.2", "MLXKV_TOP_K": "2", "MLXKV_HOME": "ignored here"}
    found = load_settings(folders(tmp_path, toml), env, {"temperature": 0.3, "system": None})
    assert (found.temperature, found.top_k, found.min_p) == (0.3, 2, 0.1)
    assert (found.model, found.system) == ("file", None)
    assert found.top_p is Settings().top_p


def test_a_variable_that_is_no_setting_is_named_with_the_nearest_one() -> None:
    known = {f"MLXKV_{s.name.upper()}": "1" for s in schema()}
    assert unknown_variable(known | {"MLXKV_HOME": "x", "MLXKV_THOROUGH": "1", "MLXKV_TEMPP": ""}) == ""
    for name, nearest in (
        ("TEMPP", "TEMPERATURE"), ("temp", "TEMPERATURE"), ("CTX", "WINDOW"), ("MODLE", "MODEL"),
        ("MEMORY_LIMITS", "MEMORY_LIMIT"),
    ):  # fmt: skip
        said = f"The environment variable MLXKV_{name} is no setting and is ignored; did you mean MLXKV_{nearest}?"
        assert unknown_variable(known | {f"MLXKV_{name}": "1"}) == said
    assert unknown_variable({"MLXKV_XYZZY": "1"}).endswith("; `/set` in the chat lists the settings.")


def test_every_variable_that_the_program_names_is_known() -> None:
    """Also those that one of its processes sets for another."""
    root = Path(__file__).parents[1]
    sources = [path.read_text() for top in ("mlxkv", "tui", "models") for path in (root / top).rglob("*.py")]
    names = {name for text in sources for name in re.findall(r'"(MLXKV_[A-Z_]*[A-Z])"', text)}
    assert {"MLXKV_HOME", "MLXKV_TERMINAL_MODE"} <= names
    assert [name for name in sorted(names) if unknown_variable({name: "1"})] == []


def test_every_setting_can_come_from_every_source(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "adapter": "org/poems", "model_dirs": "~/models:/Volumes/a b", "unload_after": 30.0,
        "model": "org/name", "system": "Be terse.", "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05,
        "max_tokens": 7, "thinking_budget": 900, "seed": 3, "window": 512, "sinks": 8, "kv_bits": 8,
        "checkpoint_limit": 0.5, "disk_limit": 1.5, "theme": "nord", "draft": False, "draft_model": "org/small",
        "wired": False,
        "keep_awake": False, "notify": False,
        "prefill_chunk": 64,
        "plain": True, "mouse": False, "think": True, "joined_emoji": True, "auto_title": False,
        "repetition_penalty": 1.1, "repetition_context_size": 9, "presence_penalty": 0.5,
        "presence_context_size": 8, "frequency_penalty": -0.5,
        "frequency_context_size": 7, "xtc_probability": 0.5, "xtc_threshold": 0.2, "logit_bias": "1234=-5,42=2.5",
    }  # fmt: skip
    assert {*values, "keys"} == {f.name for f in fields(Settings)}
    wanted = Settings(**values)
    toml = "".join(f"{k} = {str(v).lower() if isinstance(v, bool) else repr(v)}\n" for k, v in values.items())
    assert load_settings(folders(tmp_path, toml), {}) == wanted
    env = {f"MLXKV_{key.upper()}": str(value) for key, value in values.items()}
    assert load_settings(folders(tmp_path / "empty"), env) == wanted
    assert load_settings(folders(tmp_path / "empty"), {}, values) == wanted


def test_an_adapter_belongs_to_the_model_it_is_set_with(tmp_path: Path) -> None:
    assert [Settings(adapter=text).adapter_name for text in ("auto", "none", "org/poems")] == [None, None, "org/poems"]
    here, env = folders(tmp_path, 'adapter = "org/poems"'), {"MLXKV_ADAPTER": "org/songs"}
    found = [
        load_sources(here, env, {"model": model, "adapter": adapter})
        for model, adapter in ((None, None), ("a/b", None), (None, "x"), ("a/b", "x"))
    ]
    assert [(sources.settings.adapter, sources.source("adapter")) for sources in found] == [
        ("org/songs", Source.ENVIRONMENT), ("none", Source.IMPLIED), ("x", Source.OPTION), ("x", Source.OPTION)
    ]  # fmt: skip


def test_a_bias_is_ids_and_numbers(tmp_path: Path) -> None:
    settings = load_settings(folders(tmp_path), flags={"logit_bias": "1234=-5, 42=2.5"})
    assert settings.sampling["logit_bias"] == {1234: -5.0, 42: 2.5}
    for wrong in ("1234", "a=1", "1=x", "-1=2", "1=2000", "1=nan"):
        with pytest.raises(ConfigError, match=r"must be ids and numbers, such as 1234=-5,42=2, or .none.\.$"):
            load_settings(folders(tmp_path), flags={"logit_bias": wrong})


def test_drafting_is_what_load_takes() -> None:
    assert Settings().drafting is True
    assert Settings(draft_model="org/small").drafting == "org/small"
    assert Settings(draft=False, draft_model="org/small").drafting is False


def test_none_puts_a_setting_back(tmp_path: Path) -> None:
    toml = 'kv_bits = 8\nmodel = "file"\nseed = 1\n'
    found = load_settings(folders(tmp_path, toml), {"MLXKV_SEED": "none"}, {"kv_bits": "none", "model": "auto"})
    assert (found.kv_bits, found.model, found.seed) == (None, None, None)


def test_bits_of_keys_and_values_come_from_every_source_and_are_kept(tmp_path: Path) -> None:
    assert load_settings(folders(tmp_path, 'kv_bits = "8/4"'), {}).kv_bits == "8/4"
    assert load_settings(folders(tmp_path / "a"), {"MLXKV_KV_BITS": "8/4"}).kv_bits == "8/4"
    assert load_settings(folders(tmp_path / "b"), {}, {"kv_bits": "8/4"}).kv_bits == "8/4"
    save_setting(folders(tmp_path / "c"), "kv_bits", "8/4")
    assert load_settings(folders(tmp_path / "c"), {}).kv_bits == "8/4"
    assert "must be 8, 8/4, 4" in refusal(tmp_path, 'kv_bits = "4/8"')  # worse than 8/4 in as much memory


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    """`MLXKV_MAX_TOKENS= mlxkv` must not be an error, nor wipe the model of the file."""
    env = {"MLXKV_MAX_TOKENS": "", "MLXKV_MODEL": ""}
    found = load_settings(folders(tmp_path, 'model = "file"'), env)
    assert (found.model, found.max_tokens) == ("file", Settings().max_tokens)


@pytest.mark.parametrize("seed", [2**53 + 1, 2**64 - 1])
def test_a_large_seed_is_not_rounded(tmp_path: Path, seed: int) -> None:
    """A float in between turned 2**53 + 1 into 2**53: another seed than the one asked for."""
    assert load_settings(folders(tmp_path), {"MLXKV_SEED": str(seed)}).seed == seed
    assert load_settings(folders(tmp_path), {}, {"seed": seed}).seed == seed


def test_sinks_are_a_number_or_the_word(tmp_path: Path) -> None:
    assert load_settings(folders(tmp_path, 'sinks = "system"'), {}).sinks == "system"
    assert load_settings(folders(tmp_path), {"MLXKV_SINKS": "4"}).sinks == 4
    assert load_settings(folders(tmp_path), {}, {"sinks": "0"}).sinks == 0


@pytest.mark.parametrize(("text", "value"), [("1", True), ("yes", True), ("TRUE", True), ("0", False), ("No", False)])
def test_yes_and_no(tmp_path: Path, text: str, value: bool) -> None:
    assert load_settings(folders(tmp_path), {"MLXKV_PLAIN": text}).plain is value


@pytest.mark.parametrize(
    ("toml", "key", "value", "rule"),
    [
        ('temperature = "hot"', "temperature", "'hot'", "a number"),
        ("top_k = 1.5", "top_k", "1.5", "a whole number"),
        ("top_k = true", "top_k", "True", "a whole number"),
        ("max_tokens = inf", "max_tokens", "inf", "a whole number"),
        ("max_tokens = nan", "max_tokens", "nan", "a whole number"),
        ('sinks = "all"', "sinks", "'all'", '"system"'),
        ("model = 3", "model", "3", "text"),
        ("model = ['a']", "model", "['a']", "text"),
        ('plain = "perhaps"', "plain", "'perhaps'", "true or false"),
        ("seed = 1979-05-27", "seed", "1979", "a whole number"),
    ],
)
def test_a_bad_value_in_the_file_names_file_key_value_and_rule(
    tmp_path: Path, toml: str, key: str, value: str, rule: str
) -> None:
    text = refusal(tmp_path, toml)
    assert str(tmp_path / "config" / "config.toml") in text
    assert f"`{key}`" in text
    assert value in text
    assert rule in text


def test_a_bad_variable_is_named_as_it_is_set(tmp_path: Path) -> None:
    text = refusal(tmp_path, env={"MLXKV_TOP_K": "many"})
    assert "MLXKV_TOP_K is 'many'; it must be a whole number" in text


def test_a_bad_flag_is_named_as_it_is_typed(tmp_path: Path) -> None:
    assert "--kv-bits is 'seven'; it must be 8, 8/4, 4, or \"none\"" in refusal(tmp_path, kv_bits="seven")


def test_an_unknown_key_names_those_there_are(tmp_path: Path) -> None:
    text = refusal(tmp_path, "temprature = 0.5")
    assert "`temprature` in" in text
    assert "temperature" in text


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    assert "is not valid TOML" in refusal(tmp_path, "temperature: 0.5")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (folders(tmp_path, "").config / "config.toml").write_bytes(b"model = '\xff'")
    assert "is not valid TOML" in refusal(tmp_path)


def test_a_folder_with_braces_in_its_name(tmp_path: Path) -> None:
    """The path once was a format string: `{x}` in it hid the real error behind a KeyError."""
    assert "{x}" in refusal(tmp_path / "{x}", "top_k = 'many'")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [("temperature", -1, "a number from 0 to 100"), ("kv_bits", 5, "8, 8/4, 4"), ("window", 0, "from 1 to 16,777,216"),
     ("disk_limit", float("inf"), "of GB from 0"), ("seed", 2**64, "to 18,446,744,073,709,551,615")],
)  # fmt: skip
def test_a_value_out_of_range_is_told_the_range(tmp_path: Path, name: str, value: float, rule: str) -> None:
    assert rule in refusal(tmp_path, f"{name} = {value!r}")


def test_keys_are_a_table(tmp_path: Path) -> None:
    found = load_settings(folders(tmp_path, 'top_k = 3\n[keys]\n"app.help" = "f2"\n'), {})
    assert (found.top_k, found.keys) == (3, (("app.help", "f2"),))
    assert "must be a table" in refusal(tmp_path, "keys = 3")
    assert "must be a table" in refusal(tmp_path, "[keys]\nx = 3")


# -- one schema ------------------------------------------------------------------------------------------------------


def test_every_default_is_a_value_the_schema_takes() -> None:
    for setting in schema():
        assert setting.convert(setting.shown(setting.default)) == setting.default
        assert setting.default is None or setting.convert(setting.default) == setting.default
        assert setting.help.endswith(".")


def test_settings_are_found_by_all_their_names() -> None:
    for name in ("temp", "temperature", "--temp", "TEMP"):
        assert (found := find(name)) is not None
        assert found.name == "temperature"
    assert find("nonsense") is None


# -- writing config.toml ---------------------------------------------------------------------------------------------

COMMENTED = """# mine
temperature = 0.5  # as it was # really
system = '''
two # lines
'''
# about k
top_k=3 # three

[keys]
"app.help" = "f1" # help
seed = "no setting: it is in a table"
"""


def test_changing_a_setting_leaves_everything_else(tmp_path: Path) -> None:
    found = folders(tmp_path, COMMENTED)
    save_setting(found, "temperature", 0.7)
    save_setting(found, "seed", 7)
    save_setting(found, "system", 'say "no"\n\x7f')
    save_setting(found, "top_k", None)
    text = (found.config / "config.toml").read_text(encoding="utf-8")
    assert text.splitlines() == [
        "# mine", "temperature = 0.7  # as it was # really", 'system = "say \\"no\\"\\n\\u007f"', "# about k",
        'top_k="none" # three', "seed = 7", "", "[keys]", '"app.help" = "f1" # help',
        'seed = "no setting: it is in a table"',
    ]  # fmt: skip
    wanted = {"temperature": 0.7, "system": 'say "no"\n\x7f', "seed": 7, "top_k": "none"}
    assert {k: v for k, v in tomllib.loads(text).items() if k != "keys"} == wanted


def test_the_file_is_made_private_and_whole(tmp_path: Path) -> None:
    found = folders(tmp_path)
    path = save_setting(found, "theme", "nord")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_settings(found, {}).theme == "nord"
    assert [p.name for p in path.parent.iterdir()] == ["config.toml"]


def test_a_broken_file_is_not_written_over(tmp_path: Path) -> None:
    found = folders(tmp_path, "theme = nord")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        save_setting(found, "theme", "nord")
    assert (found.config / "config.toml").read_text() == "theme = nord"


@given(
    st.lists(st.sampled_from(["# c", "", "top_k = 1 # x", 'model = "a#b"  # c', "seed=9", "theme = 'x'"]), unique=True),
    st.sampled_from(["top_k", "seed", "model", "theme", "window"]),
    st.sampled_from([None, 5, "a # b", "é\n"]),
)
def test_any_file_keeps_its_comments_and_other_values(lines: list[str], name: str, value: object) -> None:
    text = "\n".join(lines)
    new = with_setting(text, name, value)
    before, after = tomllib.loads(text), tomllib.loads(new)
    assert after.pop(name) == ("none" if value is None else value)
    before.pop(name, None)
    assert before == after
    for comment in ("# c", "# x"):
        assert sum(comment in line for line in new.splitlines()) >= sum(comment in line for line in lines)


def test_the_page_about_settings_is_made_from_the_schema() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == as_markdown(), "run `python -m mlxkv.settings.schema > docs/settings.md`"


def test_a_disk_limit_beyond_every_disk(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is '1e308'; it must be a number of GB from 0 to 1,000,000,000"):
        load_settings(folders(tmp_path), {"MLXKV_DISK_LIMIT": "1e308"})
