"""Every exception Rankpress raises on purpose, one class per thing a caller can act on.

RankpressError
├── BadStream              the bytes are not a stream, or a damaged one
│   ├── UnsupportedStream  a newer format version or an unknown critical section
│   └── UnknownModel       made with weights that are not in the store
│       └── UnknownUpdate  names a ready update that is not in the store
├── BadImage               the bytes are not an image file we read
│   └── TooManyPixels      the picture is larger than the pixel limit
├── TooManyBytes           the body is larger than the byte limit
├── BadParameter           a request argument is wrong
│   ├── RangeUnsatisfiable the bytes asked for lie beyond the end
│   ├── RateUnavailable    no weights for that rate in the store
│   └── TargetUnreachable  no rate meets the size or quality that was asked for
├── UnknownHost            the request names another server
├── ForeignOrigin          a web page of another origin may not ask for this
├── NotAcceptable          no output format that the caller accepts
├── BadAdapter             the bytes are not a rate adapter that fits the base
├── UnknownAdapter         no adapter with that hash is loaded
├── StoreError             the model store is incomplete or does not match its manifest
├── JobError               what was asked of an adaptation job cannot be had
│   ├── UnknownJob         there is no such job
│   ├── ExpiredJob         there was, and its result is no longer kept
│   ├── JobUnfinished      it has no such bytes yet; try again later
│   └── JobEnded           it has ended, so that there is nothing to cancel or will be no result
├── JobsOff                this server was told to offer no jobs
├── JobsUnavailable        the jobs' database does not answer
├── ObjectsUnavailable     the store of objects cannot be read or written
│   └── ObjectsFull        it has no room left
├── NoSuchObject           there is no object of that key
├── DamagedObject          an object's bytes are not those of its hash
├── MissingExtra           the work needs a part of Rankpress that is not installed
├── ForkedProcess          the models were loaded before this process was forked
├── Saturated              too much work waits already; try again later
│   └── QuotaReached       one client has taken its part of what all share
├── CheckFailed            a fresh stream did not decode to what was encoded: our fault
└── SelfTestFailed         this machine does not reproduce the golden stream

Messages say what was found, what was expected and where. HTTP status codes are in
http/problems.py.
"""

from __future__ import annotations


class RankpressError(Exception):
    """Base of every error raised on purpose."""


class BadStream(RankpressError):
    """The bytes are not a Rankpress stream, or a damaged one."""


class UnsupportedStream(BadStream):
    """The stream is whole but needs a newer decoder."""


class UnknownModel(BadStream):
    """The stream was made with weights that the store does not hold."""


class UnknownUpdate(UnknownModel):
    """The stream names a ready update of the decoder that the store does not hold."""


class BadImage(RankpressError):
    """The bytes are not an image file that can be read, or of a kind that is refused."""


class TooManyPixels(BadImage):
    """The picture has more pixels than the limit; refused before it is decoded."""


class TooManyBytes(RankpressError):
    """The body is larger than the byte limit."""


class BadParameter(RankpressError):
    """A request argument is wrong."""


class RangeUnsatisfiable(BadParameter):
    """The bytes that were asked for lie beyond the end of the answer.

    Attributes:
        size_bytes: of the whole answer.
    """

    def __init__(self, message: str, size_bytes: int) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes


class RateUnavailable(BadParameter):
    """The store holds no weights for the rate.

    Attributes:
        available: the rates that can be asked for.
    """

    def __init__(self, message: str, available: tuple[float, ...]) -> None:
        super().__init__(message)
        self.available = available


class TargetUnreachable(BadParameter):
    """No rate in the store meets the size or quality that was asked for.

    Attributes:
        found: the nearest there is, in the unit of the target. asked: the target.
    """

    def __init__(self, message: str, found: float, asked: float) -> None:
        super().__init__(message)
        self.found, self.asked = found, asked


class UnknownHost(RankpressError):
    """The request names another server than this one."""


class ForeignOrigin(RankpressError):
    """The request is of a web page of another origin, which may not ask for it."""


class NotAcceptable(RankpressError):
    """None of the formats that the caller accepts can be written."""


class BadAdapter(RankpressError):
    """The bytes are not a rate adapter, or one that does not fit the base it is for."""


class UnknownAdapter(RankpressError):
    """No adapter with that hash is loaded."""


class StoreError(RankpressError):
    """The model store is incomplete, or a file in it does not match the manifest."""


class JobError(RankpressError):
    """What was asked of an adaptation job cannot be had."""


class UnknownJob(JobError):
    """There is no job of that id."""


class ExpiredJob(JobError):
    """The job ended so long ago that its result is no longer kept."""


class JobUnfinished(JobError):
    """The job has no such bytes yet.

    Attributes:
        retry_after_s: a guess at when to try again, in whole seconds.
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class JobEnded(JobError):
    """The job has ended: there is nothing left to cancel, or there will be no result."""


class JobsOff(RankpressError):
    """This server was told to offer no jobs."""


class JobsUnavailable(RankpressError):
    """The database of the jobs cannot be reached, or does not answer."""


class ObjectsUnavailable(RankpressError):
    """The store of objects cannot be opened, read or written."""


class ObjectsFull(ObjectsUnavailable):
    """The disk or the quota of the store of objects has no room left."""


class NoSuchObject(RankpressError):
    """There is no object of that key."""


class DamagedObject(RankpressError):
    """An object's bytes are not those that its key is the hash of."""


class MissingExtra(RankpressError):
    """The work needs packages that the base install leaves out; the message names the extra."""


class ForkedProcess(RankpressError):
    """The models were loaded before this process was forked; the message says what to do."""


class Saturated(RankpressError):
    """Too much work waits already.

    Attributes:
        retry_after_s: a guess at when to try again, in whole seconds.
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaReached(Saturated):
    """One client has taken its part of what all share; there is room for others."""


class SelfTestFailed(RankpressError):
    """The golden stream did not decode to the recorded symbols on this machine."""


class CheckFailed(RankpressError):
    """A fresh stream did not decode to what was encoded; no input can be blamed for it."""
