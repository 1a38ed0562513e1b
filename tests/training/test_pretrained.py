"""What is said of a model before its weights are loaded: its name, how its turns end, and what is wrong with it."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import GenerationConfig, PreTrainedTokenizerBase

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.messages import Message
from agent_rft.training.pretrained import (
    check_folder,
    config_of,
    first_line,
    generation_config_of,
    is_whole,
    load_tokenizer,
    looks_local,
    template_of,
    weights_name,
)

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "models/research-tiny"


@pytest.fixture
def copy_of(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BASE, tmp_path / "model"))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(str(BASE))


# --- names ------------------------------------------------------------------------------------------------------------


def test_the_same_name_never_means_other_weights(copy_of: Path):
    name = weights_name(str(copy_of))
    path, _, digest = name.rpartition("@")
    assert path == str(copy_of)
    assert len(digest) == 12
    weights = copy_of / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    weights_name.cache_clear()
    assert weights_name(str(copy_of)).rpartition("@")[2] != digest


def test_every_file_of_the_weights_is_in_the_name(copy_of: Path):
    name = weights_name(str(copy_of))
    shutil.copy(copy_of / "model.safetensors", copy_of / "more.safetensors")
    weights_name.cache_clear()
    assert weights_name(str(copy_of)) != name


@pytest.mark.parametrize("path", [".", "./m", "/m", "~/m", "model", "a/b/c", "a\\b", str(BASE)])
def test_folders(path: str):
    assert looks_local(path)


def test_one_slash_is_an_id_where_nothing_of_that_name_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert not looks_local("maker/model")
    (tmp_path / "maker" / "model").mkdir(parents=True)
    assert looks_local("maker/model")


# --- how turns end ----------------------------------------------------------------------------------------------------


def test_turns_end_with_the_tokens_of_tokenizer_and_generation_config_each_once(tokenizer: PreTrainedTokenizerBase):
    [end] = template_of(tokenizer, None)[1]
    assert end == tokenizer.eos_token_id
    first = tokenizer.convert_tokens_to_ids("a")
    assert template_of(tokenizer, GenerationConfig(eos_token_id=[end, first]))[1] == (end, first)
    assert template_of(tokenizer, GenerationConfig(eos_token_id=first))[1] == (end, first)


def test_the_makers_own_word_on_ends_counts_where_the_tokenizer_names_none(tokenizer: PreTrainedTokenizerBase):
    end = tokenizer.eos_token_id
    tokenizer.eos_token = None
    assert template_of(tokenizer, GenerationConfig(eos_token_id=[end]))[1] == (end,)
    with pytest.raises(UserError, match="names an end-of-turn token") as caught:
        template_of(tokenizer, GenerationConfig())
    assert caught.value.cure == "set eos_token"


def test_the_template_says_what_transformers_would(tokenizer: PreTrainedTokenizerBase):
    template, _ = template_of(tokenizer, None)
    said = tokenizer.apply_chat_template([{"role": "user", "content": "Q?"}], add_generation_prompt=True, tokenize=True)["input_ids"]
    assert template.opening_ids([Message("user", "Q?")], ()) == said


def test_not_every_model_has_a_generation_config(copy_of: Path):
    assert generation_config_of(str(copy_of)) is not None
    (copy_of / "generation_config.json").unlink()
    assert generation_config_of(str(copy_of)) is None


# --- faults in what the user named ------------------------------------------------------------------------------------


def test_no_such_folder(tmp_path: Path):
    with pytest.raises(UserError, match="there is no model folder") as caught:
        weights_name(str(tmp_path / "nowhere"))
    assert "model.path" in caught.value.cure


def test_a_folder_without_config(copy_of: Path):
    (copy_of / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        check_folder(copy_of)


def test_a_broken_config(copy_of: Path):
    (copy_of / "config.json").write_text(json.dumps({"model_type": "no_such_architecture"}))
    with pytest.raises(UserError, match="could not be loaded") as caught:
        config_of(str(copy_of))
    assert "\n" not in caught.value.what


def test_no_chat_template(copy_of: Path):
    (copy_of / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=f"the tokenizer of {copy_of} has no chat template"):
        template_of(load_tokenizer(str(copy_of)), None)


def test_no_tokenizer(copy_of: Path):
    for file in copy_of.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=f"model folder {copy_of} has no tokenizer"):
        load_tokenizer(str(copy_of))


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-1],
        lambda whole: whole + b"x",
        lambda whole: b"",
        lambda whole: b"<!DOCTYPE html>" * 99,
        lambda whole: (5).to_bytes(8, "little") + b"[1,2]",
        lambda whole: (12).to_bytes(8, "little") + b'{"a": "b"}  ',
    ],
    ids=["cut short", "too long", "empty", "a web page", "json of another shape", "no offsets"],
)
def test_weights_that_are_not_whole(copy_of: Path, damage):
    weights = copy_of / "model.safetensors"
    assert is_whole(weights)
    weights.write_bytes(damage(weights.read_bytes()))
    assert not is_whole(weights)
    with pytest.raises(UserError, match=r"model\.safetensors is cut short or is no safetensors file"):
        check_folder(copy_of)


def test_an_errors_first_line():
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[http.server.ThreadingHTTPServer]:
    """One that has no model for anybody and says so with `status`; `asked` holds what it was asked."""

    class Says(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            server.asked.append(self.path)
            self.send_response(server.status)
            self.send_header("Content-Length", "0")
            if server.status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Says)
    server.status, server.asked = 503, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def refused(address: str, home: Path, **variables: str) -> str:
    """What is said of an id that is not cached; the libraries read where the hub is when they are imported."""
    code = (
        "from agent_rft.training.pretrained import weights_name\nfrom agent_rft.contracts.errors import UserError\n"
        "try: weights_name('nobody/nothing')\nexcept UserError as error: print(error)"
    )
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **variables}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_a_hub_that_does_not_work_is_asked_once(hub, tmp_path: Path):
    """Its own client would ask six times, over half a minute."""
    said = refused(f"http://127.0.0.1:{hub.server_port}", tmp_path)
    assert said.startswith("model nobody/nothing is not on this machine, and the hub cannot be asked: ")
    assert "model.path=" in said
    assert [path for path in hub.asked if "nobody" in path] == ["/nobody/nothing/resolve/main/config.json"]


def test_a_hub_that_knows_no_such_model_says_so(hub, tmp_path: Path):
    hub.status = 404
    said = refused(f"http://127.0.0.1:{hub.server_port}", tmp_path)
    assert said.startswith("model nobody/nothing could not be loaded: nobody/nothing is not a local folder and is not a valid model id")


def test_offline_the_hub_is_not_asked(hub, tmp_path: Path):
    said = refused(f"http://127.0.0.1:{hub.server_port}", tmp_path, HF_HUB_OFFLINE="1")
    assert "offline mode is enabled" in said
    assert not any("nobody" in path for path in hub.asked)
