"""A client of Rankpress servers, which needs httpx alone.

    with Rankpress("http://localhost:8000") as server:
        server.compress("photo.jpg", "photo.rkp", rate=4)

`errors` has all exceptions but those for types of problems, which are in `problems`; `results` has
what the calls return, and `options` their options.
"""

from . import errors as errors
from . import options as options
from . import problems as problems
from . import results as results
from .client import AsyncRankpress as AsyncRankpress
from .client import Rankpress as Rankpress
from .errors import ProblemError as ProblemError
from .errors import RankpressClientError as RankpressClientError
from .errors import TransportError as TransportError
from .jobs import AdaptJob as AdaptJob
from .jobs import AsyncAdaptJob as AsyncAdaptJob
from .results import JobState as JobState
from .retries import RetryPolicy as RetryPolicy
