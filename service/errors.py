"""The exceptions that Rankpress raises on purpose, a class for each thing a caller can act on.

Messages state what was found, what was expected, and where. HTTP status codes are in
http/problems.py.
"""

from __future__ import annotations


class RankpressError(Exception):
    """Base of every error raised on purpose."""


class RetryLater(RankpressError):
    """The same request may succeed in about `retry_after_s` seconds, a whole number."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BadStream(RankpressError):
    """The bytes are not a Rankpress stream, or a damaged one."""


class UnsupportedStream(BadStream):
    """The stream is whole but needs a newer decoder."""


class UnknownModel(BadStream):
    """The stream was made with weights that the store does not hold."""


class UnknownUpdate(UnknownModel):
    """The stream names a ready update of the decoder that the store does not hold."""


class BadImage(RankpressError):
    """The bytes are not an image file that can be read, or one of a kind that is refused."""


class TooManyPixels(BadImage):
    """The picture has more pixels than the limit; refused before it is decoded."""


class TooManyBytes(RankpressError):
    """The body is larger than the byte limit."""


class BadParameter(RankpressError):
    """A request argument is wrong."""


class BadImagePath(BadParameter):
    """A path of the IIIF Image API is malformed, or names what the picture does not have."""


class UpscalingUnsupported(BadParameter):
    """A path of the IIIF Image API asks for a picture larger than its region."""


class RangeUnsatisfiable(BadParameter):
    """The requested bytes are beyond the end of the answer, which has `size_bytes` bytes."""

    def __init__(self, message: str, size_bytes: int) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes


class ModelUnavailable(BadParameter):
    """No model of the name that a request asks for is loaded."""


class RateUnavailable(BadParameter):
    """The store holds no weights for the rate; `available` are the rates that it offers."""

    def __init__(self, message: str, available: tuple[float, ...]) -> None:
        super().__init__(message)
        self.available = available


class TargetUnreachable(BadParameter):
    """No rate gives the `requested` size or quality; `nearest` is the closest that one gives."""

    def __init__(self, message: str, nearest: float, requested: float) -> None:
        super().__init__(message)
        self.nearest, self.requested = nearest, requested


class UnknownHost(RankpressError):
    """The request names another server than this one."""


class ForeignOrigin(RankpressError):
    """The request comes from a web page of another origin, which may not send it."""


class NotAcceptable(RankpressError):
    """None of the formats that the caller accepts can be written."""


class BadAdapter(RankpressError):
    """The bytes are not a rate adapter, or one that does not fit its base."""


class UnknownAdapter(RankpressError):
    """No adapter with that hash is loaded."""


class StoreError(RankpressError):
    """The model store is incomplete, or a file in it does not match the manifest."""


class JobError(RankpressError):
    """A request about an adaptation job cannot be met."""


class UnknownJob(JobError):
    """There is no job of that id."""


class ExpiredJob(JobError):
    """The job ended so long ago that its result is no longer kept."""


class JobUnfinished(RetryLater, JobError):
    """The job has no such bytes yet."""


class JobEnded(JobError):
    """The job has ended: there is nothing to cancel, or there will be no result."""


class JobsOff(RankpressError):
    """This server is configured to offer no jobs."""


class JobsUnavailable(RankpressError):
    """The database of the jobs cannot be reached, or does not answer."""


class ObjectsUnavailable(RankpressError):
    """The object store cannot be opened, read or written."""


class ObjectsFull(ObjectsUnavailable):
    """The disk or the quota of the object store has no room left."""


class NoSuchObject(RankpressError):
    """There is no object with that key."""


class DamagedObject(RankpressError):
    """The bytes of an object do not match the hash in its key, or are not what its key says."""


class NoSuchPicture(RankpressError):
    """No picture has that name, or it was deleted."""


class RunStopped(RankpressError):
    """A bulk run cannot go on; what is done stays, and the same command continues it."""


class MissingExtra(RankpressError):
    """Needed packages are not part of the base install; the message names the extra to install."""


class ForkedProcess(RankpressError):
    """The models were loaded before this process was forked; the message says what to do."""


class Saturated(RetryLater):
    """Too much work is waiting."""


class QuotaReached(Saturated):
    """One client has used its share of the server; there is room for others."""


class RemoteFailure(RankpressError):
    """Another server, which was to do the work, has refused it or not answered."""


class ServerUnreachable(RemoteFailure):
    """There is no connection to that server, or it takes no work from this client at all."""


class SelfTestFailed(RankpressError):
    """The golden stream did not decode to the recorded symbols on this machine."""


class CheckFailed(RankpressError):
    """A new stream does not decode to what was encoded: a bug, whatever the input."""
