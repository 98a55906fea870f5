"""What an unexpected error comes down to: one line, and the exit code that says whether a retry may help.

Errors of Spark arrive as a Java exception's text around another's around a Python worker's traceback; the innermost
message is what a person needs. Works on their text, so that whoever has no Spark can use it.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator

from schemas.errors import EXIT_FAILED, EXIT_SETTINGS
from schemas.plain_text import shown

MAX_CAUSE = 1_000
"""Characters of a cause; Spark's messages hold whole plans."""

_MAX_CONTEXT = 300
_NAMED = re.compile(r"(?:Caused by: |: |.*Lost task [^:]*: )?((?:[a-zA-Z_][\w$]*\.)*[A-Z_][\w$]*): (.*\S.*)")
_NO_CAUSE = re.compile(
    r"\s+at |\s*\.\.\. \d+ more|\s*Suppressed: |Traceback |  |Driver stacktrace|JVM stacktrace|py4j\.|Py4JJavaError|"
    r"An error occurred while calling |During handling of |The above exception was "
)
_WRAPPER = re.compile(
    r"Job aborted|Exception thrown in|Task failed|Job \d+ cancelled|\[TASK_WRITE_FAILED\]|Traceback \(most recent call|"
    r"\[FAILED_EXECUTE_UDF\]|Writing job aborted"
)
_KNOWN: tuple[tuple[str, int, Callable[[re.Match[str]], str]], ...] = (
    (
        r"No module named '([\w.]+)'", EXIT_SETTINGS,
        lambda found: f"the Python module {found[1]} is missing where the code runs. In Spark's workers: ship the "
        "project by --py-files dist/itemsage.zip (`make package`), or install it on every machine; docs/cluster.md",
    ),
    (
        r"No space left on device|ENOSPC|Disk quota exceeded", EXIT_FAILED,
        lambda found: "the disk is full (No space left on device). Make room where the warehouse, /tmp or "
        "spark.local.dir lies, and run again; nothing was published",
    ),
    (
        r"java\.lang\.OutOfMemoryError: ?([^\n]*)", EXIT_FAILED,
        lambda found: f"Java ran out of memory ({found[1].strip() or 'no more said'}): raise spark.driver.memory or "
        "spark.executor.memory, or give Spark smaller partitions (spark.sql.shuffle.partitions)",
    ),
    (
        r"\b_?(?:Arrow|Array)?MemoryError:? ?([^\n]*)", EXIT_FAILED,
        lambda found: f"Python ran out of memory ({found[1].strip() or 'no more said'}): free some, or run fewer tasks "
        "or ranks at once (local[1,4], train.processes); if a file never fits, write its table again",
    ),
    (
        r"Python worker exited unexpectedly|[Ee]xit (?:code|status):? 137|Container killed", EXIT_FAILED,
        lambda found: f"a worker was killed from outside ({found[0]}), most often for want of memory: give it more "
        "(spark.executor.memoryOverhead), or run fewer tasks at once",
    ),
    (
        r"(?:PermissionError: |Access(?:Denied|Control)Exception: |Permission denied)[^\n]*", EXIT_SETTINGS,
        lambda found: f"no permission ({found[0].strip()}): give this user the right, or name another place",
    ),
)  # fmt: skip


def cause_of(error: BaseException) -> tuple[str, int]:
    """The cause of an unexpected error in one line that may be shown, and its exit code."""
    texts = [_text_of(one) for one in _chain(error)]
    for pattern, code, said in _KNOWN:
        for text in texts:
            if found := re.search(pattern, text):
                return shown(said(found))[:MAX_CAUSE], code
    return shown(_innermost(error, texts[0]))[:MAX_CAUSE], EXIT_FAILED


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it was raised from."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def _text_of(error: BaseException) -> str:
    """All that an error says: its type, message, and, of Spark's, the Java stack trace with every `Caused by`."""
    return f"{type(error).__name__}: {error}\n{getattr(error, '_stackTrace', None) or ''}"


def _innermost(error: BaseException, text: str) -> str:
    """The last message of a text that names an exception and is no mere wrapper; else the error's own first line."""
    own = _first_line(error)
    if not _is_of_spark(error):
        return own
    lines = [line for line in text.splitlines()[1:] if line.strip() and not _NO_CAUSE.match(line)]
    named = [match for line in lines if (match := _NAMED.fullmatch(line)) and not _WRAPPER.match(match[2])]
    if not named:
        return own
    kind, message = named[-1][1].rpartition(".")[2], named[-1][2].strip()
    if message[:80] in own:
        return own
    context = own if _is_useful(own) else ""
    return f"{kind}: {message[: MAX_CAUSE - _MAX_CONTEXT]}" + (f" (in: {context[:_MAX_CONTEXT]})" if context else "")


def _is_of_spark(error: BaseException) -> bool:
    return hasattr(error, "java_exception") or hasattr(error, "getMessage") or "Caused by: " in str(error)


def _is_useful(line: str) -> bool:
    """Whether a Spark error's own first line says more than that something failed."""
    return line.startswith("[") and not _WRAPPER.match(line)


def _first_line(error: BaseException) -> str:
    """An error's type and the first line of its message; where it has none, the place that raised it."""
    message = _java_message(error) or str(error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if _is_of_spark(error):
        return next((line for line in lines if not _NO_CAUSE.match(line)), type(error).__name__)
    if lines:
        return f"{type(error).__name__}: {lines[0]}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name}" if frames else ""
    return f"{type(error).__name__}{place}, without a message"


def _java_message(error: BaseException) -> str:
    """The message of the Java exception that a Py4JJavaError carries, or of a PySpark error; empty where none is."""
    try:
        if (java := getattr(error, "java_exception", None)) is not None:
            return str(java.getMessage() or java.getClass().getName())
        if callable(get := getattr(error, "getMessage", None)):
            return str(get() or "")
    except Exception:  # the JVM may be gone
        return ""
    return ""
