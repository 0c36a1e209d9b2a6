"""The download against a real server on the loopback: verified, never half there, and clear when it fails."""

from __future__ import annotations

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data import rows, sources
from data.__main__ import main
from data.sources import SOURCES, Source, download, find, locate

BODY = bytes(range(256)) * 2000  # 512,000 bytes: several chunks
SOURCE = Source("toy", "train", 1, "data/toy.parquet", len(BODY), hashlib.sha256(BODY).hexdigest(), "")


class Server(ThreadingHTTPServer):
    """Serves `body`; cuts the connection after `cut_after` bytes of each of the first `cuts` answers."""

    daemon_threads = True
    body, cuts, cut_after, status = BODY, 0, 0, 200


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked += 1
        if server.status >= 400:
            self.send_error(server.status)
            return
        body = server.body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cuts:
            server.cuts -= 1
            body = body[: server.cut_after]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    server = Server(("127.0.0.1", 0), Handler)
    server.asked = 0
    server.url = f"http://127.0.0.1:{server.server_port}/{SOURCE.path}"
    monkeypatch.setattr(sources, "RAW", server.url.removesuffix(f"/{SOURCE.path}"))
    monkeypatch.setattr(sources.time, "sleep", lambda seconds: None)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_cut_download_is_asked_for_again(server, tmp_path):
    server.cuts, server.cut_after = 2, 200_000
    path = download(SOURCE, tmp_path / "deep" / "toy.parquet")
    assert path.read_bytes() == BODY
    assert server.asked == 3
    assert [file.name for file in path.parent.iterdir()] == ["toy.parquet"]


def test_another_file_is_not_kept(server, tmp_path):
    server.body = BODY[:-1] + b"!"
    with pytest.raises(ValueError, match=r"toy: .*gave another file"):
        download(SOURCE, tmp_path / "toy.parquet")
    assert list(tmp_path.iterdir()) == []


def test_always_cut_says_where_to_put_the_file(server, tmp_path):
    server.cuts, server.cut_after = 99, 1000
    with pytest.raises(ValueError, match=r"1000 bytes read, 511000 more expected") as error:
        download(SOURCE, tmp_path / "toy.parquet")
    assert server.asked == 3
    assert list(tmp_path.iterdir()) == []
    assert all(word in str(error.value) for word in ("toy", server.url, str(tmp_path / "toy.parquet"), "--data-dir"))


def test_a_place_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="could not download"):
        download(SOURCE, tmp_path / "file" / "toy.parquet")


def test_not_found_is_not_asked_for_again(server, tmp_path):
    server.status = 404
    with pytest.raises(ValueError, match="404"):
        download(SOURCE, tmp_path / "toy.parquet")
    assert server.asked == 1
    server.status = 503
    with pytest.raises(ValueError, match="503"):
        download(SOURCE, tmp_path / "toy.parquet")
    assert server.asked == 1 + 3


def test_no_network(tmp_path, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as closed:  # closed before the request: the connection is refused
        port = closed.getsockname()[1]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GRPO_DATA_DIR", raising=False)
    monkeypatch.setattr(sources, "RAW", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(sources.time, "sleep", lambda seconds: None)
    assert main(["fetch", "aime25"]) == 2
    error = capsys.readouterr().err
    assert "\n" not in error.strip()
    target = tmp_path / "one-shot-grpo" / "eval" / "aime25" / "test.jsonl"
    assert all(word in error for word in ("aime25", "Qwen2.5-Eval/evaluation/data/aime25/test.jsonl", str(target)))


def test_the_folder_may_begin_with_the_home_folder(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(SOURCES, "toy", SOURCE)
    monkeypatch.setenv("GRPO_DATA_DIR", "~/sets")
    assert main(["fetch", "toy"]) == main(["verify", "toy", "--data-dir", "~/sets"]) == 0
    assert find("toy") == tmp_path / "sets" / SOURCE.local


def test_fetch_fills_the_cache_once(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GRPO_DATA_DIR", raising=False)
    monkeypatch.setitem(SOURCES, "toy", SOURCE)
    assert main(["verify", "toy"]) == 2
    assert "python -m data fetch toy" in capsys.readouterr().err
    assert main(["fetch", "toy"]) == main(["fetch", "toy"]) == 0
    path = find("toy")
    assert path.read_bytes() == BODY
    assert server.asked == 1
    capsys.readouterr()
    assert main(["verify", "aime25", "toy"]) == 2
    assert "ok    toy" in capsys.readouterr().out  # although the one before is not here
    path.write_bytes(BODY[:-1])
    with pytest.raises(ValueError, match="damaged or another version; delete it"):
        find("toy")


def test_a_folder_of_ones_own_is_checked_too(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "toy", SOURCE)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toy.parquet").write_bytes(BODY)  # as a clone of the repository has it
    assert find("toy.parquet", tmp_path) == tmp_path / "data" / "toy.parquet"
    (tmp_path / "toy.parquet").write_bytes(BODY[1:])
    with pytest.raises(ValueError, match="damaged or another version"):
        find("toy", tmp_path)


def test_unknown_name(capsys):
    with pytest.raises(ValueError, match=r"no data file at math501, nor a published set .*math500"):
        find("math501")
    assert main(["fetch", "math501"]) == 2
    assert "'math501'; known: " in capsys.readouterr().err


def test_the_table_matches_the_real_files(data_dir, capsys):
    assert main(["verify", "--data-dir", str(data_dir)]) == 0
    for source in SOURCES.values():
        path = locate(source, data_dir)
        assert path.stat().st_size == source.size
        if source.use == "eval":
            assert len(path.read_text().splitlines()) == source.rows
    assert main(["list", "--data-dir", str(data_dir)]) == 0
    assert capsys.readouterr().out.count(str(data_dir)) == 2 * len(SOURCES)  # verify and list name each place


def test_a_folder_with_the_name_of_a_published_set_is_not_that_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("math500", "mine"):
        (tmp_path / name).mkdir()
    assert [rows.is_dataset(name) for name in ("math500", "./math500", "mine")] == [False, True, True]
