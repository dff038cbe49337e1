"""`mlxkv models check`: the catalogue against a hub that agrees, differs, refuses, limits or does not answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from huggingface_hub import constants

import mlxkv.models
from mlxkv.cli.app import main
from mlxkv.models import CatalogueEntry, Hub, catalogue
from mlxkv.models.check import Checked, Verdict, check_entries, same_licence
from tests.fakes_hub import FakeHub, Handler

AWAY = "no usable answer (ConnectError); check the network and HF_ENDPOINT, or try later"
CONFIG = {"model_type": "llama", "max_position_embeddings": 4096}
NOT_DOWNLOADED = ("README.md", "modeling_evil.py", "tokenizer_evil.py", "pytorch_model.bin", "model.gguf")


@pytest.fixture
def entry(fake: FakeHub) -> CatalogueEntry:
    """What the fake hub has."""
    fake.files = {**fake.files, "config.json": json.dumps(CONFIG).encode()}
    fake.info = {"cardData": {"license": "apache-2.0"}}
    names = [name for name in fake.files if name not in NOT_DOWNLOADED and "/" not in name and "consol" not in name]
    size = sum(len(fake.files[name]) for name in names)
    return replace(catalogue()[0], id=fake.repo, size_bytes=size, licence="Apache-2.0", context=4096)


def check(hub: Hub, *entries: CatalogueEntry) -> list[Checked]:
    return list(check_entries(entries, hub))


def test_what_is_as_in_the_catalogue_is_ok(fake: FakeHub, hub: Hub, entry: CatalogueEntry) -> None:
    (found,) = check(hub, entry)
    expected = Checked(entry.id, Verdict.OK, (), entry.id, entry.size_bytes, "apache-2.0", 4096, "llama")
    assert found == expected
    assert len(fake.requests) == 3
    assert [*fake.sent] == ["config.json"]


Change = Callable[[FakeHub], object]


def configured(**changes: object) -> Change:
    return lambda fake: fake.files.update({"config.json": json.dumps(CONFIG | changes).encode()})


def described(**info: object) -> Change:
    return lambda fake: fake.info.update(info)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda fake: fake.files.update({"more.safetensors": bytes(200_000)}), "bytes to download, not 3,07"),
        (lambda fake: fake.files.pop("model.safetensors"), "63 bytes to download, not 3,07"),
        (described(cardData={"license": "mit"}), "licence 'mit', not Apache-2.0"),
        (described(cardData={}, tags=["mlx", "license:gemma"]), "licence 'gemma', not Apache-2.0"),
        (described(cardData={"license": "other", "license_name": "x\x1b[2J"}), "licence 'x\\x1b[2J', not Apache-2.0"),
        (configured(max_position_embeddings=8192), "a context of 8,192 tokens, not 4,096"),
        (configured(model_type="qwen4_exp"), "mlx-lm has no module for the model_type 'qwen4_exp'"),
        (configured(model_type="../utils"), "no config.json with a model_type"),
        (configured(model_type=None), "no config.json with a model_type"),
        (lambda fake: fake.files.pop("config.json"), "no config.json with a model_type"),
        (lambda fake: fake.files.update({"config.json": b"[]"}), "no config.json with a model_type"),
    ],
)
def test_what_differs_is_said(fake: FakeHub, hub: Hub, entry: CatalogueEntry, change: Change, says: str) -> None:
    change(fake)
    (found,) = check(hub, entry)
    assert found.verdict is Verdict.CHANGED
    assert any(says in detail for detail in found.details), found.details
    assert all(detail.isprintable() for detail in found.details)


@pytest.mark.parametrize("info", [{}, {"cardData": None}, {"cardData": {"license": "other"}}, {"tags": "license:mit"}])
def test_a_licence_that_is_not_stated_differs_from_none(
    fake: FakeHub, hub: Hub, entry: CatalogueEntry, info: dict[str, Any]
) -> None:
    fake.info = info
    (found,) = check(hub, entry)
    assert (found.verdict, found.licence) == (Verdict.OK, None)


def test_a_difference_of_less_than_5_percent_is_none(fake: FakeHub, hub: Hub, entry: CatalogueEntry) -> None:
    near, far = (replace(entry, size_bytes=round(entry.size_bytes * part)) for part in (1.05, 1.06))
    assert [found.verdict for found in check(hub, near, far)] == [Verdict.OK, Verdict.CHANGED]


def test_a_renamed_repository_is_followed_and_named(fake: FakeHub, hub: Hub, entry: CatalogueEntry) -> None:
    def redirect(handler: Handler, path: str) -> bool:
        if path != "/api/models/org/old":
            return False
        handler.send_response(307)
        handler.send_header("Location", "/api/models/org/model")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    fake.rules = [redirect]
    (found,) = check(hub, replace(entry, id="org/old"))
    assert (found.verdict, found.details, found.hub_id) == (Verdict.CHANGED, ("renamed to org/model",), "org/model")
    assert found.size_bytes == entry.size_bytes


@pytest.mark.parametrize(
    ("status", "code", "message", "verdict", "says"),
    [
        (404, "RepoNotFound", "", Verdict.MISSING, "deleted, renamed or private (HTTP 404)"),
        (401, "RepoNotFound", "", Verdict.MISSING, "deleted, renamed or private (HTTP 401)"),
        (403, "GatedRepo", "", Verdict.CHANGED, "gated (HTTP 403): its terms must be accepted"),
        (401, "GatedRepo", "", Verdict.CHANGED, "gated (HTTP 401): its terms must be accepted"),
        (503, "", "", Verdict.NOT_REACHABLE, "the hub answered HTTP 503"),
    ],
)
def test_a_refusal(
    fake: FakeHub, hub: Hub, entry: CatalogueEntry, status: int, code: str, message: str, verdict: Verdict, says: str
) -> None:
    fake.status, fake.error_code, fake.error_message = status, code, message
    assert check(hub, entry) == [Checked(entry.id, verdict, (says,))]


@pytest.mark.parametrize(
    ("status", "message", "says"),
    [
        (429, "", "the hub limits requests (HTTP 429); set HF_TOKEN or try later"),
        (401, "Invalid credentials in Authorization header", "the hub refuses the token; check HF_TOKEN"),
    ],
)
def test_a_limit_or_a_wrong_token_ends_the_asking(
    fake: FakeHub, hub: Hub, entry: CatalogueEntry, status: int, message: str, says: str
) -> None:
    fake.status, fake.error_message = status, message
    found = check(hub, entry, entry, entry)
    assert [checked.verdict for checked in found] == [Verdict.NOT_REACHABLE] * 3
    assert [checked.details for checked in found] == [(says,), (f"not asked: {says}",), (f"not asked: {says}",)]
    assert len(fake.requests) == 1


def test_a_hub_that_does_not_answer_is_asked_twice(fake: FakeHub, hub: Hub, entry: CatalogueEntry) -> None:
    away = replace(hub, endpoint="http://127.0.0.1:9")
    found = check(away, entry, entry, entry)
    no_answer = "no usable answer (ConnectError)"
    assert [checked.details[0] for checked in found] == [no_answer, no_answer, "not asked: " + AWAY]
    assert [checked.asked for checked in found] == [True, True, False]


def test_one_answer_between_failures_goes_on(fake: FakeHub, hub: Hub, entry: CatalogueEntry) -> None:
    bad = replace(entry, id="org/bad")

    def refuse(handler: Handler, path: str) -> bool:
        if not path.startswith("/api/models/org/bad"):
            return False
        handler.refuse(502, "")
        return True

    fake.rules = [refuse]
    verdicts = [checked.verdict for checked in check(hub, bad, entry, bad, entry)]
    assert verdicts == [Verdict.NOT_REACHABLE, Verdict.OK] * 2


def test_an_answer_that_is_no_json_is_none(fake: FakeHub, hub: Hub, entry: CatalogueEntry) -> None:
    fake.files["config.json"] = b"<html>"
    (found,) = check(hub, entry)
    assert (found.verdict, found.details) == (Verdict.NOT_REACHABLE, ("no usable answer (ModelDownloadError)",))


def test_offline_nobody_is_asked(
    fake: FakeHub, hub: Hub, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = check(hub, entry, entry)
    assert [checked.verdict for checked in found] == [Verdict.NOT_REACHABLE] * 2
    assert "HF_HUB_OFFLINE" in found[0].details[0]
    assert fake.requests == []


@pytest.mark.parametrize(
    ("ours", "hubs", "same"),
    [
        ("Apache-2.0", "apache-2.0", True),
        ("MIT", "mit", True),
        ("Llama 3.1", "llama3.1", True),
        ("Llama 3.1", "llama3.3", False),
        ("LFM Open 1.0", "lfm1.0", True),
        ("NVIDIA Nemotron Open", "nvidia-nemotron-open-model-license", True),
        ("NVIDIA Nemotron Open", "apache-2.0", False),
        ("Apache-2.0", "apache-1.1", False),
        ("Apache-2.0", "cc-by-nc-4.0", False),
    ],
)
def test_licences_are_compared_by_their_words(ours: str, hubs: str, same: bool) -> None:
    assert same_licence(ours, hubs) is same


class TestCommand:
    @pytest.fixture
    def run(
        self, fake: FakeHub, hub: Hub, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> Callable[..., tuple[Any, str]]:
        """Run `mlxkv models check` with a catalogue of the fake hub's model and one that it lacks."""
        monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
        both = (entry, replace(entry, id="org/gone"))
        monkeypatch.setattr(mlxkv.models, "catalogue", lambda: both)

        def call(*args: str) -> tuple[Any, str]:
            with pytest.raises(SystemExit) as ended:
                main(["models", "check", *args])
            out = capsys.readouterr()
            return ended.value.code, out.out + out.err

        return call

    def test_a_line_each_and_a_summary(self, run: Callable[..., tuple[Any, str]]) -> None:
        code, out = run()
        assert out.splitlines() == [
            "ok             org/model  3.1 MB, apache-2.0, 4,096 tokens, llama",
            "missing        org/gone  deleted, renamed or private (HTTP 404)",
            "1 ok, 0 changed, 1 missing, 0 not reachable",
        ]
        assert code == 1

    def test_one_by_its_name_in_any_case(self, run: Callable[..., tuple[Any, str]]) -> None:
        code, out = run("org/MODEL")
        assert (code, out.splitlines()[-1]) == (0, "1 ok, 0 changed, 0 missing, 0 not reachable")

    def test_the_hub_alone_being_away_is_code_3(self, run: Callable[..., tuple[Any, str]], fake: FakeHub) -> None:
        fake.status = 429
        code, out = run()
        assert (code, out.splitlines()[-1]) == (3, "0 ok, 0 changed, 0 missing, 2 not reachable")

    def test_one_sentence_stands_for_all_that_were_not_asked(
        self, run: Callable[..., tuple[Any, str]], entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr(mlxkv.models, "catalogue", lambda: [replace(entry, id=f"org/{i}") for i in range(30)])
        code, out = run()
        assert code == 3
        assert out.splitlines() == [
            "not reachable  org/0  no usable answer (ConnectError)",
            "not reachable  org/1  no usable answer (ConnectError)",
            f"28 models were not asked: {AWAY}.",
            "0 ok, 0 changed, 0 missing, 30 not reachable",
        ]
        code, out = run("--json")
        assert (code, len(json.loads(out))) == (3, 30)

    @pytest.mark.parametrize("option", [["--json"], ["--output-format", "json"]])
    def test_json(self, run: Callable[..., tuple[Any, str]], option: list[str]) -> None:
        code, out = run(*option)
        first, second = json.loads(out)
        assert (code, first["verdict"], second["verdict"]) == (1, "ok", "missing")
        assert (first["id"], first["context"], second["size_bytes"]) == ("org/model", 4096, None)

    def test_a_name_that_is_not_suggested(self, run: Callable[..., tuple[Any, str]], fake: FakeHub) -> None:
        code, out = run("org/other")
        assert code == 2
        assert "'org/other' is not a suggested model; `mlxkv models ls` lists their ids." in out
        assert fake.requests == []

    def test_an_address_that_is_none(
        self, run: Callable[..., tuple[Any, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "file:///etc")
        code, out = run()
        assert code == 2
        assert "HF_ENDPOINT" in out
