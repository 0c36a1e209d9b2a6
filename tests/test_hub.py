"""Without a network the line about what to fetch comes at once; with one, or a folder, there is none."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import huggingface_hub.constants
import pytest

from data.__main__ import main as data_command
from grpo import hub
from grpo.errors import UserError

MODEL = "nobody/no-such-model"


@pytest.fixture
def endpoint(monkeypatch):
    """A hub on this machine. (Closed, it is one that cannot be reached.)"""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # answers 501: that is an answer
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield SimpleNamespace(close=lambda: (server.shutdown(), server.server_close()))
        server.shutdown()


def test_with_a_network_nothing_is_missing(endpoint):
    assert hub.missing([MODEL], ["math500"]) == ""
    assert not huggingface_hub.is_offline_mode()


def test_without_one_the_line_names_all_that_is_missing_and_the_commands(endpoint, tmp_path):
    endpoint.close()
    with pytest.raises(UserError) as raised:
        hub.require([MODEL, str(tmp_path)], ["math500", "pi1_r128.parquet", "own.jsonl"], data_dir=str(tmp_path))
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith(f"not on this machine: {MODEL}, math500, pi1_r128, and http://127.0.0.1:")
    names = line.partition(f"hf download {MODEL} && python -m data fetch ")[2].partition(";")[0].split()
    assert names == ["math500", "pi1_r128"]
    assert data_command(["list", *names]) == 0  # the command knows the names as they are printed
    assert huggingface_hub.is_offline_mode()  # what loads a cached model from here on does not wait for retries


def test_a_folder_with_the_name_of_a_set_does_not_stand_for_it(endpoint, tmp_path, monkeypatch):
    endpoint.close()
    (tmp_path / "math500").mkdir()
    monkeypatch.chdir(tmp_path)
    assert f"not on this machine: {MODEL}, math500, " in hub.missing([MODEL], ["math500"], data_dir=str(tmp_path))


def test_a_run_named_without_its_folder_is_asked_for(endpoint, tmp_path, monkeypatch):
    (tmp_path / "runs" / "w80").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.missing(["w80"]) == "there is no folder w80; did you mean runs/w80?"


def test_folders_ask_no_network(endpoint, tmp_path):
    endpoint.close()
    assert hub.missing([str(tmp_path)]) == ""
    for folder in ("./nowhere", "/nowhere", "no/such/folder"):
        assert f"there is no folder {folder}" in hub.missing([str(tmp_path), folder])
    assert not huggingface_hub.is_offline_mode()


def test_told_to_be_offline_it_says_so(monkeypatch, endpoint):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set." in hub.missing([MODEL])


def test_a_name_server_that_does_not_answer_is_not_waited_for(endpoint, monkeypatch):
    """The hub would answer once its name is known, which takes longer than the patience."""
    known, lookup = threading.Event(), socket.getaddrinfo

    def slow(*args, **kwargs):
        known.wait(5)
        return lookup(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr(hub, "PATIENCE_S", 0.05)
    assert hub.missing([MODEL]).startswith("not on this machine")
    known.set()
