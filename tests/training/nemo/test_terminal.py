"""While NeMo RL trains in a thread of its own, the terminal is ours and its lines go to a file."""

import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent_rft.training.nemo.terminal import other_threads_into


def in_a_thread(work) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_other_threads_write_to_the_file_and_the_main_one_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with other_threads_into(tmp_path / "nemo.log"):
        print("ours")
        in_a_thread(lambda: print("theirs"))
        in_a_thread(lambda: print("their warning", file=sys.stderr))
        print("our warning", file=sys.stderr)
    assert capsys.readouterr() == ("ours\n", "our warning\n")
    assert (tmp_path / "nemo.log").read_text() == "theirs\ntheir warning\n"


def test_afterwards_everything_is_as_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError), other_threads_into(tmp_path / "nemo.log"):
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr) == before
    in_a_thread(lambda: print("theirs"))
    assert capsys.readouterr().out == "theirs\n"


def test_a_run_that_goes_on_adds_to_the_file(tmp_path: Path):
    for words in ("first", "second"):
        with other_threads_into(tmp_path / "nemo.log"):
            in_a_thread(lambda words=words: print(words))
    assert (tmp_path / "nemo.log").read_text() == "first\nsecond\n"


def test_a_line_is_in_the_file_while_training_goes_on(tmp_path: Path):
    with other_threads_into(tmp_path / "nemo.log"):
        in_a_thread(lambda: print("theirs"))
        assert (tmp_path / "nemo.log").read_text() == "theirs\n"


def test_a_library_finds_a_terminal_where_there_is_one(tmp_path: Path):
    """Progress bars and loggers ask for its encoding, its number, and whether it is one."""
    code = (
        "import sys; from pathlib import Path; from agent_rft.training.nemo.terminal import other_threads_into\n"
        "with other_threads_into(Path(sys.argv[1])): print(sys.stdout.fileno(), sys.stderr.isatty(), sys.stdout.encoding)"
    )
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", code, tmp_path / "nemo.log"], capture_output=True, text=True, check=True)
    assert done.stdout == "1 False utf-8\n"


def test_a_logger_that_was_made_inside_writes_where_its_thread_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with other_threads_into(tmp_path / "nemo.log"):
        handler = logging.StreamHandler()
        record = logging.LogRecord("nemo", logging.WARNING, "", 0, "told", None, None)
        in_a_thread(lambda: handler.emit(record))
        handler.emit(record)
    assert (tmp_path / "nemo.log").read_text() == "told\n"
    assert capsys.readouterr().err == "told\n"


@pytest.mark.parametrize(
    ("inside", "code", "said"),
    [
        ("os._exit(1)", 1, "last words\n"),
        ("os.kill(os.getpid(), 9)", -9, "last words\n"),
        ("pass", 0, ""),
        ("sys.exit('its own')", 1, "its own\n"),
        ("signal.signal(2, signal.default_int_handler); os.kill(0, 2); time.sleep(9)", -2, "Ctrl-C"),
    ],
)
def test_the_last_words_are_said_only_of_an_end_that_says_nothing_itself(inside: str, code: int, said: str):
    """Ctrl-C reaches every process of the terminal's group; who was started in the background is deaf to it."""
    script = (
        f"import os, signal, sys, time\nfrom agent_rft.training.nemo.terminal import last_words\nwith last_words('last words'): {inside}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, start_new_session=True, timeout=30)
    assert done.returncode == code
    assert done.stderr == said or (said == "Ctrl-C" and done.stderr.endswith("KeyboardInterrupt\n") and "last words" not in done.stderr)
