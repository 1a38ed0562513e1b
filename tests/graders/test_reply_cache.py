"""Judges' replies are kept, as many as allowed, in memory and in a folder."""

import os
import pickle
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from agent_rft.graders.deadline import due_within
from agent_rft.graders.reply_cache import Replies


def test_what_is_put_in_comes_out_and_nothing_else():
    replies = Replies()
    replies.put("a", "1")
    assert (replies.get("a"), replies.get("b")) == ("1", None)


def test_the_least_recently_used_goes_first():
    replies = Replies(max_replies=2)
    replies.put("a", "1")
    replies.put("b", "2")
    replies.get("a")
    replies.put("c", "3")
    assert [replies.get(key) for key in "abc"] == ["1", None, "3"]


def test_a_folder_outlives_the_process_and_serves_others(tmp_path):
    Replies(folder=tmp_path / "new" / "replies").put("a", "ü\n")
    assert Replies(folder=tmp_path / "new" / "replies").get("a") == "ü\n"
    assert pickle.loads(pickle.dumps(Replies(folder=tmp_path / "new" / "replies"))).get("a") == "ü\n"


def test_a_folder_is_held_to_the_number_when_it_is_opened(tmp_path):
    replies = Replies(folder=tmp_path)
    for number in range(5):
        replies.put(f"k{number}", "x")
        os.utime(tmp_path / f"k{number}", (number, number))
    again = Replies(max_replies=2, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k3", "k4"]
    assert again.get("k0") is None


def test_a_folder_that_cannot_be_used_is_a_question_asked_again(tmp_path):
    folder = tmp_path / "replies"
    replies = Replies(folder=folder)
    (folder / "broken").write_bytes(b"\xff\xfe")
    assert replies.get("broken") is None
    shutil.rmtree(folder)
    replies.put("a", "1")
    assert replies.get("a") == "1"


def test_many_threads_may_use_it():
    replies = Replies(max_replies=50)

    def use(number):
        for step in range(200):
            replies.put(f"{(number + step) % 80}", "x")
            replies.get(f"{step % 80}")

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(replies._kept) == 50


def test_who_has_the_same_question_waits_only_as_long_as_its_own_grade_may_take():
    replies = Replies()
    with replies.asking("a"):
        began = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_ask_in_time, replies).result(10)
        assert 0.1 <= time.monotonic() - began < 5
    assert not replies._asked, "nothing is left of a question that was answered"


def _ask_in_time(replies):
    with due_within(0.1), replies.asking("a"):
        assert replies.get("a") is None
