"""What Ray raises when something of ours fails in another process, as the one error that the user can act on."""

from __future__ import annotations

import re
import traceback
from collections.abc import Generator
from contextlib import contextmanager

from grpc import RpcError
from ray.exceptions import ActorDiedError, RayError

from agent_rft.contracts.errors import InfraError, UserError

RAYS_LOGS = "/tmp/ray/session_latest/logs"
OUT_OF_MEMORY = ("CUDA out of memory", "torch.OutOfMemoryError", "No available memory for the cache blocks")
"""In torch's words, and in vLLM's."""
SMALLER = "take a smaller backend.nemo.micro_batch or backend.nemo.generation.memory_utilization; `rft plan` says what fits"


@contextmanager
def one_error(log: str = "", goes_on: str = "") -> Generator[None]:
    """`log`: where the whole trace goes, if stderr goes there now. `goes_on`: how to go on once it is mended."""
    try:
        yield
    except (RayError, RpcError, UserError, InfraError) as error:
        if log:
            traceback.print_exception(error)
        plain = plainly(error, log, goes_on)
        _let_go(error)
        raise plain from None


def plainly(error: Exception, log: str = "", goes_on: str = "") -> UserError | InfraError:
    """What a worker said of the user's mistakes or of infrastructure is told as it is; of anything else, who died of what. What
    went wrong besides is told too, where the error has notes of it."""
    inner = _innermost(error)
    then = f"; then {goes_on}" if goes_on else ""
    if isinstance(inner, UserError | InfraError):
        plain = inner
        if isinstance(plain, InfraError) and goes_on:
            plain.cure = plain.cure or f"mend it; then {goes_on}"
    elif any(sign in str(error) for sign in OUT_OF_MEMORY):
        plain = UserError(f"a GPU's memory was too small: {_told(error)}", SMALLER + then)
    else:
        logs = f"{log} and {RAYS_LOGS}" if log else RAYS_LOGS
        plain = InfraError("Ray", _told(error), f"{logs} say more{then}")
    plain.what = "; also: ".join(dict.fromkeys([plain.what, *getattr(error, "__notes__", ())]))
    return plain


def wordless_end(goes_on: str) -> InfraError:
    """Ray's C++ ends the process that drives it, at the next call that its raylet would have to answer."""
    what = "this run's process was ended from outside: its raylet died, or it was killed itself"
    return InfraError("Ray", what, f"`dmesg` says whether memory ran out, {RAYS_LOGS}/raylet.out what the raylet met; then {goes_on}")


def _innermost(error: BaseException) -> BaseException:
    """What was raised first. Ray wraps it once for each process that it passed, and once more for an actor that it ended
    while it was being made."""
    inside = getattr(error, "cause", None) or next(iter(error.args), None) if isinstance(error, RayError) else None
    return _innermost(inside) if isinstance(inside, BaseException) else error


def _told(error: Exception) -> str:
    inner, said = _innermost(error), str(error)
    if isinstance(error, RpcError):
        details = re.search(r'details = "(.*)"', said)
        return f"it does not answer: {details[1] if details else said}"
    if isinstance(inner, ActorDiedError) and (died := re.search(r"class_name: (\w+).*\bpid: (\d+)", said, re.DOTALL)):
        why = re.split(r"\. |exit detail: ", said.splitlines()[-1].removeprefix("The actor is dead because "))
        return f"{died[1]} (process {died[2]}) died: {why[0]}" + (f" ({why[2]})" if len(why) > 2 else "")
    if isinstance(inner, RayError):
        return f"{type(inner).__name__}: {_last_line(said)}"
    where = re.search(r"ray::[\w:.-]+", said)
    return f"{where[0].rpartition(':')[2] if where else 'a worker'} failed: {type(inner).__name__}: {_last_line(str(inner))}"


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2].strip()


def _let_go(error: BaseException | None) -> None:
    """Frames hold what was being made when it failed. NeMo RL's policy ends its workers as it goes, and that must be while
    there is a Ray to end them in."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
